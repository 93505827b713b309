"""The token-level baseline: its loss, its sizes, its searches against exhaustive ones, its files."""

from __future__ import annotations

import io
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig
from sonarkit.core.packing import packing_of
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.rollout import PromptWarning
from sonarkit.models.token_llm import (
    CodecTokens,
    HuggingFaceTokens,
    SentencePieceTokens,
    TokenDocument,
    TokenLLM,
    TokenLLMConfig,
)
from sonarkit.models.token_search import search
from sonarkit.recipes import SONAR_LLM_SIZES
from sonarkit.store.reader import Document
from sonarkit.text.tokenizer import Tokenizer

BACKBONE = BackboneConfig(hidden=24, ffn=48, layers=2, heads=3, head_dim=8)
STORY = ["The little fox ran home.", "Mia found a red kite in the forest.", "They all laughed and danced until night."]
OTHER = ["Once upon a time there was a bear.", "Tom gave his friend an old map."]
PROMPTS = [STORY[0], " ".join(OTHER), "Mia found a red"]


def forever(row: int, ids: Sequence[int]) -> None:
    """Nothing halts."""


@pytest.fixture
def model(tokenizer: Tokenizer) -> TokenLLM:
    torch.manual_seed(3)
    made = TokenLLM.new(BACKBONE, CodecTokens(tokenizer)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)  # far from uniform
    return made


@pytest.fixture(scope="module")
def taught(tokenizer: Tokenizer) -> TokenLLM:
    """A model that knows two stories by heart."""
    torch.manual_seed(0)
    made = TokenLLM.new(replace(BACKBONE, hidden=48, ffn=96), CodecTokens(tokenizer))
    batch = [made.document(STORY), made.document(OTHER)]
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = made.loss(batch, whole_text=True)
        (loss.total / loss.count).backward()
        optimizer.step()
    return made.eval()


# ---------------------------------------------------------------------- loss


def plain(model: TokenLLM, document: TokenDocument, first: int) -> Tensor:
    """Nats of a document's tokens from `first` on, one document at a time, all logits stored."""
    ids = [model.tokens.end_id, *itertools.chain(*document.pieces), model.tokens.end_id]
    hidden_TH = model.backbone(model.embed(torch.tensor(ids[:-1])), packing_of([len(ids) - 1]))
    return F.cross_entropy((hidden_TH @ model.output_VH.T)[first:], torch.tensor(ids[1:])[first:], reduction="sum")


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradient_are_those_of_the_plain_path(tokenizer: Tokenizer, tied: bool) -> None:
    torch.manual_seed(1)
    model = TokenLLM.new(BACKBONE, CodecTokens(tokenizer), tied=tied).double()
    batch = [model.document(STORY), model.document(OTHER), model.document(STORY[:1])]
    loss = model.loss(batch)
    assert loss.count == sum(sum(map(len, d.pieces[1:])) + 1 for d in batch)
    wanted = sum(plain(model, d, len(d.pieces[0])) for d in batch)
    ours = torch.autograd.grad(loss.total, list(model.parameters()))
    theirs = torch.autograd.grad(torch.as_tensor(wanted), list(model.parameters()))
    assert torch.allclose(loss.total, torch.as_tensor(wanted), rtol=1e-12)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-12)


def test_the_whole_text_counts_the_first_sentence_but_bits_per_byte_does_not(model: TokenLLM) -> None:
    batch = [model.document(STORY, end_bytes=16), model.document(OTHER, end_bytes=16)]
    after, whole = model.loss(batch), model.loss(batch, whole_text=True)
    assert whole.count - after.count == len(batch[0].pieces[0]) + len(batch[1].pieces[0])
    assert whole.total.item() == pytest.approx(sum(plain(model, d, 0).item() for d in batch), rel=1e-5)
    bits, text_bytes = after.parts["bits_per_byte"]
    assert text_bytes == sum(len(s) for s in [*STORY[1:], *OTHER[1:]]) + 32
    assert float(bits) == pytest.approx(after.total.item() / math.log(2))
    assert float(whole.parts["bits_per_byte"][0]) == pytest.approx(float(bits), rel=1e-5)


def test_a_concept_model_s_document_is_the_same_text_by_the_same_bytes(model: TokenLLM, sonar: Sonar) -> None:
    told = [*STORY, "End of sequence."]
    document = Document(torch.zeros(4, 32), sonar.target_ids(told, "eng_Latn"), [len(s) for s in told], "here:1")
    assert TokenDocument.of(document) == model.document(STORY, len("End of sequence."), "here:1")


def test_a_document_without_a_sentence_is_refused(model: TokenLLM) -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        model.loss([TokenDocument([], [16])])


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "millions"), [("39M", 39), ("100M", 100), ("300M", 300), ("600M", 600), ("900M", 900), ("1.3B", 1300)]
)
def test_the_sizes_are_named_by_their_total_with_an_embedding_of_128_256(size: str, millions: int) -> None:
    tokens: Any = Sized()
    with torch.device("meta"):
        model = TokenLLM(TokenLLMConfig(SONAR_LLM_SIZES[size], tokenizer_fingerprint="none"), tokens)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total / 1e6 == pytest.approx(millions, rel=0.05)


