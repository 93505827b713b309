"""`Sonar`: sentences to vectors and back. Encode, decode, translate, and the loss of a text given its vector."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from sonarkit.codec import published, published_speech, search, weights
from sonarkit.codec import speech as spoken
from sonarkit.codec.audio import RATE, Audio
from sonarkit.codec.config import CodecConfig
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.encoder import Encoder
from sonarkit.codec.reference import ReferenceSonar
from sonarkit.codec.search import Hypothesis, SearchConfig
from sonarkit.codec.weights import ShapeHints, Side, SideFile
from sonarkit.core import checkpoint, memory
from sonarkit.core import config as configs
from sonarkit.core.download import offline
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import chunks_by_tokens, pack
from sonarkit.core.paths import asset
from sonarkit.text.corpora import read_lines
from sonarkit.text.languages import SONAR_LANGUAGES, per_text
from sonarkit.text.tokenizer import Tokenizer

SHIPPED = {"mini": "mini/sonar"}
FORMAT = "sonarkit-codec-1"


class TruncationWarning(UserWarning):
    """Some texts were longer than the codec's maximum and were cut."""


def _save_pickled(state: dict[str, Any], path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:  # its writer's word for a full disk
        raise OSError(str(error).splitlines()[0]) from error


def fingerprint_of(tokenizer: Tokenizer, encoder: Iterable[tuple[str, Tensor]]) -> str:
    """A codec's fingerprint from its tokenizer and the weights of its encoder, sorted by name, as float16."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for key, value in encoder:
        digest.update(key.removeprefix("encoder.").encode())
        digest.update(value.detach().to("cpu", torch.float16).contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


class Sonar(nn.Module):
    """A SONAR codec: text encoder, text decoder and tokenizer.

    `encode` and `decode` take a list of sentences or vectors with one language for all or one for each, work in batches
    (`encode` sorts by length) and give results in the order that was passed.
    """

    def __init__(self, config: CodecConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if tokenizer.size != config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.size} tokens but the embedding table {config.vocab_size} rows; "
                "they must come from the same codec"
            )
        self.config, self.tokenizer = config, tokenizer
        self.encoder = Encoder(config.encoder, config.vocab_size, config.max_tokens)
        self.decoder = Decoder(config.decoder, config.width, config.vocab_size, config.max_tokens)
        self.name = ""  # what from_pretrained was given
        self.loaded_as = ""  # its fingerprint before it was rounded to bfloat16
        self._speech: list[spoken.SpeechEncoder] = []  # in a list: its weights are not the codec's

    # ------------------------------------------------------------------ loading and saving

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = ...,
        dtype: torch.dtype = ...,
        *,
        speech: str | Path | None = ...,
        accept_licence: bool | None = ...,
        backend: Literal["sonarkit"] = ...,
    ) -> Sonar: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = ...,
        dtype: torch.dtype = ...,
        *,
        speech: str | Path | None = ...,
        accept_licence: bool | None = ...,
        backend: Literal["sonar-space"],
    ) -> ReferenceSonar: ...

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        speech: str | Path | None = None,
        accept_licence: bool | None = None,
        backend: Literal["sonarkit", "sonar-space"] = "sonarkit",
    ) -> Sonar | ReferenceSonar:
        """The shipped codec `"mini"`, Meta's `"sonar"` or `"sonar-finetuned"`, or a folder of `save_pretrained`.

        Meta's weights (about 6 GB, CC-BY-NC 4.0) are downloaded once, after the licence was accepted: see
        `codec.published`. `"sonar-finetuned"` has the decoder that was tuned on random interpolations. `speech` adds an
        encoder of speech for `encode_speech`: `"mini"` or a folder, beside Meta's weights a language (`codec.published_speech`).
        `backend="sonar-space"` runs the same codec by Meta's own package, to compare (`codec.reference`; CPU, float32).
        Raises FileNotFoundError for what is not there and ValueError for files that are not whole.
        """
        if backend not in ("sonarkit", "sonar-space"):
            raise ValueError(f'backend must be "sonarkit" or "sonar-space", got {backend!r}')
        if backend == "sonar-space":
            if speech is not None:
                raise ValueError('speech has no backend "sonar-space"; leave one of the two out')
            return ReferenceSonar(cls.from_pretrained(name, accept_licence=accept_licence))
        if speech is not None:
            sonar = cls.from_pretrained(name, device, dtype, accept_licence=accept_licence)
            sonar.add_speech(load_speech(speech, sonar.config.width, device, dtype, accept_licence))
            return sonar
        if str(name) in published.PUBLISHED:
            files = published.files(str(name), accept_licence=accept_licence)
            sonar = cls.from_meta(files.encoder, files.decoder, files.tokenizer, device=device, dtype=dtype)
            sonar.name = str(name)
            return sonar
        folder = asset(SHIPPED[str(name)]) if str(name) in SHIPPED else Path(name)
        if not (folder / "config.json").is_file():
            known = ", ".join(sorted([*SHIPPED, *published.PUBLISHED]))
            raise FileNotFoundError(
                f"no codec at {str(name)!r}: expected one of {known} or a folder with config.json, "
                "model.safetensors and tokenizer.spm, which `sonarkit convert` makes of Meta's and Hugging Face's files"
            )
        if b'"model_type": "m2m_100"' in (folder / "config.json").read_bytes():
            raise ValueError(f"{folder} is Hugging Face's M2M100; Sonar.from_huggingface and `sonarkit convert` read it")
        with torch.device("meta"):
            sonar = cls(configs.load(CodecConfig, folder / "config.json"), Tokenizer.load(folder))
        file = folder / "model.safetensors"
        memory.check(
            sum(p.numel() for p in sonar.parameters()) * dtype.itemsize, f"loading {file} as {dtype}", torch.device(device)
        )
        tensors = checkpoint.read_safetensors(file)  # mapped: each tensor is read when it is converted
        checkpoint.assign(sonar, {key: value.to(device, dtype, copy=True) for key, value in tensors.items()}, file)
        if dtype == torch.bfloat16:
            sonar.loaded_as = fingerprint_of(sonar.tokenizer, ((key, tensors[key]) for key in sonar._read_by()))
        sonar.name = str(name)
        return sonar.eval()

    @classmethod
    def from_meta(
        cls,
        encoder: str | Path,
        decoder: str | Path,
        tokenizer: str | Path,
        *,
        languages: Sequence[str] = SONAR_LANGUAGES,
        hints: ShapeHints = ShapeHints(),
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Sonar:
        """Meta's own files: two `.pt` and the SentencePiece model, in either of Meta's key layouts.

        Width, depth, FFN, vocabulary and pooler are read off the weights; heads, activation and pooling are not in
        them and come from `hints` (16, ReLU, mean). `languages` are the language tokens in their order. Needs at
        most 1.15 times the weights' bytes in `dtype`. ValueError names every tensor that is missing or unexpected.
        """
        return cls._from_sides(Path(encoder), Path(decoder), Tokenizer(Path(tokenizer), languages), hints, device, dtype)

    @classmethod
    def from_huggingface(
        cls,
        encoder: str | Path,
        decoder: str | Path,
        tokenizer: str | Path | None = None,
        *,
        languages: Sequence[str] = SONAR_LANGUAGES,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Sonar:
        """SONAR as ported to Hugging Face's M2M100: a folder each, or the names of two repositories to download,
        such as `cointegrated/SONAR_200_text_encoder` and `raxtemur/SONAR_200_text_decoder`.

        `tokenizer` is the SentencePiece model, by default the encoder folder's `sentencepiece.bpe.model`. Raises
        FileNotFoundError for what is not there, and ValueError as `from_meta`.
        """
        reading, speaking = hub_folder(encoder), hub_folder(decoder)
        hints = replace(weights.hints_of_huggingface(reading), decoder_heads=weights.hints_of_huggingface(speaking).decoder_heads)
        spm = Tokenizer(Path(tokenizer) if tokenizer else _sentencepiece_file(reading), languages)
        return cls._from_sides(reading, speaking, spm, hints, device, dtype)

    @classmethod
    def from_nllb(
        cls,
        folder: str | Path,
        tokenizer: str | Path | None = None,
        *,
        languages: Sequence[str] = SONAR_LANGUAGES,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Sonar:
        """An NLLB (Hugging Face's M2M100, one folder or repository) as the beginning of a codec.

        The encoder is NLLB's with mean pooling; the decoder is NLLB's reading one vector instead of many, so its
        cross-attention keeps the values and loses queries and keys. SONAR was initialised so (arXiv 2308.11466, section 4.1);
        it must be trained before its vectors mean anything.
        """
        path = hub_folder(folder)
        spm = Tokenizer(Path(tokenizer) if tokenizer else _sentencepiece_file(path), languages)
        return cls._from_sides(path, path, spm, weights.hints_of_huggingface(path), device, dtype)

    @classmethod
    def _from_sides(
        cls,
        encoder: Path,
        decoder: Path,
        tokenizer: Tokenizer,
        hints: ShapeHints,
        device: str | torch.device,
        dtype: torch.dtype,
    ) -> Sonar:
        def sides() -> tuple[tuple[SideFile, Side], ...]:
            return (weights.open_side(encoder, "encoder"), "encoder"), (weights.open_side(decoder, "decoder"), "decoder")

        (reading, _), (speaking, _) = sides()
        config = weights.read_shape(reading, speaking, tokenizer.languages, hints)
        weights.check_names(reading, config, "encoder")
        weights.check_names(speaking, config, "decoder")
        del reading, speaking
        with torch.device("meta"):
            sonar = cls(config, tokenizer)
        weights.fill(sonar, sides, config, torch.device(device), dtype)
        if dtype == torch.bfloat16:
            sonar.loaded_as = fingerprint_of(tokenizer, weights.read(sonar._read_by(), sides, sonar, config))
        return sonar.eval()

    def save_meta(self, folder: str | Path) -> None:
        """Write `sonar_text_encoder.pt`, `sonar_text_decoder.pt` and the SentencePiece model as sonar-space reads them.

        The query and key projections that never reach the output are not kept here and come back as zeros.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sides: tuple[Side, Side] = ("encoder", "decoder")
        for side in sides:
            state = {"model": weights.meta_tensors(self, self.config, side)}
            checkpoint.write_atomically(folder / f"sonar_text_{side}.pt", partial(_save_pickled, state))
        model = self.tokenizer.model
        checkpoint.write_atomically(folder / "sentencepiece.source.model", lambda path: path.write_bytes(model))

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float16, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `config.json`, `model.safetensors` (in `dtype`) and the tokenizer; atomic file by file.

        `weights` are written instead of the codec's own, where those lie in parts on several ranks.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict() if weights is None else weights
        tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
        checkpoint.write_safetensors(folder / "model.safetensors", tensors, {"format": FORMAT})
        self.tokenizer.save(folder)
        configs.save(self.config, folder / "config.json")

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return self.encoder.embedding.weight.device

    @property
    def languages(self) -> tuple[str, ...]:
        """The codes that it knows, in the order of their tokens."""
        return self.config.languages

    def fingerprint(self) -> str:
        """12 hex digits that tell this codec's vectors from another's: a hash of encoder and tokenizer.

        Of one loaded in bfloat16 it is that of the weights in the file: its vectors mean the same.
        """
        if self.loaded_as and self.encoder.embedding.weight.dtype == torch.bfloat16:
            return self.loaded_as
        state = self.state_dict()
        return fingerprint_of(self.tokenizer, ((key, state[key]) for key in self._read_by()))

    def _read_by(self) -> list[str]:
        """The names of the encoder's weights, sorted."""
        return sorted(f"encoder.{key}" for key in self.encoder.state_dict())

    # ------------------------------------------------------------------ tokens

    def _cut(self, pieces: list[list[int]], room: int) -> list[list[int]]:
        """Cut what is longer than `room` pieces and say how many were."""
        too_long = sum(len(p) > room for p in pieces)
        if too_long:
            warnings.warn(
                f"{too_long} of {len(pieces)} texts were longer than {room} tokens and were cut; split them into sentences first",
                TruncationWarning,
                stacklevel=3,
            )
        return [p[:room] for p in pieces]

    def source_ids(self, texts: Sequence[str], lang: str | Sequence[str]) -> list[list[int]]:
        """`__lang__ pieces </s>` for each text: what the encoder reads. Cut at `max_tokens`, with a TruncationWarning."""
        languages = per_text(lang, len(texts), self.languages)
        pieces = self._cut(self.tokenizer.pieces_batch(list(texts)), self.config.max_tokens - 2)
        return [[self.tokenizer.language_id(code), *p, self.tokenizer.eos_id] for code, p in zip(languages, pieces)]

    def target_ids(self, texts: Sequence[str], lang: str | Sequence[str]) -> list[list[int]]:
        """`</s> __lang__ pieces </s>` for each text: what the decoder learns to say. Cut at as many pieces as `source_ids`."""
        languages = per_text(lang, len(texts), self.languages)
        pieces = self._cut(self.tokenizer.pieces_batch(list(texts)), self.config.max_tokens - 2)
        eos = self.tokenizer.eos_id
        return [[eos, self.tokenizer.language_id(code), *p, eos] for code, p in zip(languages, pieces)]

    # ------------------------------------------------------------------ text -> vectors

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        lang: str | Sequence[str] = "eng_Latn",
        *,
        batch_tokens: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Sentences -> (n, D) float32 vectors on `self.device`, in the order given.

        `lang` is one FLORES-200 code or one per text. `batch_tokens` bounds the tokens in a batch; by default 1024 on a
        CPU, where 4096 leave the cache and were 5 to 7 % slower, and 16 384 elsewhere. The result is an ordinary tensor:
        gradients may start from it. Texts longer than the codec's `max_tokens` are cut, with a TruncationWarning. Raises
        UnknownLanguageError (nearest code named), and ValueError for a single string and for another number of codes.
        """
        _check_texts(texts)
        reader = self.config.encoder
        if self.encoder.training and (reader.dropout or (reader.pooler and reader.pooler.dropout)):
            raise ValueError("the codec is in training mode, where dropout is random; call sonar.eval() first")
        if batch_tokens is None:
            batch_tokens = 1024 if self.device.type == "cpu" else 16_384
        ids = self.source_ids(texts, lang)
        vectors = torch.empty(len(texts), self.config.width, device=self.device)
        for chunk in _batches(ids, batch_tokens, progress, "encode"):
            vectors[chunk] = self.encoder(*pack([ids[i] for i in chunk], self.device)).float()
        return vectors

    def add_speech(self, encoder: spoken.SpeechEncoder) -> None:
        """Let `encode_speech` use this encoder. ValueError where its vectors are another codec's or of another width."""
        if encoder.config.width != self.config.width:
            raise ValueError(
                f"the speech encoder gives vectors of width {encoder.config.width}, the codec's are {self.config.width}"
            )
        if encoder.config.codec and encoder.config.codec != self.fingerprint():
            raise ValueError(
                f"the speech encoder {encoder.name or 'given'} gives vectors of the codec {encoder.config.codec}, "
                f"but {self.name or 'this codec'} is {self.fingerprint()}; use the codec that taught it"
            )
        if encoder.config.pieces is not None:
            encoder.read_with(self.encoder)
        self._speech = [encoder]

    @property
    def speech(self) -> spoken.SpeechEncoder:
        """The encoder of speech. ValueError where there is none."""
        if not self._speech:
            raise ValueError(
                'this codec has no speech encoder; load it with from_pretrained(..., speech="mini"), or add_speech(...)'
            )
        return self._speech[0]

    def encode_speech(
        self, audio: Sequence[Audio], *, rate: int = RATE, batch_seconds: float | None = None, progress: bool = False
    ) -> Tensor:
        """Utterances, as paths or arrays at `rate`, -> (n, D) float32 vectors; see `codec.speech.encode_speech`."""
        return spoken.encode_speech(self.speech, audio, rate=rate, batch_seconds=batch_seconds, progress=progress)

    def encode_recording(self, audio: Audio, *, rate: int = RATE, progress: bool = False, **cutting: float) -> spoken.Recording:
        """A recording of any length, cut at its silences, -> times and vectors; see `codec.speech.encode_recording`."""
        return spoken.encode_recording(self.speech, audio, rate=rate, progress=progress, **cutting)

    def encode_stream(
        self,
        texts: Iterable[str] | Path,
        lang: str | Iterable[str] = "eng_Latn",
        *,
        batch_tokens: int | None = None,
        buffer: int = 8192,
        progress: bool = False,
    ) -> Iterator[Tensor]:
        """Millions of sentences -> blocks of (n, D) vectors in their order, in the memory that one block takes.

        `texts` is any iterable, or the path of a UTF-8 text file (or .gz) with a sentence on each line; every line, a
        blank one too, has its vector. `lang` is one code, or an iterable that gives one for each text. `buffer` sentences
        are read ahead, sorted by length within `batch_tokens` as in `encode`, and yielded as one block. Errors come where
        they are met: ValueError names the line of a file that is not UTF-8.
        """
        if isinstance(texts, str):
            raise ValueError("expected sentences or a Path, got one string; pass [text], or Path(name) for a file")
        if buffer < 1:
            raise ValueError(f"buffer is the number of sentences to read ahead, at least 1; got {buffer}")
        lines = (line.rstrip("\r\n") for _, line in read_lines(texts)) if isinstance(texts, Path) else iter(texts)
        codes = iter(()) if isinstance(lang, str) else iter(lang)
        with tqdm(desc="encode", unit=" sentences", disable=not progress, leave=False) as bar:
            while block := list(islice(lines, buffer)):
                told_in = lang if isinstance(lang, str) else list(islice(codes, len(block)))
                vectors = self.encode(block, told_in, batch_tokens=batch_tokens)
                bar.update(len(block))
                yield vectors
        if next(codes, None) is not None:
            raise ValueError("there are more language codes than texts; give one for all or one for each")

    # ------------------------------------------------------------------ vectors -> text

    def search(
        self,
        z: Tensor,
        lang: str | Sequence[str] = "eng_Latn",
        config: SearchConfig = SearchConfig(),
        *,
        batch_size: int | None = None,
        seed: int | None = None,
        progress: bool = False,
    ) -> list[list[Hypothesis]]:
        """(n, D) vectors -> for each the hypotheses found (the n best), best first, with ids, log-probabilities and score.

        `batch_size` vectors are searched from at once, by default 32 on a CPU and 256 elsewhere.
        Other special tokens than `</s>` and `<unk>` come only from a codec that scores its language token, as in Meta's
        search, and `<pad>` never; texts are without them. `seed` makes sampling repeatable. Raises ValueError for vectors
        of another width or with NaN or infinity.
        """
        return list(chain.from_iterable(self._searched(z, lang, config, batch_size, seed, progress)))

    def _searched(
        self,
        z: Tensor,
        lang: str | Sequence[str],
        config: SearchConfig,
        batch_size: int | None,
        seed: int | None,
        progress: bool,
    ) -> Iterator[list[list[Hypothesis]]]:
        """`search`, batch by batch. (Hypotheses take some kB a vector: who wants the texts alone need not keep them.)"""
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is a number of vectors, at least 1; got {batch_size}")
        z = self._check_vectors(z)
        codes = [self.tokenizer.language_id(code) for code in per_text(lang, len(z), self.languages)]
        limit = self.config.max_tokens - 3  # the prefix and the end take three places
        scored = self.config.decoder.predicts_language if config.score_language is None else config.score_language
        most = min(config.max_tokens, limit)
        config = replace(config, max_tokens=most, min_tokens=min(config.min_tokens, most), score_language=scored)
        eos = self.tokenizer.eos_id
        never = set(self.tokenizer.special_ids) - {eos, self.tokenizer.unk_id}
        forbidden = [self.tokenizer.pad_id] if scored else sorted(never)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        batch_size = batch_size or (32 if self.device.type == "cpu" else 256)
        starts = range(0, len(z), batch_size)
        for start in tqdm(starts, desc="decode", unit="batch", disable=not progress, leave=False):
            rows = slice(start, start + batch_size)
            if config.sample:
                yield search.sample(
                    self.decoder, z[rows], codes[rows], config, eos_id=eos, forbidden=forbidden, generator=generator
                )
            else:
                yield search.beam_search(self.decoder, z[rows], codes[rows], config, eos_id=eos, forbidden=forbidden)

    def decode(
        self,
        z: Tensor,
        lang: str | Sequence[str] = "eng_Latn",
        *,
        beam_size: int = 5,
        max_tokens: int = 512,
        sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        length_penalty: float = 1.0,
        no_repeat_ngram: int = 0,
        batch_size: int | None = None,
        seed: int | None = None,
        progress: bool = False,
    ) -> list[str]:
        """(n, D) vectors -> n sentences in `lang` (one code, or one per vector), the best found of each.

        See `SearchConfig` for the options and `search` for the n best with their scores.
        """
        config = SearchConfig(
            beam_size,
            max_tokens,
            sample,
            temperature,
            top_k,
            top_p,
            length_penalty=length_penalty,
            no_repeat_ngram=no_repeat_ngram,
        )
        batches = self._searched(z, lang, config, batch_size, seed, progress)
        return [self.tokenizer.decode(hypotheses[0].ids) for found in batches for hypotheses in found]

    def translate(
        self, texts: Sequence[str], source_lang: str | Sequence[str], target_lang: str | Sequence[str], **options: object
    ) -> list[str]:
        """Encode in one language, decode in another. `options` go to `decode`; `progress` shows both."""
        per_text(target_lang, len(texts), self.languages)  # what decoding would refuse, before all is encoded
        self.decode(torch.empty(0, self.config.width), [], **options)  # type: ignore[arg-type]
        z = self.encode(texts, source_lang, progress=bool(options.get("progress")))
        return self.decode(z, target_lang, **options)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ the loss of a text given its vector

    def token_loss(
        self, z: Tensor, texts: Sequence[str], lang: str | Sequence[str] = "eng_Latn", *, as_published: bool = False
    ) -> LossSum:
        """Cross-entropy of each text under the decoder, given its vector; differentiable in `z` (n, D).

        Sum in nats and count of target tokens: pieces and `</s>`. `as_published` also counts the language
        token and a second `</s>`, as SONAR-LLM's published trainer does (arXiv 2508.05305, public code), and so cuts a text
        a piece earlier. Raises ValueError for another number of vectors than of texts, and as `encode` and `search` do.
        """
        z, targets = self._check_pairs(z, texts), self.target_ids(texts, lang)
        if not targets:
            return LossSum(z.sum(), 0.0, {})
        if as_published:
            end = self.tokenizer.eos_id
            targets = [[*ids[:-1][: self.config.max_tokens - 1], end, end] for ids in targets]
        total, losses = self.decoder.token_losses(z, *pack(targets, self.device), skip=0 if as_published else 1)
        return LossSum(total, len(losses), {})

    @torch.no_grad()
    def token_log_probs(
        self, z: Tensor, texts: Sequence[str], lang: str | Sequence[str] = "eng_Latn"
    ) -> list[list[tuple[str, float]]]:
        """For each text its pieces and `</s>`, as they are written, with their log-probability in nats given its vector.

        By teacher forcing, in the order of the text: what `token_loss` sums, token by token. Near 0 is what the vector
        (n, D), or the words before, pin down.
        """
        z, targets = self._check_pairs(z, texts), self.target_ids(texts, lang)
        if not targets:
            return []
        flat, packing = pack(targets, self.device)
        _, losses = self.decoder.token_losses(z, flat, packing)
        order = packing.order_N.tolist()
        found: list[list[tuple[str, float]]] = [[] for _ in targets]
        for i, part in zip(order, losses.split([len(targets[i]) - 2 for i in order])):  # `</s> __lang__` are given
            found[i] = [(self.tokenizer.piece(token), -loss) for token, loss in zip(targets[i][2:], part.tolist())]
        return found

    def _check_pairs(self, z: Tensor, texts: Sequence[str]) -> Tensor:
        _check_texts(texts)
        z = self._check_vectors(z)
        if len(z) != len(texts):
            raise ValueError(f"one vector per text is needed, got {len(z)} vectors and {len(texts)} texts")
        return z

    def _check_vectors(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] != self.config.width:
            raise ValueError(f"expected vectors of shape (n, {self.config.width}) for this codec, got {tuple(z.shape)}")
        if not torch.isfinite(z).all():
            raise ValueError("the vectors hold NaN or infinity; check what produced them")
        return z.to(self.device, self.decoder.embedding.weight.dtype)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one string; pass [text]")
    if not isinstance(texts, Sized):
        raise ValueError(f"expected a list of texts, got {type(texts).__name__}; pass list(texts), or use encode_stream")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"expected texts, got {text!r} ({type(text).__name__}) at place {i}")


def _batches(ids: list[list[int]], budget: int, progress: bool, what: str) -> Iterator[list[int]]:
    """Chunks of similar length within a token budget, the longest first so that memory runs out at once or never."""
    bar = tqdm(total=len(ids), desc=what, unit=" sentences", disable=not progress, leave=False)
    for chunk in reversed(chunks_by_tokens([len(i) for i in ids], budget)):
        yield chunk
        bar.update(len(chunk))
    bar.close()


def hub_folder(name: str | Path) -> Path:
    """A folder of Hugging Face's: one that is there, or a repository's name, downloaded to the hub's cache.

    FileNotFoundError where it is neither, or cannot be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no folder {str(name)!r}, and no name of a repository such as cointegrated/SONAR_200_text_encoder"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "sentencepiece*"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=bool(offline())))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"could not get {name} from the Hugging Face hub: {' '.join(str(error).split())}") from error


def _sentencepiece_file(folder: Path) -> Path:
    found = [folder / name for name in ("sentencepiece.bpe.model", "sentencepiece.source.256000.model", "tokenizer.spm")]
    for file in found:
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} has no {found[0].name}; pass the SentencePiece model as tokenizer=")


def load_speech(
    named: str | Path,
    width: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    accept_licence: bool | None = None,
) -> spoken.SpeechEncoder:
    """The speech encoder `named` for a codec of that width: a folder, a shipped name, Meta's `spenc.*.pt`, or for a codec as wide
    as Meta's (a converted one, too) a language."""
    if str(named).endswith(".pt"):
        return published_speech.from_meta(named, device=device, dtype=dtype)
    if width == CodecConfig.width and str(named) not in spoken.SHIPPED and not Path(named).is_dir():
        return published_speech.load(str(named), device, dtype, accept_licence=accept_licence)
    return spoken.SpeechEncoder.from_pretrained(named, device, dtype)
