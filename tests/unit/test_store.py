"""Building a store: what is written is read, by one rank or several, each sentence encoded once, whole or refused."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread, current_thread

import fsspec
import numpy as np
import pytest
import torch

from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.core import checkpoint
from sonarkit.core.distributed import World
from sonarkit.core.files import as_url, open_folder
from sonarkit.encode import encode_into
from sonarkit.models.rollout import END_OF_SEQUENCE
from sonarkit.store import build as building
from sonarkit.store import progress
from sonarkit.store.reader import Store
from sonarkit.text.corpora import Corpus

CPU = torch.device("cpu")
ALONE = World(0, 1, 0, CPU)
TEXTS = [
    "The fox ran home. Mia slept.",
    "Tom found a map.",
    "The fox ran home. They laughed! Why?",
    "Night fell. Night fell.",
    "He sang. She sang. The fox ran home.",
]


def write_corpus(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    return write_corpus(tmp_path / "stories.jsonl", [*TEXTS, ""])


def make(corpus: str, folder: Path | str, sonar: Sonar, world: World = ALONE) -> Store:
    encode_into(corpus, folder, sonar, world, documents_per_shard=2)
    return Store(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def encoded(sonar: Sonar, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every sentence that goes through the encoder from now on."""
    seen: list[str] = []
    original = sonar.encode

    def encode(texts: list[str], *arguments: object, **options: object) -> torch.Tensor:
        seen.extend(texts)
        return original(texts, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sonar, "encode", encode)
    return seen


def test_what_was_encoded_is_read_back(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    store = make(corpus, tmp_path / "store", sonar)
    assert len(store) == 5 and store.manifest["dropped"] == {"empty": 1}
    assert [shard["documents"] for shard in store.manifest["shards"]] == [2, 2, 1]
    third = store[2]
    assert third.texts == ["The fox ran home.", "They laughed!", "Why?"] and third.source == "stories.jsonl:3"
    for i in range(5):
        np.testing.assert_array_equal(store[i].vectors_SD, sonar.encode(store[i].texts).numpy().astype(np.float16))
        assert store[i].tokens == sonar.tokenizer.pieces_batch(store[i].texts)
    assert not store[0].vectors_SD.flags.owndata  # a view of the memory-mapped file
    assert {path.suffix for path in (tmp_path / "store").iterdir()} == {".arrow", ".json"}  # the plan is gone


def test_a_sentence_is_encoded_and_stored_once(corpus: str, sonar: Sonar, encoded: list[str], tmp_path: Path) -> None:
    store = make(corpus, tmp_path / "store", sonar)
    assert len(encoded) == len(set(encoded)) == 9  # with the last sentence
    assert store.manifest["sentences"] == 11 and store.manifest["distinct"] == 8
    assert [shard["distinct"] for shard in store.manifest["shards"]] == [3, 3, 2]
    np.testing.assert_array_equal(store[4].vectors_SD[2], store[0].vectors_SD[0])  # two shards before


def test_distinct_hashes_are_numbered_as_they_first_occur() -> None:
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 2**64, (40, 1), dtype=np.uint64)
    pool = np.concatenate([np.hstack([halves, halves]), np.hstack([halves, halves + np.uint64(1)])])  # they share 64 bits
    hash_N2 = pool[rng.integers(0, len(pool), 500)]
    numbers: dict[tuple[int, int], int] = {}
    wanted = [numbers.setdefault((int(a), int(b)), len(numbers)) for a, b in hash_N2]
    assert building.number_distinct(hash_N2).tolist() == wanted


