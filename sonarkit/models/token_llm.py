"""The token-level baseline: the same Llama backbone over token ids, no sentence vector anywhere (arXiv 2508.05305, section 4).

1. A document is its sentences' pieces end to end, between two end tokens: `</s> pieces pieces ... </s>`. No sign stands
   between sentences; the first end token only begins, the last is the end of the text and is predicted.
2. Loss: what comes after the first sentence, so that it compares with SONAR-LLM's, which is given that sentence too.
3. Generation: token by token with a key-value cache, see `token_search`; Punkt cuts what was told into sentences.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast, overload

import sentencepiece
import torch
from torch import Tensor, nn

from sonarkit.codec.search import SearchConfig
from sonarkit.core import checkpoint
from sonarkit.core import config as configs
from sonarkit.core.cross_entropy import linear_cross_entropy
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import pack
from sonarkit.models import token_search
from sonarkit.models.backbone import Backbone, BackboneConfig, Block, Context, recompute
from sonarkit.models.concept_model import weights_folder
from sonarkit.models.rollout import PromptWarning, StoppedBy, Story, split_prompt
from sonarkit.store.reader import Document
from sonarkit.text.languages import SONAR_LANGUAGES, per_text
from sonarkit.text.sentences import split_sentences
from sonarkit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sonarkit.codec.pipeline import Sonar

# ---------------------------------------------------------------------- tokens


class Tokens(Protocol):
    """What the model needs of a tokenizer. Pieces of sentences, laid end to end, must spell them with a space between.

    `size` counts the ids; `end_id` begins and ends a text; `forbidden` ids, control tokens, are never told; `languages` are
    those that `lang` may name. `pieces` are the ids of each sentence, `decode` gives text for ids, without special tokens, and
    `save` writes to a model's folder what `load_tokens` reads.
    """

    kind: str
    size: int
    end_id: int

    @property
    def forbidden(self) -> Sequence[int]: ...  # never told: control tokens
    @property
    def languages(self) -> Sequence[str]: ...
    @property
    def fingerprint(self) -> str: ...
    def pieces(self, sentences: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, folder: Path) -> None: ...


class CodecTokens:
    """A codec's own tokenizer: what a store's token ids were made with."""

    kind = "codec"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.size, self.end_id = tokenizer, tokenizer.size, tokenizer.eos_id
        self.forbidden = [i for i in tokenizer.special_ids if i != self.end_id]
        self.languages, self.fingerprint = tokenizer.languages, tokenizer.fingerprint

    def pieces(self, sentences: Sequence[str]) -> list[list[int]]:
        return self.tokenizer.pieces_batch(sentences)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)


class SentencePieceTokens:
    """Any SentencePiece model, its bytes or its file, with ids as it has them; without a `</s>` it is given one.

    Raises ValueError for what is no such model, and for one that does not keep the space between sentences.
    """

    kind = "sentencepiece"
    languages = SONAR_LANGUAGES

    def __init__(self, model: bytes | Path) -> None:
        self.model = model.read_bytes() if isinstance(model, Path) else model
        try:
            spm = self._spm = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise ValueError(f"this is no whole SentencePiece model ({error}); copy it again") from error
        pieces = spm.get_piece_size()
        self.end_id, self.size = (spm.eos_id(), pieces) if spm.eos_id() >= 0 else (pieces, pieces + 1)
        self.forbidden = [i for i in range(pieces) if (spm.is_control(i) or spm.is_unknown(i)) and i != self.end_id]
        self.fingerprint = hashlib.sha256(self.model).hexdigest()[:12]
        check_spaces(self)

    def pieces(self, sentences: Sequence[str]) -> list[list[int]]:
        return self._spm.encode(list(sentences))

    def decode(self, ids: Sequence[int]) -> str:
        return self._spm.decode([i for i in ids if i != self.end_id])

    def save(self, folder: Path) -> None:
        checkpoint.write_atomically(folder / "tokenizer.spm", lambda temporary: temporary.write_bytes(self.model))


class HuggingFaceTokens:
    """A tokenizer of Hugging Face's transformers: its name, its folder, or itself.

    Each sentence is read after a space, as within a text. Raises ValueError without the transformers package, and for a
    tokenizer without an end token or one that does not keep the space between sentences.
    """

    kind = "huggingface"
    languages = SONAR_LANGUAGES

    def __init__(self, tokenizer: Any) -> None:
        if isinstance(tokenizer, str | Path):
            try:
                from transformers import AutoTokenizer
            except ImportError as error:
                raise ValueError(
                    f'a Hugging Face tokenizer needs the transformers package ({error}): pip install "sonarkit[hf]"'
                ) from error
            tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{tokenizer.name_or_path or 'this tokenizer'} has no end token; set its eos_token")
        self.tokenizer, self.size, self.end_id = tokenizer, len(tokenizer), int(tokenizer.eos_token_id)
        self.forbidden = [i for i in tokenizer.all_special_ids if i != self.end_id]
        # byte-level BPE has the space in the next word's first piece; SentencePiece puts one there by itself
        self._space = ""
        try:
            check_spaces(self)
        except ValueError:
            self._space = " "
            check_spaces(self)

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits of its vocabulary."""
        text = "\n".join(f"{token} {i}" for token, i in sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]

    def pieces(self, sentences: Sequence[str]) -> list[list[int]]:
        spaced = [self._space + sentence for sentence in sentences]
        return self.tokenizer(spaced, add_special_tokens=False)["input_ids"] if spaced else []

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


