"""The embedding store: what is written is read, by one rank or two, whole or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.core import checkpoint
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.models.rollout import END_OF_SEQUENCE
from sonarkit.store import build as building
from sonarkit.store.batches import DocumentBatches
from sonarkit.store.reader import Document, Store

ALONE = World(0, 1, 0, torch.device("cpu"))
TEXTS = [
    "The fox ran home. Mia slept.",
    "Tom found a map.",
    "The fox ran home. They laughed! Why?",
    "Night fell.",
    "He sang. She sang.",
]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, ""]))
    return str(path)


def make(corpus: str, folder: Path, sonar: Sonar, world: World = ALONE) -> Store:
    encode_into(corpus, folder, sonar, world, documents_per_shard=2)
    return Store(folder)


def test_what_was_encoded_is_read_back(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    store = make(corpus, tmp_path / "store", sonar)
    assert len(store) == 5 and store.manifest["dropped"] == {"empty": 1}
    assert [shard["documents"] for shard in store.manifest["shards"]] == [2, 2, 1]
    third = store[2]
    assert third.texts == ["The fox ran home.", "They laughed!", "Why?"] and third.source == "stories.jsonl:3"
    np.testing.assert_array_equal(third.vectors_SD, sonar.encode(third.texts).numpy().astype(np.float16))
    assert third.tokens == sonar.tokenizer.pieces_batch(third.texts)
    assert not third.vectors_SD.flags.owndata  # a view of the memory-mapped file


def test_a_training_document_ends_with_the_end_sentence(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    store = make(corpus, tmp_path / "store", sonar)
    tokenizer = sonar.tokenizer
    document = store.document(2, tokenizer.language_id("eng_Latn"), tokenizer.eos_id, max_sentences=2)
    texts = ["The fox ran home.", "They laughed!", END_OF_SEQUENCE]
    assert document.targets == sonar.target_ids(texts, "eng_Latn")
    torch.testing.assert_close(document.vectors_SD, sonar.encode(texts), rtol=0, atol=2e-3)  # float16
    assert document.bytes == [len(text) for text in texts]


def test_a_rank_that_died_leaves_what_it_finished_and_the_next_run_does_the_rest(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(corpus, tmp_path / "whole", sonar)
    folder, written = tmp_path / "store", []
    original = building._write_shard

    def dies_at_the_second(*arguments: object) -> dict:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(arguments[1])
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_write_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        encode_into(corpus, folder, sonar, ALONE, documents_per_shard=2)
    with pytest.raises(FileNotFoundError, match="unfinished store"):
        Store(folder)
    (folder / "shard-00001.arrow").write_bytes(b"half a shard")  # written, but without its note

    def counts(*arguments: object) -> dict:
        written.append(arguments[1])
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_write_shard", counts)
    store = make(corpus, folder, sonar)
    assert written == [0, 1, 2]
    assert store.manifest == whole.manifest
    assert [store[i].texts for i in range(5)] == [whole[i].texts for i in range(5)]


def test_two_ranks_make_the_store_of_one(corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(corpus, tmp_path / "one", sonar)
    monkeypatch.setattr(building, "barrier", lambda world: None)
    (tmp_path / "two").mkdir()
    device = torch.device("cpu")
    with pytest.raises(FileNotFoundError):  # rank 1 finds no manifest: that is rank 0's work
        encode_into(corpus, tmp_path / "two", sonar, World(1, 2, 1, device), documents_per_shard=2)
    assert [p.name for p in sorted((tmp_path / "two").glob("*.arrow"))] == ["shard-00001.arrow"]
    encode_into(corpus, tmp_path / "two", sonar, World(0, 2, 0, device), documents_per_shard=2)
    assert Store(tmp_path / "two").manifest == one.manifest


def test_what_does_not_fit_is_refused(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    make(corpus, folder, sonar)
    with pytest.raises(ValueError, match="made by codec .* mean different things"):
        Store(folder, codec_fingerprint="0123456789ab")
    with pytest.raises(ValueError, match="made otherwise .*documents_per_shard: 2 there, 3 now"):
        encode_into(corpus, folder, sonar, ALONE, documents_per_shard=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        encode_into(corpus, tmp_path / "mine", sonar, ALONE)
    with pytest.raises(FileNotFoundError, match="no embedding store"):
        Store(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no document with a sentence"):
        encode_into(str(tmp_path / "empty.txt"), tmp_path / "none", sonar, ALONE)


def test_damage_is_found_and_named_and_mended_by_encoding_again(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    whole = make(corpus, folder, sonar)
    path = folder / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    del whole
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="shard-00001.arrow is damaged"):
        Store(folder)
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="shard-00001.arrow is damaged .its checksum"):
        Store(folder, verify=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="shard-00001.arrow is missing"):
        Store(folder)
    (folder / "shard-00001.json").unlink()
    assert [make(corpus, folder, sonar)[i].texts for i in (2, 3)] == [
        ["The fox ran home.", "They laughed!", "Why?"],
        ["Night fell."],
    ]


def test_a_full_disk_is_told_and_keeps_what_was_there(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*start again"):
        encode_into(corpus, tmp_path / "store", sonar, ALONE)
    assert list((tmp_path / "store").iterdir()) == []


# ---------------------------------------------------------------------- batches


def batches(rank: int = 0, size: int = 1, count: int = 10, per_step: int = 4) -> DocumentBatches:
    def load(index: int) -> Document:
        return Document(torch.full((2, 1), float(index)), [[1] * (index + 1)] * 2, [1, 1])

    return DocumentBatches(count, load, per_step, micro_tokens=12, seed=3, rank=rank, size=size)


def indices(step: list[list[Document]]) -> list[int]:
    return [int(document.vectors_SD[0, 0]) for micro in step for document in micro]


def take(source: Iterator[list[list[Document]]], steps: int) -> list[list[int]]:
    return [indices(next(source)) for _ in range(steps)]


def test_every_epoch_shows_every_document_once_in_another_order() -> None:
    flat = [i for step in take(batches(), 5) for i in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]


def test_ranks_share_the_step_of_one() -> None:
    for alone, first, second in zip(take(batches(), 6), take(batches(0, 2), 6), take(batches(1, 2), 6)):
        assert sorted(first + second) == sorted(alone)


def test_the_position_restores_the_sequence() -> None:
    source = batches()
    take(source, 3)
    resumed = batches()
    resumed.load_state_dict(source.state_dict())
    assert take(resumed, 4) == take(source, 4)


def test_micro_batches_obey_the_token_budget() -> None:
    for step in (next(batches()) for _ in range(3)):
        for micro in step:
            assert sum(len(t) for d in micro for t in d.targets) <= 12 or len(micro) == 1


def test_more_ranks_than_documents_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="4 documents a step cannot be shared by 5 ranks"):
        batches(0, 5)