@pytest.mark.parametrize(("kept", "readings"), [(1 << 20, 1), (60, 2)])  # the texts have 114 characters
def test_a_corpus_too_large_to_keep_is_read_twice(
    kept: int, readings: int, corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(corpus, tmp_path / "whole", sonar)
    begun: list[int] = []
    original = Corpus.__iter__
    monkeypatch.setattr(Corpus, "__iter__", lambda self: begun.append(1) or original(self))
    monkeypatch.setattr(building, "KEPT", kept)
    make(corpus, tmp_path / "store", sonar)
    assert len(begun) == readings
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


# ---------------------------------------------------------------------- interruptions and ranks


def test_a_rank_that_died_leaves_what_it_finished_and_the_next_run_does_the_rest(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(corpus, tmp_path / "whole", sonar)
    folder, written = tmp_path / "store", []
    original = building._write_shard

    def dies_at_the_second(*arguments: object) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(arguments[1])
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_write_shard", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make(corpus, folder, sonar)
    with pytest.raises(FileNotFoundError, match="unfinished store"):
        Store(folder)
    (folder / "shard-00001.arrow").write_bytes(b"half a shard")  # written, but without its note
    (folder / "shard-00002.arrow.17.tmp").write_bytes(b"half a file")

    def counts(*arguments: object) -> None:
        written.append(arguments[1])
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_write_shard", counts)
    make(corpus, folder, sonar)
    assert written == [0, 1, 2]
    assert contents(folder) == contents(tmp_path / "whole")


def test_a_rank_that_died_while_it_read_goes_on_reading(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(corpus, tmp_path / "whole", sonar)
    original = building.hash_sentences

    def dies_at_the_third(sentences: list[str]) -> bytes:
        if "He sang." in sentences:
            raise KeyboardInterrupt
        return original(sentences)

    monkeypatch.setattr(building, "hash_sentences", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(corpus, tmp_path / "store", sonar)
    assert {path.name for path in (tmp_path / "store").glob("shard*")} == {"shard-00000.hashes", "shard-00001.hashes"}
    monkeypatch.undo()
    make(corpus, tmp_path / "store", sonar)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def by_ranks(ranks: int, corpus: str, folder: Path, sonar: Sonar, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The manifest that each of several ranks, here threads, has when they make a store together."""
    barrier, made = Barrier(ranks, timeout=20), list[dict]()
    monkeypatch.setattr(building, "meet", lambda world: barrier.wait())
    monkeypatch.setattr(building, "agreed", lambda world, value: (barrier.wait(), value)[1])
    monkeypatch.setattr(building, "LOOK", 0.0)

    def work(rank: int) -> None:
        made.append(encode_into(corpus, folder, sonar, World(rank, ranks, rank, CPU), documents_per_shard=2))

    threads = [Thread(target=work, args=(rank,), name=f"rank {rank}") for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


@pytest.mark.parametrize("ranks", [2, 5])  # there are three shards
def test_several_ranks_make_the_store_of_one(
    ranks: int, corpus: str, sonar: Sonar, encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make(corpus, tmp_path / "one", sonar)
    encoded.clear()
    made = by_ranks(ranks, corpus, tmp_path / "many", sonar, monkeypatch)
    assert made == [one.manifest] * ranks
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(encoded) == len(set(encoded)) == 9  # over all ranks


def test_after_a_restart_the_ranks_share_what_is_left(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 was to do shards 0 and 2, and has done neither."""
    make(corpus, tmp_path / "store", sonar)
    whole = contents(tmp_path / "store")
    for name in ("manifest.json", "shard-00000.json", "shard-00002.json"):
        (tmp_path / "store" / name).unlink()
    did: list[tuple[str, int]] = []
    original = building._write_shard

    def watched(place: object, shard: int, *rest: object) -> None:
        did.append((current_thread().name, shard))
        original(place, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_write_shard", watched)
    by_ranks(2, corpus, tmp_path / "store", sonar, monkeypatch)
    assert sorted(did) == [("rank 0", 0), ("rank 1", 2)] and contents(tmp_path / "store") == whole


def test_a_corpus_that_changed_on_the_way_is_refused(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    with monkeypatch.context() as patched:
        patched.setattr(building, "_write_shard", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make(corpus, folder, sonar)  # the plan is there
    for changed in ([*TEXTS[:4], "He danced."], TEXTS[:2], [*TEXTS, *TEXTS]):
        write_corpus(Path(corpus), changed)
        with pytest.raises(ValueError, match="not what it was when .*store was begun; bring it back"):
            make(corpus, folder, sonar)
    write_corpus(Path(corpus), TEXTS)
    make(corpus, folder, sonar)
    before = contents(folder)
    for changed in (["Another first story.", *TEXTS[1:]], TEXTS[:2]):
        (folder / "shard-00002.json").unlink()
        write_corpus(Path(corpus), changed)
        with pytest.raises(ValueError, match="not what it was"):
            make(corpus, folder, sonar)
        write_corpus(Path(corpus), TEXTS)
        make(corpus, folder, sonar)
        assert contents(folder) == before


# ---------------------------------------------------------------------- bad input


def test_documents_and_shards_without_sentences_are_counted(
    sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = lambda text, lang: [part for part in text.split(". ") if part != "..."]  # noqa: E731
    monkeypatch.setattr("sonarkit.encode.split_sentences", split)
    corpus = write_corpus(tmp_path / "stories.jsonl", ["...", "A fox. A bear", "...", "...", "A bear", "A fox"])
    store = make(corpus, tmp_path / "store", sonar)
    assert [store[i].texts for i in range(len(store))] == [["A fox", "A bear"], ["A bear"], ["A fox"]]
    assert store.manifest["dropped"] == {"no sentence": 3}
    assert [shard["file"] for shard in store.manifest["shards"]] == ["shard-00000.arrow", "shard-00002.arrow"]
    assert [shard["distinct"] for shard in store.manifest["shards"]] == [2, 0]  # a shard without a vector of its own
    np.testing.assert_array_equal(np.concatenate([store[2].vectors_SD, store[1].vectors_SD]), store[0].vectors_SD)
    assert store.document(1, 7, 2).vectors_SD.shape == (2, 32)


def test_what_does_not_fit_is_refused(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    make(corpus, folder, sonar)
    with pytest.raises(ValueError, match="made by codec .* mean different things"):
        Store(folder, codec_fingerprint="0123456789ab")
    with pytest.raises(ValueError, match="made otherwise .*documents_per_shard: 2 there, 3 now"):
        encode_into(corpus, folder, sonar, ALONE, documents_per_shard=3)
    narrow = codec_config(sonar.languages, sonar.tokenizer.size, 16, 1, 1, 4, 32, 0.0)
    with pytest.raises(ValueError, match="made otherwise .*codec_fingerprint: .*width: 32 there, 16 now"):
        make(corpus, folder, Sonar(narrow, sonar.tokenizer).eval())
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
    make(corpus, folder, sonar)
    before = contents(folder)
    path = folder / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="shard-00001.arrow is damaged"):
        Store(folder)
    path.write_bytes(b"")
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
    make(corpus, folder, sonar)
    assert contents(folder) == before


def test_a_finished_store_is_left_as_it_is(corpus: str, sonar: Sonar, encoded: list[str], tmp_path: Path) -> None:
    manifest = make(corpus, tmp_path / "store", sonar).manifest
    encoded.clear()
    Path(corpus).unlink()
    Path(corpus).touch()
    assert make(corpus, tmp_path / "store", sonar).manifest == manifest and not encoded


def test_a_full_disk_is_told_and_keeps_what_was_there(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(OSError, match="No space left.*start again"):
        encode_into(corpus, tmp_path / "store", sonar, ALONE)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_shard_that_does_not_fit_on_the_disk_leaves_the_others(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    """A write that breaks off in the middle of a file, by a limit on its size; the first shard is smaller than the second."""
    write_corpus(Path(corpus), [TEXTS[0], TEXTS[1], " ".join(f"He saw star number {i}." for i in range(99)), *TEXTS[3:]])
    make(corpus, tmp_path / "whole", sonar)
    sizes = [(tmp_path / "whole" / f"shard-0000{i}.arrow").stat().st_size for i in range(2)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(sizes) // 2, before[1]))
    try:
        with pytest.raises(OSError, match="shard-00001.arrow .*File too large.*; nothing was written. Free space"):
            make(corpus, tmp_path / "store", sonar)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"stamp.json", "plan.npz", "shard-00000.arrow", "shard-00000.json"}
    make(corpus, tmp_path / "store", sonar)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


# ---------------------------------------------------------------------- URLs


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's memory."""
    files = fsspec.filesystem("memory")
    yield "memory://bucket/store"
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def test_a_store_at_a_url_is_that_of_a_folder(corpus: str, sonar: Sonar, tmp_path: Path, memory: str) -> None:
    encode_into(corpus, memory, sonar, ALONE, documents_per_shard=2)
    make(corpus, tmp_path / "local", sonar)
    files = fsspec.filesystem("memory")
    assert {path.rsplit("/", 1)[-1]: files.cat_file(path) for path in files.ls("/bucket/store", detail=False)} == contents(
        tmp_path / "local"
    )
    files.rm("/bucket/store/shard-00001.json")
    encode_into(corpus, memory, sonar, ALONE, documents_per_shard=2)
    assert files.cat_file("/bucket/store/shard-00001.json") == (tmp_path / "local" / "shard-00001.json").read_bytes()
    encode_into(corpus, f"file://{tmp_path}/with%20space", sonar, ALONE, documents_per_shard=2)
    assert contents(tmp_path / "with space") == contents(tmp_path / "local")


def test_a_url_that_was_a_path_is_one_again() -> None:
    assert as_url("s3://bucket/store") == as_url(Path("s3://bucket/store")) == "s3://bucket/store"
    assert as_url(Path("file:///tmp/store")) == "file:///tmp/store"
    assert as_url("stores/train") is as_url(Path("/stores/train")) is as_url("C:/stores") is None


def test_what_a_url_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nowhere://x is no place that fsspec knows"):
        open_folder("nowhere://x")
    for module in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match="s3://bucket/x needs a package .*pip install fsspec s3fs"):
        open_folder("s3://bucket/x")
    with pytest.raises(ValueError, match="pip install fsspec gcsfs"):
        open_folder("gs://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ValueError, match="memory://x needs a package: pip install fsspec$"):
        open_folder("memory://x")


# ---------------------------------------------------------------------- the console


def test_progress_counts_all_ranks_and_tells_the_remaining_time(
    corpus: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert progress.Progress(ALONE, "encode", "sentences", 480, 100).line(10.0) == "encode: 100 of 480 sentences, 0 sentences/s"
    half = progress.Progress(ALONE, "encode", "sentences", 480, 80)
    half.reached(280)
    assert half.line(10.0) == "encode: 280 of 480 sentences, 20 sentences/s, 00:10 left"
    assert progress.Progress(ALONE, "read", "documents").line(1.0) == "read: 0 documents, 0 documents/s"

    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "LOOK", 0.0)
    original = building._write_shard

    def other_rank_too(place: object, shard: int, *rest: object) -> None:
        """Shard 1 is the other rank's; it finishes it in the meantime."""
        original(place, shard, *rest)  # type: ignore[arg-type]
        if shard == 0:
            (tmp_path / "store" / "shard-00001.json").write_bytes((tmp_path / "whole" / "shard-00001.json").read_bytes())

    make(corpus, tmp_path / "whole", sonar)
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(building, "meet", lambda world: None)
    monkeypatch.setattr(building, "agreed", lambda world, value: value)
    monkeypatch.setattr(building, "_write_shard", other_rank_too)
    hashes = building._hash_shards
    monkeypatch.setattr(
        building, "_hash_shards", lambda *arguments: hashes(*arguments[:-2], ALONE, arguments[-1])
    )  # the other's share, too
    capsys.readouterr()
    encode_into(corpus, tmp_path / "store", sonar, World(0, 2, 0, CPU), documents_per_shard=2)
    told = [line.split(",")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("encode")]
    assert told == ["encode: 6 of 8 sentences", "encode: 8 of 8 sentences", "encode: 8 of 8 sentences"]


def test_the_last_sentence_is_kept_in_the_manifest(corpus: str, sonar: Sonar, tmp_path: Path) -> None:
    end = make(corpus, tmp_path / "store", sonar).manifest["end_of_sequence"]
    assert end["text"] == END_OF_SEQUENCE and [end["tokens"]] == sonar.tokenizer.pieces_batch([END_OF_SEQUENCE])
    assert end["vector"] == sonar.encode([END_OF_SEQUENCE])[0].numpy().astype(np.float16).tolist()