def check_spaces(tokens: Tokens) -> None:
    """ValueError unless two sentences' pieces, end to end, are read back as the text that has a space between them."""
    (whole,) = tokens.pieces(["a a. b b."])
    found = tokens.decode([i for ids in tokens.pieces(["a a.", "b b."]) for i in ids])
    if found != tokens.decode(whole):
        raise ValueError(f"this tokenizer reads 'a a.' and 'b b.' back as {found!r}; expected {tokens.decode(whole)!r}")


def load_tokens(kind: str, folder: Path) -> Tokens:
    """The tokenizer that `Tokens.save` wrote to a model's folder. FileNotFoundError or ValueError where it is not whole."""
    if kind == "codec":
        return CodecTokens(Tokenizer.load(folder))
    if kind == "sentencepiece" and not (folder / "tokenizer.spm").is_file():
        raise FileNotFoundError(f"{folder / 'tokenizer.spm'} is missing; the tokenizer belongs to the model, copy both together")
    return SentencePieceTokens(folder / "tokenizer.spm") if kind == "sentencepiece" else HuggingFaceTokens(folder)


# ---------------------------------------------------------------------- the model


@dataclass(frozen=True)
class TokenLLMConfig:
    """`tied`: one matrix is token embedding and output projection, as in the paper's totals."""

    backbone: BackboneConfig
    vocab_size: int = 128_256
    tied: bool = True
    tokenizer: Literal["codec", "sentencepiece", "huggingface"] = "codec"
    tokenizer_fingerprint: str = ""

    def __post_init__(self) -> None:
        configs.check_sizes(self, "vocab_size")
        if self.tokenizer not in ("codec", "sentencepiece", "huggingface"):
            raise ValueError(f"tokenizer must be 'codec', 'sentencepiece' or 'huggingface', got {self.tokenizer!r}")


@dataclass(frozen=True)
class TokenDocument:
    """A document as the model learns from it: the pieces of each sentence; the UTF-8 bytes of each and of the end sentence.

    `bytes` is `Document.bytes`, so that both families divide their bits by the same text.
    """

    pieces: list[list[int]]
    bytes: list[int]
    source: str = ""

    @classmethod
    def of(cls, document: Document) -> TokenDocument:
        """A concept model's document in the codec's own tokens; the end token takes the place of its end sentence."""
        return cls([target[2:-1] for target in document.targets[:-1]], document.bytes, document.source)


