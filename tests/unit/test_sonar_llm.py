"""SONAR-LLM: its loss against the plain path, its predictions, and stories told with a model that is not random."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig
from sonarkit.models import rollout
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.rollout import END_OF_SEQUENCE, RolloutConfig, candidates, generate, tell
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


def test_the_loss_equals_the_plain_path_in_value_and_gradient(model: SonarLLM) -> None:
    """One document and one sentence at a time, with full logits, in float64."""
    sonar, model = model.sonar.double(), model.double()
    batch = [Document(d.vectors_SD.double(), d.targets, d.bytes) for d in documents(sonar)]
    loss = model.loss(batch)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(loss.total, parameters)

    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for document in batch:
        for i in range(1, len(document.targets)):
            predicted = _predict(model, document.vectors_SD[:i])
            target = torch.tensor(document.targets[i])
            decoder = sonar.decoder
            x = decoder.embedding(target[:-1], torch.arange(len(target) - 1))
            terms = decoder.sentence_terms(predicted[None])
            mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
            for layer, term in zip(decoder.layers, terms):
                q, k, v = layer.attention.qkv(layer.attention_norm(x)).view(len(x), 3, 4, 8).permute(1, 2, 0, 3)
                weights = (q @ k.mT / math.sqrt(8)).masked_fill(mask, -torch.inf).softmax(-1)
                x = x + layer.attention.output((weights @ v).transpose(0, 1).flatten(1)) + term
                x = x + layer.ffn(layer.ffn_norm(x))
            logits = decoder.norm(x) @ decoder.embedding.weight.T
            total = total + F.cross_entropy(logits[1:], target[2:], reduction="sum")
            tokens += len(target) - 2
    assert loss.count == tokens
    torch.testing.assert_close(loss.total, total, rtol=1e-10, atol=0)
    for one, other in zip(ours, torch.autograd.grad(total, parameters)):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    bits, text_bytes = loss.parts["bits_per_byte"]
    assert text_bytes == sum(len(s.encode()) for story in STORIES for s in story[1:])
    assert bits.item() == pytest.approx(total.item() / math.log(2))


def _predict(model: SonarLLM, vectors_SD: Tensor) -> Tensor:
    from sonarkit.core.packing import packing_of

    return model.reverse_proj(model.backbone(model.forward_proj(vectors_SD), packing_of([len(vectors_SD)])))[-1]


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


def test_saved_and_loaded_predicts_the_same_and_another_codec_is_refused(model: SonarLLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, dtype=torch.float32)
    loaded = SonarLLM.from_pretrained(tmp_path, sonar=model.sonar)
    vectors = model.sonar.encode(STORIES[0])[None]
    assert torch.equal(loaded.predict_next(vectors), model.predict_next(vectors))
    with torch.no_grad():
        model.sonar.encoder.norm.bias += 1
    with pytest.raises(ValueError, match="trained on codec 'tiny'"):
        SonarLLM.from_pretrained(tmp_path, sonar=model.sonar)


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
