"""Metrics on vectors by hand, and a whole report on models whose quality is known: one that knows, one that copies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.evaluation import concept_metrics
from sonarkit.evaluation.concept_metrics import (
    concept_report,
    contrastive_accuracy,
    l2,
    mutual_information,
    paraphrasing,
    predictions,
    rank_of_truth,
    round_trip,
    vector_information,
)
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.diffusion_lcm import DiffusionLCM, DiffusionLCMConfig, SamplingConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.store.normalizer import Normalizer
from sonarkit.store.reader import Store

STORIES = """The fox ran home. Mia slept. Tom sang a song.

Tom found a map. It was old. He gave it to a friend. They laughed.

Night fell.

A bear came. Mia saw it and ran. The bear ate an apple.
"""
ROW = torch.tensor([[0.0, 1], [1, 1], [2, 1], [3, 1], [4, 1], [5, 1]])  # two documents of three sentences, in a row
WHOSE = torch.tensor([0, 0, 0, 1, 1, 1])


def test_l2() -> None:
    assert l2(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[0.0, 0], [0, 0]])).tolist() == [0, 5]


def test_contrastive_accuracy_by_hand() -> None:
    """The truth is 4; 3 and 5 are its neighbours. At 2.4, distances to 0, 1, 2 are 2.4, 1.4 and 0.4, and 1.6 to the truth."""
    predicted = torch.tensor([[2.4, 1]])
    assert contrastive_accuracy(predicted, ROW, torch.tensor([4]), WHOSE).tolist() == [pytest.approx(1 / 3)]
    assert contrastive_accuracy(ROW[4:5], ROW, torch.tensor([4]), WHOSE).tolist() == [1]


def test_neighbours_are_those_of_one_document() -> None:
    """The truth is 2, the last of its document: 1 is its neighbour, 3 is not and is nearer to 2.9."""
    predicted = torch.tensor([[2.9, 1]])
    assert contrastive_accuracy(predicted, ROW, torch.tensor([2]), WHOSE).tolist() == [pytest.approx(3 / 4)]


def test_the_same_sentence_elsewhere_is_no_rival() -> None:
    pool = torch.cat([ROW, ROW[4:5]])
    whose = torch.cat([WHOSE, torch.tensor([2])])
    predicted = torch.tensor([[2.4, 1]])
    assert contrastive_accuracy(predicted, pool, torch.tensor([4]), whose).tolist() == [pytest.approx(1 / 3)]
    assert rank_of_truth(ROW[4:5], pool, torch.tensor([4])).tolist() == [1]


def test_rank_by_hand() -> None:
    """By cosine: (4, 1) points at 0.245 from the axis; beside the prediction (4, 1) only the truth (5, 1), (3, 1) follow."""
    truth = torch.tensor([4, 5, 3, 0])
    assert rank_of_truth(ROW[4:5].expand(4, 2), ROW, truth).tolist() == [1, 2, 3, 6]


def test_who_says_always_the_same_gains_nothing() -> None:
    pool = torch.eye(6)
    assert rank_of_truth(torch.ones(1, 6), pool, torch.tensor([2])).tolist() == [6]
    assert contrastive_accuracy(torch.zeros(1, 6), pool, torch.tensor([2]), WHOSE).tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_blocks_and_chance(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that know nothing are right in half of the comparisons, and blocks change nothing."""
    draw = torch.Generator().manual_seed(seed)
    pool, predicted = torch.randn(2, 300, 16, generator=draw)
    whose, truth = torch.arange(300) // 10, torch.arange(300)
    whole = contrastive_accuracy(predicted, pool, truth, whose), rank_of_truth(predicted, pool, truth)
    assert abs(float(whole[0].mean()) - 0.5) < 0.07 and abs(float(whole[1].double().mean()) - 150) < 21
    monkeypatch.setattr(concept_metrics, "CHUNK", 7)
    torch.testing.assert_close(contrastive_accuracy(predicted, pool, truth, whose), whole[0])
    assert torch.equal(rank_of_truth(predicted, pool, truth), whole[1])
    plain = [(pool[i] - predicted[i]).norm() for i in range(300)]
    for i in (0, 9, 10, 155, 299):
        others = [j for j in range(300) if abs(i - j) > 1 or (abs(i - j) == 1 and j // 10 != i // 10)]
        share = sum(float((pool[j] - predicted[i]).norm() > plain[i]) for j in others) / len(others)
        assert float(whole[0][i]) == pytest.approx(share)


def test_paraphrasing_by_hand() -> None:
    """Truth 2 and its context 0, 1: the nearest is (1, 1), at a cosine of 3 / sqrt(10). To copy (1, 1) has 1."""
    found = paraphrasing(torch.tensor([[2.0, 2], [2, 1], [1, 1]]), ROW, torch.tensor([2, 2, 3]), WHOSE)
    assert found[:2].tolist() == [pytest.approx(math.sqrt(10) / 3), pytest.approx(1)]
    assert found[2].isnan()  # a first sentence has no context


def test_through_the_codec(sonar: Sonar) -> None:
    texts = ["The fox ran home.", "Mia slept."]
    z = sonar.encode(texts)
    distances, told = round_trip(sonar, z, z, "eng_Latn", beam_size=1, max_tokens=8)
    assert told == sonar.decode(z, "eng_Latn", beam_size=1, max_tokens=8)
    torch.testing.assert_close(distances, l2(sonar.encode(told), z))
    blank = z.mean(0)
    nats, tokens = vector_information(sonar, z, texts, "eng_Latn", blank)
    given, nothing = sonar.token_loss(z, texts), sonar.token_loss(blank.expand(2, -1), texts)
    assert float(nats.sum()) == pytest.approx(float((nothing.total - given.total).detach()), abs=1e-3)
    assert int(tokens.sum()) == given.count
    assert vector_information(sonar, blank.expand(2, -1), texts, "eng_Latn", blank)[0].tolist() == pytest.approx([0, 0], abs=1e-4)


def test_mutual_information_asks_with_and_without_context() -> None:
    asked = []

    def log_prob(before: str, text: str) -> tuple[float, int]:
        """A word costs 2 nats, 1 if it stood before."""
        asked.append((before, text))
        return -float(sum(1 if word in before.split() else 2 for word in text.split())), len(text.split())

    nats, tokens = mutual_information(["a b c", "x", ""], [["z", "a b"], ["x", "y"], ["q"]], log_prob, k=1)
    assert nats.tolist() == [2, 0, 0] and tokens.tolist() == [3, 1, 0]
    assert asked == [("\n", "a b c"), ("a b\n", "a b c"), ("\n", "x"), ("y\n", "x")]
    with pytest.raises(ValueError, match="counts 1 tokens of 'a' alone but 2"):
        mutual_information(["a"], [["b"]], lambda before, _: (0.0, len(before)))


# ---------------------------------------------------------------------- reports


class Oracle:
    """Knows every document: says the vector that follows the one it reads, or that one itself."""

    def __init__(self, sonar: Sonar, store: Store, knows: bool) -> None:
        self.sonar = sonar
        documents = [torch.from_numpy(store[i].vectors_SD.astype("float32")) for i in range(len(store))]
        self.here = torch.cat([d[:-1] for d in documents])
        self.next = torch.cat([d[1:] for d in documents]) if knows else self.here

    def start(self, rows: int, positions: int) -> dict[str, int]:
        return {"rows": rows, "left": positions}

    def advance(self, embeddings_BSD: Tensor, context: Any, new_B: Tensor) -> Tensor:
        context["left"] -= 1
        assert context["left"] >= 0 and embeddings_BSD.shape[:2] == (context["rows"], 1) and new_B.tolist() == [1] * len(new_B)
        return self.next[torch.cdist(embeddings_BSD[:, 0].double(), self.here.double()).argmin(1)]


@pytest.fixture
def store(sonar: Sonar, tmp_path: Path) -> Store:
    (tmp_path / "stories.txt").write_text(STORIES)
    encode_into(str(tmp_path / "stories.txt"), tmp_path / "store", sonar, World(0, 1, 0, torch.device("cpu")))
    return Store(tmp_path / "store")


def test_a_model_that_knows_and_one_that_copies(sonar: Sonar, store: Store) -> None:
    knows, copies = (concept_report(Oracle(sonar, store, k), store, beam_size=1, resamples=50) for k in (True, False))
    assert knows.counts == {"documents": 3, "of_one_sentence": 1, "cut": 0, "predictions": 7, "pool": 10}
    scores = {name: score.value for name, score in knows.scores.items()}
    assert scores["l2"] == 0 and scores["contrastive_accuracy"] == scores["mrr"] == scores["first"] == 1
    assert scores["paraphrasing"] == pytest.approx(1)
    assert scores["vector_information"] == pytest.approx(scores["vector_information_true"])
    assert copies.scores["l2"].value == pytest.approx(copies.scores["l2_of_last"].value) == knows.scores["l2_of_last"].value
    assert copies.scores["contrastive_accuracy"] == copies.scores["contrastive_accuracy_of_last"]
    assert knows.scores["contrastive_accuracy_of_last"] == copies.scores["contrastive_accuracy"] != knows.scores["mrr"]
    assert copies.scores["first"].value == 0 and copies.scores["paraphrasing"].value > 1
    assert len(knows.told) == 7 and knows.scores["l2"].count == 3  # intervals over documents
    read = json.loads(json.dumps(knows.to_dict(), allow_nan=False))
    assert read["scores"]["mrr"]["value"] == 1 and "ours" in read["scores"]["vector_information"]["unit"]
    assert all(name in knows.table() for name in knows.scores) and "1 of one sentence" in knows.table()


def test_a_sonar_llm_is_asked_as_by_predict_next(sonar: Sonar, store: Store) -> None:
    torch.manual_seed(0)
    config = SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint())
    model = SonarLLM(config, sonar).eval()
    distances = []
    for i in (0, 1, 3):
        vectors = torch.from_numpy(store[i].vectors_SD.astype("float32"))
        distances += [float((model.predict_next(vectors[None, :s])[0] - vectors[s]).norm()) for s in range(1, len(vectors))]
    for batch in (1, 64):
        report = concept_report(model, store, batch=batch, decode=False, resamples=10)
        assert report.scores["l2"].value == pytest.approx(sum(distances) / 7, rel=1e-5)
        assert "round_trip_l2" not in report.scores and not report.told


def test_a_diffusion_lcm_draws_by_the_seed_alone(sonar: Sonar, store: Store) -> None:
    """Whatever was drawn before and however documents are cut into batches; each document has noise of its own."""
    torch.manual_seed(0)
    config = DiffusionLCMConfig(BackboneConfig(24, 48, 2, 3, 8), 2, 32, "tiny", sonar.fingerprint())
    model = DiffusionLCM(config, sonar, Normalizer(32)).eval()
    few = {"decode": False, "resamples": 10, "sampling": SamplingConfig(steps=4)}
    first, again, other = (
        concept_report(model, store, batch=batch, seed=seed, **few) for batch, seed in ((64, 0), (1, 0), (64, 9))
    )
    assert first.scores["l2"].value == pytest.approx(again.scores["l2"].value, rel=1e-5)
    assert first.scores["l2"].value != pytest.approx(other.scores["l2"].value, rel=1e-3)
    assert first.scores["l2"].value != pytest.approx(
        concept_report(model, store, **{**few, "sampling": SamplingConfig()}).scores["l2"].value, rel=1e-3
    )
    vectors = torch.from_numpy(store[0].vectors_SD.astype("float32"))
    told = predictions(model, [vectors, vectors], 5, sampling=SamplingConfig(steps=4))
    torch.testing.assert_close(told[1], predictions(model, [vectors], 6, sampling=SamplingConfig(steps=4))[0])
    assert not torch.allclose(told[0], told[1])


def test_long_documents_are_cut_and_counted_and_a_language_model_may_judge(sonar: Sonar, store: Store) -> None:
    report = concept_report(
        Oracle(sonar, store, True), store, max_sentences=3, limit=2, beam_size=1, resamples=10, log_prob=lambda b, t: (len(b), 2)
    )
    assert report.counts == {"documents": 2, "of_one_sentence": 0, "cut": 1, "predictions": 4, "pool": 6}
    before = ["The fox ran home.", "The fox ran home. Mia slept.", "Tom found a map.", "Tom found a map. It was old."]
    spoken = [len(b) for b, told in zip(before, report.told) if told]
    assert report.scores["mutual_information"].value == pytest.approx(sum(spoken) / (2 * len(spoken)))


def test_what_cannot_be_measured_is_refused(sonar: Sonar, store: Store, tmp_path: Path) -> None:
    model = Oracle(sonar, store, True)
    with pytest.raises(ValueError, match="has nothing to be compared with"):
        contrastive_accuracy(ROW[:1], ROW[:2], torch.tensor([0]), WHOSE[:2])
    for bad in (torch.tensor([6]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="rows of the pool, 0 to 5"):
            rank_of_truth(ROW[:1], ROW, bad)
    with pytest.raises(ValueError, match="a truth for each prediction"):
        rank_of_truth(ROW, ROW, torch.tensor([1]))
    with pytest.raises(ValueError, match="one width"):
        rank_of_truth(ROW[:, :1], ROW, torch.arange(6))
    with pytest.raises(ValueError, match="NaN"):
        rank_of_truth(ROW * math.nan, ROW, torch.arange(6))
    with pytest.raises(ValueError, match="NaN"):
        l2(ROW * math.nan, ROW)
    with pytest.raises(ValueError, match="one shape"):
        l2(ROW, ROW[:2])
    with pytest.raises(ValueError, match="needs decode=True"):
        concept_report(model, store, decode=False, log_prob=lambda *_: (0.0, 0))
    with pytest.raises(ValueError, match="limit and max_sentences are at least 2"):
        concept_report(model, store, limit=1)
    (tmp_path / "one.txt").write_text("Night fell.\n\nThe fox ran home. Mia slept.\n")
    encode_into(str(tmp_path / "one.txt"), tmp_path / "one", sonar, World(0, 1, 0, torch.device("cpu")))
    with pytest.raises(ValueError, match="at least two documents of two sentences or more, the store has 1"):
        concept_report(model, Store(tmp_path / "one"))
    store.manifest["codec_fingerprint"] = "0" * 12
    with pytest.raises(ValueError, match="mean different things"):
        concept_report(model, store)