class Sized:
    """A tokenizer of which only the size is asked."""

    kind, size, end_id, fingerprint = "codec", 128_256, 0, "none"


# ---------------------------------------------------------------------- search


def test_cached_steps_are_those_of_one_pass(model: TokenLLM) -> None:
    ids = [3, *itertools.chain(*model.tokens.pieces(STORY))]
    whole_V = model.advance(torch.tensor([ids]), model.start(1, len(ids)), torch.tensor([len(ids)]))
    context = model.start(1, len(ids) + 7)
    for token in ids:
        stepped_V = model.advance(torch.tensor([[token]]), context, torch.tensor([1]))
    assert torch.allclose(stepped_V, whole_V, atol=1e-4)


def test_a_beam_of_one_is_greedy(model: TokenLLM) -> None:
    prompts, steps = [[3, 30, 31], [3, 40, 41, 42, 43]], 12
    found = search(model, prompts, SearchConfig(beam_size=1, max_tokens=steps), forever)
    for prompt, (best,) in zip(prompts, found):
        ids: list[int] = []
        while len(ids) < steps:
            row = torch.tensor([[*prompt, *ids]])
            (log_probs_V,) = model.advance(row, model.start(1, row.shape[1]), torch.tensor([row.shape[1]]))
            log_probs_V[model.tokens.forbidden] = -torch.inf
            token = int(log_probs_V.argmax())
            if token == model.tokens.end_id:
                break
            ids.append(token)
        assert list(best.ids) == ids