class TokenLLM(nn.Module):
    """Token embedding, backbone, output projection.

    Raises ValueError for another tokenizer than the configuration names, and for one of more tokens than `vocab_size`.
    """

    shipped: ClassVar[Mapping[str, str]] = {"mini": "mini/token-llm"}  # name -> folder in `assets/`

    def __init__(self, config: TokenLLMConfig, tokens: Tokens) -> None:
        super().__init__()
        if tokens.size > config.vocab_size:
            raise ValueError(f"the tokenizer has {tokens.size} tokens, the model only {config.vocab_size}; raise vocab_size")
        if (tokens.kind, tokens.fingerprint) != (config.tokenizer, config.tokenizer_fingerprint):
            raise ValueError(
                f"this model was made for the {config.tokenizer} tokenizer {config.tokenizer_fingerprint}, the one at hand is "
                f"the {tokens.kind} tokenizer {tokens.fingerprint}, whose ids mean something else"
            )
        self.config, self.tokens = config, tokens
        self.embed = nn.Embedding(config.vocab_size, config.backbone.hidden)
        self.backbone = Backbone(config.backbone)
        nn.init.normal_(self.embed.weight, std=config.backbone.init_std)
        if not config.tied:
            self.head = nn.Linear(config.backbone.hidden, config.vocab_size, bias=False)
            nn.init.normal_(self.head.weight, std=config.backbone.init_std)

    @classmethod
    def new(cls, backbone: BackboneConfig, tokens: Tokens, *, tied: bool = True) -> TokenLLM:
        """An untrained model over the tokens of this tokenizer."""
        kind = cast(Literal["codec", "sentencepiece", "huggingface"], tokens.kind)
        return cls(TokenLLMConfig(backbone, tokens.size, tied, kind, tokens.fingerprint), tokens)

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.embed.weight.device

    @property
    def output_VH(self) -> Tensor:
        """(V, H) the output projection: where it is tied, the token embedding."""
        return self.embed.weight if self.config.tied else self.head.weight

    def use(self, *, activation_checkpointing: bool = False, compile: bool = False) -> TokenLLM:
        """How training computes, as in `SonarLLM.use`; neither loss nor gradient depends on it."""
        recompute(self.backbone.layers, activation_checkpointing)
        for layer in self.backbone.layers:
            assert isinstance(layer, Block)
            layer.compiled = compile
        return self

    # ------------------------------------------------------------------ learning

    def document(self, sentences: Sequence[str], end_bytes: int = 0, source: str = "") -> TokenDocument:
        """Sentences as a document of this model; `end_bytes` are those of the end sentence that concept models are told."""
        return TokenDocument(self.tokens.pieces(sentences), [*(len(s.encode()) for s in sentences), end_bytes], source)

    def loss(self, batch: list[TokenDocument], whole_text: bool = False) -> LossSum:
        """Nats over the tokens of every sentence but the first of each document, and its end of text; count = those tokens.

        These are the sentences that `SonarLLM.loss` counts: the end of text stands for its "End of sequence.". With
        `whole_text` the first sentence's tokens are learned and counted, too. `parts` has `bits_per_byte`, of the sentences
        after the first either way, by the bytes that SonarLLM divides by. Raises ValueError for a document without a sentence.
        """
        if any(len(d.bytes) != len(d.pieces) + 1 or not d.pieces for d in batch):
            raise ValueError("a document needs at least one sentence, and a number of bytes for each and for the end")
        rows = [[self.tokens.end_id, *(piece for sentence in d.pieces for piece in sentence)] for d in batch]
        ids_T, packing = pack(rows, self.device)
        labels_T, _ = pack([[*row[1:], self.tokens.end_id] for row in rows], self.device)
        firsts = [len(d.pieces[0]) for d in batch]
        judged_T = torch.tensor([place >= firsts[i] for i in packing.order_N.tolist() for place in range(len(rows[i]))])
        places_J = judged_T.nonzero()[:, 0].to(self.device)
        hidden_TH = self.backbone(self.embed(ids_T), packing)
        if not whole_text:
            hidden_TH, labels_T = hidden_TH[places_J], labels_T[places_J]
        total, losses_T = linear_cross_entropy(hidden_TH, self.output_VH, labels_T)
        nats = losses_T[places_J].sum() if whole_text else total.detach()
        text_bytes = sum(sum(d.bytes[1:]) for d in batch)
        return LossSum(total, float(len(losses_T)), {"bits_per_byte": (nats / math.log(2), float(text_bytes))})

    # ------------------------------------------------------------------ predicting

    def start(self, rows: int, positions: int) -> Context:
        """An empty context for `rows` texts of at most `positions` tokens, the first end token included."""
        return self.backbone.empty_context(rows, positions)

    @torch.no_grad()
    def advance(self, ids_BT: Tensor, context: Context, new_B: Tensor) -> Tensor:
        """Read `new_B[i]` more tokens in row i (the rest is padding) -> (B, V) log-probabilities of the next, float32."""
        hidden_BTH = self.backbone.extend(self.embed(ids_BT.to(self.device)), context, new_B.to(self.device))
        last_BH = hidden_BTH[torch.arange(len(hidden_BTH), device=self.device), new_B.to(self.device) - 1]
        return (last_BH @ self.output_VH.T).float().log_softmax(-1)

    @overload
    def generate(self, prompt: str, lang: str = ..., **options: Any) -> Story: ...
    @overload
    def generate(self, prompt: list[str], lang: str | Sequence[str] = ..., **options: Any) -> list[Story]: ...

    def generate(
        self,
        prompt: str | list[str],
        lang: str | Sequence[str] = "eng_Latn",
        *,
        max_sentences: int = 32,
        max_tokens: int = 1024,
        stop_on_loop: bool = True,
        seed: int | None = None,
        sonar: Sonar | None = None,
        **search: Any,
    ) -> Story | list[Story]:
        """Continue a prompt, or a list of them as one batch. -> `Story`, or a list of them.

        A story ends at the end of text ("end"), with `max_sentences` sentences, the prompt's included, when a sentence
        repeats an earlier one to the letter ("loop"; the repetition is left out), or after `max_tokens` new tokens
        ("max_tokens"; what was told of the last sentence stays). A prompt that stops within a sentence is continued within it.
        `lang` tells how to cut into sentences; it is not told to the model. Of a longer prompt the last `max_sentences` - 1
        sentences are read.

        `search` takes the fields of `SearchConfig`; by default a beam of 1, greedy. Beams are ordered by their mean
        log-probability per token told (`length_penalty`). `embeddings` are `sonar`'s vectors of the sentences, (S, 0) without
        it: this model has none; `steps` is empty. Raises ValueError for a prompt without a sentence and for a bad option.
        """
        if max_sentences < 2:
            raise ValueError(f"max_sentences must be at least 2, got {max_sentences}")
        config = SearchConfig(**{"beam_size": 1, **search, "max_tokens": max_tokens})
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        languages = per_text(lang, len(prompts), self.tokens.languages)
        if not prompts:
            return []
        heads = [split_prompt(text, code) for text, code in zip(prompts, languages)]
        if any(len(head) >= max_sentences for head in heads):
            warnings.warn(f"of a prompt the model reads the last {max_sentences - 1} sentences", PromptWarning, stacklevel=2)
        read = [self.tokens.pieces(head[1 - max_sentences :]) for head in heads]
        starts = [[self.tokens.end_id, *(piece for sentence in head for piece in sentence)] for head in read]
        # what the tokenizer makes of a prompt, cut again: an ellipsis that became three full stops may count otherwise
        given = [len(split_sentences(self.tokens.decode(ids[1:]), code)) for ids, code in zip(starts, languages)]

        def told(row: int, ids: Sequence[int]) -> list[str]:
            return split_sentences(self.tokens.decode([*starts[row][1:], *ids]), languages[row])

        def halt(row: int, ids: Sequence[int]) -> StoppedBy | None:
            if len(ids) > 1 and self.tokens.decode(ids[-2:-1])[-1:].isalnum():
                return None  # no sentence closes after a letter
            closed = told(row, ids)[:-1]
            if stop_on_loop and len(closed) > given[row] and closed[-1] in closed[:-1]:
                return "loop"
            return "max_sentences" if len(closed) >= max_sentences and len(closed) > given[row] else None

        generator = None if seed is None else torch.Generator().manual_seed(seed)
        found = token_search.search(self, starts, config, halt, generator)
        stories = []
        for row, best in enumerate(each[0] for each in found):
            sentences, stopped_by = told(row, best.ids), best.stopped_by
            if stopped_by in ("loop", "max_sentences"):  # the token that told so begins a sentence more
                sentences = sentences[: -2 if stopped_by == "loop" else -1]
            elif stop_on_loop and len(sentences) > given[row] and sentences[-1] in sentences[:-1] and stopped_by == "end":
                sentences, stopped_by = sentences[:-1], "loop"  # the repetition was the last sentence
            unread = heads[row][: 1 - max_sentences]
            sentences = [*unread, *sentences]
            vectors_SD = sonar.encode(sentences, languages[row]) if sonar else torch.empty(len(sentences), 0)
            stories.append(Story(prompts[row], sentences, len(unread) + given[row], vectors_SD, stopped_by, []))
        return stories[0] if isinstance(prompt, str) else stories

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | torch.device = "cpu") -> TokenLLM:
        """What is shipped under this name, or a folder written by `save_pretrained`, its tokenizer included; float32.

        Raises FileNotFoundError for what is missing; ValueError for what is damaged or does not belong together.
        """
        folder = weights_folder(name, cls.shipped, "token-LLM")
        config = configs.load(TokenLLMConfig, folder / "config.json")
        tokens = load_tokens(config.tokenizer, folder)
        tensors = checkpoint.read_safetensors(folder / "model.safetensors")
        with torch.device("meta"):
            model = cls(config, tokens)
        checkpoint.assign(model, {key: value.float() for key, value in tensors.items()}, folder / "model.safetensors")
        return model.to(device).eval()

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float16, weights: dict[str, Tensor] | None = None
    ) -> None:
        """Write `config.json`, `model.safetensors` in `dtype`, and the tokenizer.

        `weights` are written instead of the model's own, where those lie in parts on several ranks.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict() if weights is None else weights
        tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
        checkpoint.write_safetensors(folder / "model.safetensors", tensors, {"format": "sonarkit-token-llm-1"})
        self.tokens.save(folder)
        configs.save(self.config, folder / "config.json")
