"""SONAR-LLM: its loss against the plain path, its predictions, and stories told with a model that is not random."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_backbone import plain_forward  # type: ignore[import-not-found]
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig
from sonarkit.core import cross_entropy
from sonarkit.models import rollout
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.rollout import END_OF_SEQUENCE, RolloutConfig, candidates, generate, noisy, tell
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.store.reader import Document

STORIES = [
    ["The fox ran home.", "Mia slept.", END_OF_SEQUENCE],
    ["Tom found a map in the forest.", END_OF_SEQUENCE],
    ["One.", "Two or three.", "Four.", "Five.", END_OF_SEQUENCE],
]


@pytest.fixture
def model(sonar: Sonar) -> SonarLLM:
    torch.manual_seed(0)
    config = SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint())
    return SonarLLM(config, sonar).eval()


def documents(sonar: Sonar) -> list[Document]:
    return [Document(sonar.encode(s), sonar.target_ids(s, "eng_Latn"), [len(t.encode()) for t in s]) for s in STORIES]


@pytest.fixture
def model_with_own_decoder(sonar: Sonar) -> SonarLLM:
    torch.manual_seed(0)
    config = SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint(), train_decoder=True)
    return SonarLLM(config, sonar).eval()


def plain_nats(model: SonarLLM, batch: list[Document], as_published: bool) -> Tensor:
    """(N, L) cross-entropy of every target token, 0 where there is none, the way it is usually written.

    Sentences are padded to the longest, cross-attention has queries and a key (any: a softmax over one key is 1), and the
    logits are whole.
    """
    predicted_ND = torch.cat([_predictions(model, d.vectors_SD[:-1]) for d in batch])
    targets = [torch.tensor(target) for d in batch for target in d.targets[1:]]
    if as_published:
        inputs, labels = targets, [F.pad(target[1:], (0, 1), value=int(target[-1])) for target in targets]
    else:
        inputs, labels = [t[:-1] for t in targets], [F.pad(t[2:], (1, 0), value=-100) for t in targets]
    inputs_NL = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=0)
    labels_NL = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    length, decoder = inputs_NL.shape[1], model.sonar.decoder
    padding = torch.arange(length) >= torch.tensor([len(i) for i in inputs])[:, None]
    masked = torch.ones(length, length, dtype=torch.bool).triu(1) | padding[:, None, None]  # (N, 1, L, L)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:  # (N, L, H), (N, S, H)
        q, k, v = (x.unflatten(-1, (4, 8)).transpose(1, 2) for x in (q, k, v))
        scores = q @ k.mT / math.sqrt(8)
        weights = (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    x, terms = decoder.embedding(inputs_NL, torch.arange(length)), decoder.sentence_terms
    to_query, to_key = torch.randn(2, 32, 32, dtype=x.dtype)
    for i, layer in enumerate(decoder.layers):
        x = x + layer.attention.output(attend(*layer.attention.qkv(layer.attention_norm(x)).chunk(3, -1), masked))
        memory = predicted_ND[:, None]
        value = F.linear(memory, terms.value_weight[i], terms.value_bias[i])
        x = x + F.linear(attend(x @ to_query, memory @ to_key, value), terms.output_weight[i], terms.output_bias[i])
        x = x + layer.ffn(layer.ffn_norm(x))
    logits = decoder.norm(x) @ decoder.embedding.weight.T
    return F.cross_entropy(logits.flatten(0, 1), labels_NL.flatten(), ignore_index=-100, reduction="none").view(labels_NL.shape)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("which", ["model", "model_with_own_decoder"])
def test_the_loss_equals_the_plain_path_in_value_and_gradient(
    which: str, as_published: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: for every parameter that learns, to 1e-10 of the gradient's size; logits are made seven rows at a time."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 7 * 4 * 330)
    model: SonarLLM = request.getfixturevalue(which).double()
    model.sonar.double()
    batch = [Document(d.vectors_SD.double(), d.targets, d.bytes) for d in documents(model.sonar)]
    loss = model.loss(batch, as_published)
    parameters = dict(model.named_parameters())
    assert any(name.startswith("decoder.") for name in parameters) == model.config.train_decoder
    nats_NL = plain_nats(model, batch, as_published)
    lengths = [len(t) for d in batch for t in d.targets[1:]]
    assert loss.count == sum(lengths) - (0 if as_published else 2 * len(lengths))
    torch.testing.assert_close(loss.total, nats_NL.sum(), rtol=1e-10, atol=0)
    ours = torch.autograd.grad(loss.total, list(parameters.values()))
    theirs = torch.autograd.grad(nats_NL.sum(), list(parameters.values()))
    for name, one, other in zip(parameters, ours, theirs):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(
            one, other, rtol=0, atol=1e-10 * float(other.abs().max()), msg=lambda m, name=name: f"{name}: {m}"
        )
    bits, text_bytes = loss.parts["bits_per_byte"]  # without the language token and the second </s>, either way
    assert text_bytes == sum(len(s.encode()) for story in STORIES for s in story[1:])
    own = sum(row[1 : n - 1].sum().item() for row, n in zip(nats_NL, lengths))
    assert bits.item() == pytest.approx(own / math.log(2), rel=1e-6 if as_published else 1e-10)


def _predictions(model: SonarLLM, vectors_SD: Tensor) -> Tensor:
    return model.reverse_proj(plain_forward(model.backbone, model.forward_proj(vectors_SD)))


def _predict(model: SonarLLM, vectors_SD: Tensor) -> Tensor:
    return _predictions(model, vectors_SD)[-1]


@torch.no_grad()
def test_the_loss_as_published_by_hand(model: SonarLLM) -> None:
    """A decoder that says one token whatever it reads: that token costs log(1 + (V - 1) / e^2), any other 2 nats more."""
    decoder, tokenizer = model.sonar.decoder, model.sonar.tokenizer
    eos, english = tokenizer.eos_id, tokenizer.language_id("eng_Latn")
    piece = next(i for i in range(tokenizer.size) if i not in tokenizer.special_ids)
    decoder.embedding.weight.zero_()
    decoder.embedding.weight[eos, 0] = 2.0
    decoder.norm.weight.zero_()
    decoder.norm.bias.zero_()
    decoder.norm.bias[0] = 1.0
    ends = math.log(1 + (tokenizer.size - 1) / math.e**2)
    target = [eos, english, piece, piece, piece, eos]
    batch = [Document(torch.randn(2, 32), [[eos, english, eos], target], [1, 12])]
    plain, published = model.loss(batch), model.loss(batch, as_published=True)
    assert (plain.count, published.count) == (4, 6)  # three pieces and </s>; with the language and one more </s>
    assert plain.total.item() == pytest.approx(3 * (ends + 2) + ends, rel=1e-5)
    assert published.total.item() == pytest.approx(4 * (ends + 2) + 2 * ends, rel=1e-5)
    assert published.parts["bits_per_byte"][0].item() == pytest.approx(plain.parts["bits_per_byte"][0].item(), rel=1e-5)


def test_a_sentence_that_is_too_long_for_the_decoder_is_named(model: SonarLLM) -> None:
    def batch(pieces: int) -> list[Document]:
        return [Document(torch.randn(2, 32), [[3, 5, 3], [3, 5, *[9] * pieces, 3]], [1, 9])]

    assert model.loss(batch(62)).count == 63  # of 64 tokens
    assert model.loss(batch(61), as_published=True).count == 64
    with pytest.raises(ValueError, match="63 pieces is 65 tokens to the decoder, but it takes 64; cut sentences at 62 pieces"):
        model.loss(batch(63))
    with pytest.raises(
        ValueError, match="62 pieces is 65 tokens to the decoder in the loss as published, .*; cut sentences at 61"
    ):
        model.loss(batch(62), as_published=True)


def test_noise_on_the_context_is_relative_repeatable_and_for_training_only(model: SonarLLM) -> None:
    batch = documents(model.sonar)
    plain = model.loss(batch).total
    assert torch.equal(model.loss(batch, context_noise=0.5).total, plain)  # evaluation
    model.train()
    assert torch.equal(model.loss(batch).total, plain)
    torch.manual_seed(1)
    one = model.loss(batch, context_noise=0.5).total
    two = model.loss(batch, context_noise=0.5).total
    torch.manual_seed(1)
    assert torch.equal(model.loss(batch, context_noise=0.5).total, one) and one != two and one != plain
    with pytest.raises(ValueError, match="at least 0; got -0.1"):
        model.loss(batch, context_noise=-0.1)

    vectors = torch.tensor([[3.0], [0.0], [-0.01]]).expand(3, 20_000)
    added = noisy(vectors, 0.5) - vectors
    torch.testing.assert_close(added.square().mean(-1).sqrt(), torch.tensor([1.5, 0.0, 0.005]), rtol=0.03, atol=0)
    assert added.mean(-1).abs().max() < 0.05


def test_a_decoder_of_its_own_learns_and_the_codec_given_does_not(sonar: Sonar, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in sonar.state_dict().items()}
    sonar.name = "tiny"
    config = SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint(), train_decoder=True)
    model = SonarLLM(config, sonar).train()
    assert model.sonar is not sonar and model.sonar.name == "tiny" and model.sonar.tokenizer is sonar.tokenizer
    shared = zip(model.sonar.encoder.parameters(), sonar.encoder.parameters())
    assert all(one.data_ptr() == other.data_ptr() and not one.requires_grad for one, other in shared)
    assert {id(p) for p in model.decoder.parameters()} == {id(p) for p in model.sonar.decoder.parameters()}

    batch, optimizer = documents(sonar), torch.optim.SGD(model.parameters(), 0.1)
    start = model.loss(batch).total
    start.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in sonar.state_dict().items())
    learnt = {key: value for key, value in model.state_dict().items() if key.startswith("decoder.")}
    assert {key.removeprefix("decoder.") for key in learnt} == set(sonar.decoder.state_dict())
    assert all(not torch.equal(value, before[key]) for key, value in learnt.items())

    model.eval().save_pretrained(tmp_path, torch.float32)
    again = SonarLLM.from_pretrained(tmp_path, sonar=sonar)
    assert again.loss(batch).total == model.loss(batch).total != start
    z = sonar.encode(["The fox ran home."])
    assert torch.equal(again.sonar.token_loss(z, ["Mia slept."]).total, model.sonar.token_loss(z, ["Mia slept."]).total)
    assert all(p.requires_grad for p in again.decoder.parameters()) and again.decoder is again.sonar.decoder

    again.double()  # moving the model leaves the codec given where it is
    assert {p.dtype for p in sonar.parameters()} == {torch.float32}
    assert {p.dtype for p in (*again.parameters(), *again.sonar.parameters())} == {torch.float64}


def test_a_codec_in_half_precision_gives_a_decoder_that_learns_in_float32(sonar: Sonar, tmp_path: Path) -> None:
    config = SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint(), train_decoder=True)
    sonar.save_pretrained(tmp_path)
    model = SonarLLM(config, Sonar.from_pretrained(tmp_path, dtype=torch.bfloat16))
    assert model.sonar.fingerprint() == sonar.fingerprint()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.dtype for p in model.sonar.encoder.parameters()} == {torch.bfloat16}


def test_a_configuration_from_before_decoders_were_trained_still_loads(model: SonarLLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, torch.float32)
    told = json.loads((tmp_path / "config.json").read_text())
    del told["train_decoder"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert SonarLLM.from_pretrained(tmp_path, sonar=model.sonar).config == model.config


def test_weights_gathered_elsewhere_are_saved_instead_of_the_models_own(model: SonarLLM, tmp_path: Path) -> None:
    weights = {key: torch.full_like(value, 0.5) for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, weights=weights)
    assert all((p == 0.5).all() for p in SonarLLM.from_pretrained(tmp_path, sonar=model.sonar).parameters())


@pytest.mark.parametrize("which", ["model", "model_with_own_decoder"])
def test_recomputing_changes_neither_loss_nor_gradient_and_keeps_less(which: str, request: pytest.FixtureRequest) -> None:
    model: SonarLLM = request.getfixturevalue(which).double()
    model.sonar.double()
    batch = [Document(d.vectors_SD.double(), d.targets, d.bytes) for d in documents(model.sonar)]
    found, kept = [], []
    for on in (False, True, False):
        assert model.use(activation_checkpointing=on) is model
        numbers: list[int] = []

        def keep(tensor: Tensor, numbers: list[int] = numbers) -> Tensor:
            numbers.append(tensor.numel() * (not isinstance(tensor, torch.nn.Parameter)))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.loss(batch)
        kept.append(sum(numbers))
        found.append((loss.total, *torch.autograd.grad(loss.total, list(model.parameters()))))
    assert all(torch.equal(one, other) for one, other in zip(found[0], found[1]))
    assert kept[0] == kept[2] > 2 * kept[1]


def test_dropout_of_a_decoder_that_learns_is_drawn_once_though_it_is_computed_twice(sonar: Sonar) -> None:
    config = SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint(), train_decoder=True)
    model = SonarLLM(config, sonar).double()
    for module in model.decoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    batch, found = [Document(d.vectors_SD.double(), d.targets, d.bytes) for d in documents(sonar)], []
    for on in (False, True):
        model.use(activation_checkpointing=on)
        torch.manual_seed(0)
        found.append(torch.autograd.grad(model.loss(batch).total, list(model.parameters())))
    for one, other in zip(*found):
        assert torch.equal(one, other)


def test_predict_next_is_what_training_predicts(model: SonarLLM) -> None:
    vectors = model.sonar.encode(STORIES[2])
    expected = _predict(model, vectors)
    torch.testing.assert_close(model.predict_next(vectors[None])[0], expected, rtol=0, atol=1e-5)


def test_attention_of_a_story_is_the_backbone_s(model: SonarLLM) -> None:
    vectors = model.sonar.encode(STORIES[2])
    weights = model.attention(vectors)
    assert weights.shape == (2, 3, 5, 5) and weights.dtype == torch.float32
    torch.testing.assert_close(weights, model.backbone.attention(model.forward_proj(vectors)))
    torch.testing.assert_close(model.attention(vectors[:3]), weights[..., :3, :3])  # causal: what follows changes nothing
    for unfit in (vectors[0], vectors[:0], vectors[:, 1:]):
        with pytest.raises(ValueError, match=r"shape \(S, 32\)"):
            model.attention(unfit)


def test_the_codec_is_frozen_and_not_among_the_weights(model: SonarLLM) -> None:
    assert not any(p.requires_grad for p in model.sonar.parameters())
    assert not any("codec" in key or "decoder" in key for key in model.state_dict())
    before = {key: value.clone() for key, value in model.sonar.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.loss(documents(model.sonar)).total.backward()
    optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.sonar.state_dict().items())


def test_saved_and_loaded_predicts_the_same_and_another_codec_is_refused_unless_told(model: SonarLLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = SonarLLM.from_pretrained(tmp_path, sonar=model.sonar)
    vectors = model.sonar.encode(STORIES[0])[None]
    assert torch.equal(loaded.predict_next(vectors), model.predict_next(vectors))
    with torch.no_grad():
        model.sonar.encoder.norm.bias += 1
    with pytest.raises(ValueError, match="trained on codec 'tiny'"):
        SonarLLM.from_pretrained(tmp_path, sonar=model.sonar)
    moved = SonarLLM.from_pretrained(tmp_path, sonar=model.sonar, same_codec=False)
    assert moved.config.codec_fingerprint == model.sonar.fingerprint() != model.config.codec_fingerprint
    assert torch.equal(moved.predict_next(vectors), model.predict_next(vectors)), "its own weights are what they were"


class Memory:
    """A stand-in model and codec: sentence vectors are one-hot, and each sentence is followed by the next one it knows."""

    class Config:
        width = 8

    languages = ("eng_Latn", "fra_Latn")

    def __init__(self, follows: dict[str, str]) -> None:
        self.follows = follows
        self.words = list(dict.fromkeys([*follows, *follows.values(), END_OF_SEQUENCE]))
        self.sonar = self
        self.tokenizer = self
        self.calls: list[int] = []

    def encode(self, texts: list[str], lang: object = "eng_Latn") -> Tensor:
        return torch.eye(len(self.words))[[self.words.index(t) for t in texts]]

    def search(self, z: Tensor, lang: object, config: object, seed: int | None = None) -> list[list[object]]:
        from sonarkit.codec.search import Hypothesis

        self.calls.append(len(z))
        return [[Hypothesis((int(row.argmax()),), (0.0,), 0.0, True)] for row in z]

    def decode(self, ids: tuple[int, ...]) -> str:
        return self.words[ids[0]]

    def pieces(self, text: str) -> list[int]:
        return [self.words.index(text)]

    def start(self, rows: int, positions: int) -> Memory.Rows:
        return Memory.Rows()

    class Rows:
        def select(self, rows: Tensor) -> Memory.Rows:
            return self

    def advance(self, embeddings_BSD: Tensor, context: object, new_B: Tensor) -> Tensor:
        last = embeddings_BSD[torch.arange(len(new_B)), new_B - 1]
        return self.encode([self.follows[self.words[int(row.argmax())]] for row in last])


def test_a_story_ends_with_the_end_sentence_which_is_not_told() -> None:
    model = Memory({"Ants ran.": "Bees hummed.", "Bees hummed.": "Cats slept.", "Cats slept.": END_OF_SEQUENCE})
    story = generate(model, "Ants ran.")  # type: ignore[arg-type]
    assert (story.sentences, story.stopped_by, story.prompt_sentences) == (["Ants ran.", "Bees hummed.", "Cats slept."], "end", 1)
    assert story.text == "Ants ran. Bees hummed. Cats slept." and story.continuation == ["Bees hummed.", "Cats slept."]
    assert torch.equal(story.embeddings, model.encode(story.sentences))
    assert story.steps[-1].end_cosine == pytest.approx(1) and story.steps[-1].sentence == END_OF_SEQUENCE


def test_a_loop_is_stopped_and_not_told_twice() -> None:
    model = Memory({"Ants ran.": "Bees hummed.", "Bees hummed.": "Ants ran."})
    story = generate(model, "Ants ran.")  # type: ignore[arg-type]
    assert (story.sentences, story.stopped_by) == (["Ants ran.", "Bees hummed."], "loop")
    on = generate(model, "Ants ran.", stop_on_loop=False, max_sentences=5)  # type: ignore[arg-type]
    assert (on.sentences, on.stopped_by) == (
        ["Ants ran.", "Bees hummed.", "Ants ran.", "Bees hummed.", "Ants ran."],
        "max_sentences",
    )


def test_a_batch_tells_what_each_prompt_tells_alone_and_shrinks() -> None:
    model = Memory(
        {
            "Ants ran.": "Bees hummed.",
            "Bees hummed.": "Cats slept.",
            "Cats slept.": END_OF_SEQUENCE,
            "Foxes sang.": END_OF_SEQUENCE,
            "Yaks yawned.": "Foxes sang.",
        }
    )
    prompts = ["Ants ran.", "Foxes sang.", "Ants ran. Bees hummed.", "Yaks yawned."]
    together = generate(model, prompts)  # type: ignore[arg-type]
    assert model.calls == [4, 3, 1]
    assert [s.sentences for s in together] == [generate(model, p).sentences for p in prompts]  # type: ignore[arg-type]


def test_random_weights_tell_the_same_story_in_a_batch_and_alone(model: SonarLLM) -> None:
    prompts = ["The fox ran home. Mia slept.", "Tom found a map."]
    options = {"max_sentences": 5, "beam_size": 2, "max_tokens": 8}
    together = model.generate(prompts, **options)
    for prompt, story in zip(prompts, together):
        alone = model.generate(prompt, **options)
        assert (alone.sentences, alone.stopped_by) == (story.sentences, story.stopped_by)
        assert len(story.sentences) == len(story.embeddings) <= 5


def test_seeded_sampling_repeats_itself(model: SonarLLM) -> None:
    options = {"max_sentences": 4, "sample": True, "noise": 0.5, "max_tokens": 8}
    one, two, other = (model.generate("The fox ran home.", seed=seed, **options).text for seed in (1, 1, 2))
    assert one == two != other


def test_a_long_prompt_keeps_its_end_with_a_warning_and_an_empty_one_is_refused(model: SonarLLM) -> None:
    assert model.generate([]) == []
    with pytest.warns(rollout.PromptWarning, match="3334 sentences.*last 7"):
        story = model.generate("One two three. " * 3334, max_sentences=8, beam_size=1, max_tokens=4)
    assert story.prompt_sentences == 3334
    for empty in ("", "   \n"):
        with pytest.raises(ValueError, match="no sentence"):
            model.generate(empty)


def test_steps_come_one_by_one(model: SonarLLM) -> None:
    steps = tell(model, [["The fox ran home."]])
    first = next(steps)
    assert first.story == 0 and first.predicted_D.shape == (32,) and -1 <= first.end_cosine <= 1


class Bilingual(Memory):
    """Says every sentence in French with "(fr)" behind it."""

    def encode(self, texts: list[str], lang: object = "eng_Latn") -> Tensor:
        return super().encode([text.removesuffix(" (fr)") for text in texts])

    def search(self, z: Tensor, lang: object, config: object, seed: int | None = None) -> list[list[object]]:
        codes = [lang] * len(z) if isinstance(lang, str) else lang
        found = super().search(z, lang, config, seed)
        return [[replace(h[0], ids=(*h[0].ids, code == "fra_Latn"))] for h, code in zip(found, codes)]  # type: ignore

    def decode(self, ids: tuple[int, ...]) -> str:
        return super().decode(ids) + (" (fr)" if ids[1] else "")


def test_the_end_is_understood_in_every_language() -> None:
    """Even where the decoder has words of its own for it, and the prediction lies nowhere near the end vector."""
    model = Bilingual({"Ants ran.": "Bees hummed.", "Bees hummed.": END_OF_SEQUENCE})
    for lang, said in {"eng_Latn": END_OF_SEQUENCE, "fra_Latn": f"{END_OF_SEQUENCE} (fr)"}.items():
        story = generate(model, "Ants ran.", lang, end_threshold=1.0)  # type: ignore[arg-type]
        assert (story.stopped_by, story.steps[-1].sentence, len(story.continuation)) == ("end", said, 1)
    (end,) = candidates(model, ["Bees hummed."], output_lang="fra_Latn", count=1)  # type: ignore[arg-type]
    (other,) = candidates(model, ["Ants ran."], output_lang="fra_Latn", count=1)  # type: ignore[arg-type]
    assert end.ends and not other.ends


SO_FAR = ["The fox ran home.", "Mia slept."]


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("search", [SearchConfig(2, 8), SearchConfig(max_tokens=8, sample=True)], ids=["beam", "sampling"])
def test_the_first_candidate_is_what_would_be_told_and_the_others_differ(
    model: SonarLLM, search: SearchConfig, noise: float
) -> None:
    config = RolloutConfig(noise=noise, search=search)
    found = candidates(model, SO_FAR, config=config, count=4, seed=3, spread=2.0)
    told = next(tell(model, [SO_FAR], config=config, seed=3))
    assert (found[0].sentence, found[0].log_prob) == (told.sentence, pytest.approx(told.log_prob, abs=1e-4))
    torch.testing.assert_close(found[0].predicted_D, told.predicted_D, rtol=0, atol=1e-5)
    assert 2 <= len(found) <= 4 and len({c.sentence for c in found}) == len(found)
    again = candidates(model, SO_FAR, config=config, count=4, seed=3, spread=2.0)
    assert [c.sentence for c in again] == [c.sentence for c in found]
    for candidate in found:
        torch.testing.assert_close(candidate.reencoded_D, model.sonar.encode([candidate.sentence])[0], rtol=0, atol=1e-5)


def test_candidates_are_decoded_in_one_batch_and_fewer_when_no_more_differ() -> None:
    memory = Memory({"Ants ran.": "Bees hummed."})
    assert [c.sentence for c in candidates(memory, ["Ants ran."], count=5, spread=0.0)] == ["Bees hummed."]  # type: ignore[arg-type]
    assert memory.calls == [9]
    with pytest.raises(ValueError, match="count must be at least 1"):
        candidates(memory, ["Ants ran."], count=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one to continue"):
        candidates(memory, [])  # type: ignore[arg-type]


def test_a_story_so_far_may_mix_languages(model: SonarLLM) -> None:
    mixed = ["eng_Latn", "fra_Latn"]
    expected = model.predict_next(model.sonar.encode(SO_FAR, mixed)[None])[0]
    for found in (candidates(model, SO_FAR, mixed, count=1)[0], next(tell(model, [SO_FAR], [mixed]))):
        torch.testing.assert_close(found.predicted_D, expected, rtol=0, atol=1e-5)
        assert torch.equal(found.reencoded_D, model.sonar.encode([found.sentence], "fra_Latn")[0])
    with pytest.raises(ValueError, match="3 codes for 2 texts"):
        candidates(model, SO_FAR, [*mixed, "deu_Latn"])