class Toy(CodecTokens):
    """Only five tokens may be told, so that all texts can be listed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.forbidden = [i for i in range(self.size) if i not in (3, 30, 31, 32, 33)]


def test_a_wide_beam_finds_what_listing_all_texts_finds(tokenizer: Tokenizer, model: TokenLLM) -> None:
    model.tokens = Toy(tokenizer)
    prompt, most = [3, 30], 3
    texts = [t for n in range(most + 1) for t in itertools.product((30, 31, 32, 33), repeat=n)]
    scores = {}
    for text in texts:
        ids = [*prompt, *text]
        context = model.start(1, len(ids))
        log_probs_TV = (model.backbone.extend(model.embed(torch.tensor([ids])), context, torch.tensor([len(ids)]))[0]) @ (
            model.output_VH.T
        )
        log_probs_TV = log_probs_TV.log_softmax(-1).detach()
        steps = [float(log_probs_TV[len(prompt) - 1 + i, t]) for i, t in enumerate(text)]
        if len(text) < most:  # at the limit nothing needs to end
            steps.append(float(log_probs_TV[-1, 3]))
        scores[text] = sum(steps) / len(steps)
    found = search(model, [prompt], SearchConfig(beam_size=200, max_tokens=most), forever)[0]
    wanted = sorted(scores, key=lambda text: -scores[text])
    assert [told.ids for told in found[:10]] == wanted[:10]
    assert found[0].score == pytest.approx(scores[wanted[0]], abs=1e-4)


@pytest.mark.parametrize("options", [{"beam_size": 1}, {"beam_size": 3}, {"sample": True, "top_p": 0.9, "seed": 4}])
def test_a_batch_tells_what_its_prompts_tell_alone(taught: TokenLLM, options: dict[str, Any]) -> None:
    together = taught.generate(PROMPTS, max_tokens=40, **options)
    first = taught.generate(PROMPTS[:1], max_tokens=40, **options)
    assert first[0].text == together[0].text
    if "seed" not in options:  # elsewhere the place in the batch gives the random numbers
        assert [taught.generate(p, max_tokens=40, **options).text for p in PROMPTS] == [s.text for s in together]


def test_sampling_is_repeated_by_its_seed(model: TokenLLM) -> None:
    options: dict[str, Any] = {"sample": True, "temperature": 1.5, "top_k": 50, "max_tokens": 20}
    one, again, other = (model.generate(PROMPTS[0], seed=seed, **options).text for seed in (1, 1, 2))
    assert one == again != other


def test_repeated_ngrams_are_not_ours_to_forbid(model: TokenLLM) -> None:
    with pytest.raises(ValueError, match="expected 0"):
        model.generate(STORY[0], no_repeat_ngram=3)


# ---------------------------------------------------------------------- stories


def test_what_was_learned_by_heart_is_told(taught: TokenLLM, sonar: Sonar) -> None:
    one, two, open_end = taught.generate([STORY[0], OTHER[0], "The little fox"], sonar=sonar)
    assert one.sentences == STORY and two.sentences == OTHER
    assert one.prompt_sentences == 1 and one.stopped_by == two.stopped_by == "end"
    assert one.continuation == STORY[1:] and one.embeddings.shape == (3, 32)
    assert open_end.sentences == STORY and open_end.prompt_sentences == 1
    assert taught.generate(STORY[0], beam_size=4).text == one.text


def test_a_story_stops_at_its_limits(taught: TokenLLM) -> None:
    two = taught.generate(STORY[0], max_sentences=2)
    assert two.sentences == STORY[:2] and two.stopped_by == "max_sentences" and two.embeddings.shape == (2, 0)
    cut = taught.generate(STORY[0], max_tokens=3)
    assert cut.stopped_by == "max_tokens" and len(cut.sentences) == 2 and STORY[1].startswith(cut.sentences[1])


def test_a_repeated_sentence_is_a_loop_and_left_out(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = TokenLLM.new(replace(BACKBONE, hidden=48, ffn=96), CodecTokens(tokenizer))
    batch = [model.document([STORY[0], STORY[1], STORY[0], STORY[2]])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(batch, whole_text=True).total.backward()
        optimizer.step()
    story = model.eval().generate(STORY[0])
    assert story.sentences == STORY[:2] and story.stopped_by == "loop"
    assert model.generate(STORY[0], stop_on_loop=False).sentences == [STORY[0], STORY[1], STORY[0], STORY[2]]


def test_of_a_long_prompt_the_last_sentences_are_read_and_all_are_kept(taught: TokenLLM) -> None:
    assert taught.generate([]) == []
    with pytest.warns(PromptWarning, match="last 2 sentences"):
        story = taught.generate(" ".join(["Tom slept.", *STORY[:2]]), max_sentences=3)
    assert story.sentences == ["Tom slept.", *STORY] and story.prompt_sentences == 3


def test_bad_requests_are_refused(model: TokenLLM) -> None:
    with pytest.raises(ValueError, match="holds no sentence"):
        model.generate(" ")
    with pytest.raises(ValueError, match="max_sentences must be at least 2"):
        model.generate(STORY[0], max_sentences=1)
    with pytest.raises(ValueError, match="unknown language"):
        model.generate(STORY[0], "xyz_Latn")


# ---------------------------------------------------------------------- tokenizers and files


def raw_spm(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*STORY, *OTHER, "a a. b b."] * 5), model_writer=model, vocab_size=45, minloglevel=2, **options
    )
    return model.getvalue()


@pytest.mark.parametrize("options", [{}, {"eos_id": -1, "bos_id": -1}])
def test_any_sentencepiece_model_will_do(tmp_path: Path, options: dict[str, int]) -> None:
    tokens = SentencePieceTokens(raw_spm(**options))
    assert tokens.size == 45 + (tokens.end_id == 45)
    assert tokens.decode([i for ids in tokens.pieces(STORY) for i in ids]) == " ".join(STORY)
    model = TokenLLM.new(BACKBONE, tokens)
    model.save_pretrained(tmp_path / "model", torch.float32)
    again = TokenLLM.from_pretrained(tmp_path / "model")
    assert again.generate(STORY[0], max_tokens=8).text == model.eval().generate(STORY[0], max_tokens=8).text


def test_a_tokenizer_that_loses_the_space_between_sentences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads 'a a.' and 'b b.' back as"):
        SentencePieceTokens(raw_spm(add_dummy_prefix=False))
    with pytest.raises(ValueError, match="no whole SentencePiece model"):
        SentencePieceTokens(b"nonsense")


def test_a_hugging_face_tokenizer_reads_sentences_after_a_space(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="an extra")
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([" ".join(STORY)] * 3, trainer)
    tokens = HuggingFaceTokens(transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>"))
    assert tokens.decode([i for ids in tokens.pieces(STORY) for i in ids]) == " ".join(STORY)
    model = TokenLLM.new(BACKBONE, tokens)
    model.save_pretrained(tmp_path, torch.float32)
    again = TokenLLM.from_pretrained(tmp_path)
    assert again.generate(STORY[0], max_tokens=8).text == model.eval().generate(STORY[0], max_tokens=8).text
    with pytest.raises(ValueError, match="has no end token"):
        HuggingFaceTokens(transformers.PreTrainedTokenizerFast(tokenizer_object=made))


def test_without_transformers_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install \"sonarkit\[hf\]\""):
        HuggingFaceTokens("gpt2")


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_the_same_model(tokenizer: Tokenizer, tmp_path: Path, tied: bool) -> None:
    model = TokenLLM.new(BACKBONE, CodecTokens(tokenizer), tied=tied)
    model.save_pretrained(tmp_path, torch.float32)
    again = TokenLLM.from_pretrained(tmp_path)
    assert again.config == model.config and ("head.weight" in again.state_dict()) is not tied
    batch = [model.document(STORY)]
    assert torch.equal(again.loss(batch).total, model.loss(batch).total)


def test_what_does_not_belong_together_is_refused(model: TokenLLM, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no token-LLM at .*expected one of mini or a folder with config.json"):
        TokenLLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ids mean something else"):
        TokenLLM(replace(model.config, tokenizer_fingerprint="other"), model.tokens)
    with pytest.raises(ValueError, match="raise vocab_size"):
        TokenLLM(replace(model.config, vocab_size=10), model.tokens)
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.spm").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.spm is missing"):
        TokenLLM.from_pretrained(tmp_path)
