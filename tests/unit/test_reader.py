"""Reading stores: for training, several as one, from a URL, and larger than memory."""

from __future__ import annotations

import hashlib
import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.models.rollout import END_OF_SEQUENCE
from sonarkit.store import reader
from sonarkit.store.build import Coder, StoreStamp, build
from sonarkit.store.reader import Store
from sonarkit.text.corpora import Corpus

ALONE = World(0, 1, 0, torch.device("cpu"))
TEXTS = ["The fox ran home. Mia slept.", "Tom found a map. The fox ran home. Why?", "Mia slept. Night fell.", "He sang."]
END = "the end of it"


def vectors_of(texts: list[str], width: int) -> torch.Tensor:
    """A vector that tells its sentence from others."""
    seeds = [int.from_bytes(hashlib.md5(text.encode()).digest()[:4], "little") for text in texts]
    return torch.tensor(np.array([np.random.default_rng(seed).standard_normal(width) for seed in seeds]), dtype=torch.float32)


def make(folder: Path | str, documents: list[list[str]], width: int = 8, per_shard: int = 2, **stamp: str) -> Store:
    """A store of these sentences by a codec that is none: a token is a letter's code, 12 of a sentence are read."""
    corpus = Corpus("mine", lambda: ((" | ".join(sentences), f"mine:{i}") for i, sentences in enumerate(documents)))
    told = {"corpus": "mine", "lang": "eng_Latn", "segmenter": "bars", "codec": "none", "codec_fingerprint": "0" * 12, **stamp}
    coder = Coder(lambda texts: vectors_of(texts, width), lambda texts: [list(text.encode()) for text in texts], 12)
    build(
        corpus,
        folder,
        StoreStamp(**told, width=width, documents_per_shard=per_shard),
        coder,
        lambda t: t.split(" | "),
        END,
        ALONE,
    )
    return Store(folder)


def documents(seed: int, count: int, different: int) -> list[list[str]]:
    """Documents of 1 to 9 sentences, some of which occur again and again."""
    rng = np.random.default_rng(seed)
    pool = [f"{'very ' * int(rng.integers(0, 4))}{i}" for i in range(different)]
    return [[pool[i] for i in rng.integers(0, different, rng.integers(1, 10))] for _ in range(count)]


def assert_holds(store: Store, told: list[list[str]], width: int = 8) -> None:
    assert len(store) == len(told)
    for i, sentences in enumerate(told):
        stored = store[i]
        assert stored.texts == sentences and stored.tokens == [list(text.encode())[:12] for text in sentences]
        np.testing.assert_array_equal(stored.vectors_SD, vectors_of(sentences, width).numpy().astype(np.float16))


# ---------------------------------------------------------------------- documents


def test_a_training_document_ends_with_the_end_sentence(sonar: Sonar, tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("\n\n".join(TEXTS))
    encode_into(str(tmp_path / "stories.txt"), tmp_path / "store", sonar, ALONE, documents_per_shard=1)
    store, tokenizer = Store(tmp_path / "store"), sonar.tokenizer
    document = store.document(1, tokenizer.language_id("eng_Latn"), tokenizer.eos_id, max_sentences=2)
    texts = ["Tom found a map.", "The fox ran home.", END_OF_SEQUENCE]
    assert document.targets == sonar.target_ids(texts, "eng_Latn")
    torch.testing.assert_close(document.vectors_SD, sonar.encode(texts), rtol=0, atol=2e-3)  # float16
    assert document.bytes == [len(text) for text in texts] and document.source == "stories.txt:3"
    assert document.vectors_SD.dtype == torch.float32


def test_every_vector_is_found_whichever_shard_has_it(tmp_path: Path) -> None:
    told = documents(0, 40, 60)
    store = make(tmp_path / "store", told)
    assert_holds(store, told)
    assert store.manifest["distinct"] == len({text for sentences in told for text in sentences})


@pytest.mark.parametrize(("max_sentences", "max_tokens"), [(32, 256), (3, 256), (32, 4), (2, 7), (1, 1)])
def test_document_tokens_are_those_of_the_documents(max_sentences: int, max_tokens: int, tmp_path: Path) -> None:
    store = make(tmp_path / "store", documents(1, 33, 50), per_shard=4)
    tokens = store.document_tokens(max_sentences, max_tokens)
    assert tokens.dtype == np.int64
    loaded = [store.document(i, 7, 2, max_sentences, max_tokens) for i in range(len(store))]
    assert tokens.tolist() == [sum(map(len, document.targets)) for document in loaded]


def test_documents_that_are_not_there_are_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "store", documents(2, 3, 9))
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"document {index} of a store of 3"):
            store.document(index, 7, 2)


# ---------------------------------------------------------------------- several stores as one


def test_several_stores_are_read_as_one(tmp_path: Path) -> None:
    told = [documents(3, 11, 30), documents(4, 6, 30), documents(5, 9, 30)]
    parts = [make(tmp_path / name, part, corpus=name) for name, part in zip("abc", told)]
    joined = Store([tmp_path / name for name in "abc"], "0" * 12, verify=True)
    assert_holds(joined, sum(told, []))
    assert joined.document_tokens(4, 9).tolist() == sum((part.document_tokens(4, 9).tolist() for part in parts), [])
    for what in ("documents", "sentences", "distinct", "tokens", "bytes"):
        assert joined.manifest[what] == sum(part.manifest[what] for part in parts)
    assert joined.manifest["corpus"] == "a + b + c" and joined.manifest["segmenter"] == "bars"
    assert len(Store(joined.folder)) == 26
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing was copied


def test_stores_that_do_not_fit_are_not_read_as_one(tmp_path: Path) -> None:
    told = documents(6, 2, 5)
    make(tmp_path / "store", told)
    make(tmp_path / "french", told, lang="fra_Latn")
    make(tmp_path / "other", told, width=4, codec_fingerprint="f" * 12)
    with pytest.raises(ValueError, match="store and .*french cannot be read as one store .lang: 'eng_Latn' and 'fra_Latn'"):
        Store([tmp_path / "store", tmp_path / "french"])
    with pytest.raises(ValueError, match="codec_fingerprint: '0{12}' and 'f{12}'; width: 8 and 4"):
        Store([tmp_path / "store", tmp_path / "other"])
    manifest = json.loads((tmp_path / "french" / "manifest.json").read_text())
    manifest |= {"lang": "eng_Latn", "end_of_sequence": {**manifest["end_of_sequence"], "text": "Fin."}}
    (tmp_path / "french" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="the last sentence's text: 'the end of it' and 'Fin.'"):
        Store([tmp_path / "store", tmp_path / "french"])
    with pytest.raises(ValueError, match="got none"):
        Store([])


def test_a_manifest_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    make(tmp_path, documents(7, 2, 5))
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"format": "sonarkit-store-1"}))
    with pytest.raises(ValueError, match="format 'sonarkit-store-1', expected 'sonarkit-store-2'; encode the corpus again"):
        Store(tmp_path)
    wider = {"width": 16, "end_of_sequence": {**manifest["end_of_sequence"], "vector": [0.5] * 16}}
    path.write_text(json.dumps(manifest | wider))
    with pytest.raises(ValueError, match="shard-00000.arrow has vectors of width 8, expected 16"):
        Store(tmp_path)
    manifest["shards"][0]["sentences"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"shard-00000.arrow has \d+ sentences, its note says"):
        Store(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        Store(tmp_path)


# ---------------------------------------------------------------------- URLs


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder in fsspec's memory, and a cache of our own."""
    monkeypatch.setenv("SONARKIT_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield "memory://reader/store"
    if files.exists("/reader"):
        files.rm("/reader", recursive=True)


def test_shards_at_a_url_come_once_and_when_they_are_needed(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [[f"sentence {i}", f"sentence {i} goes on"] for i in range(6)]
    make(remote, told)
    read: list[str] = []
    original = reader.RemoteFolder.read
    monkeypatch.setattr(reader.RemoteFolder, "read", lambda self, name: read.append(name) or original(self, name))
    store = Store(remote)
    assert store[3].texts == told[3] and read == ["manifest.json", "shard-00001.arrow"]
    assert_holds(store, told)
    assert_holds(Store(remote), told)
    assert sorted(read) == ["manifest.json"] * 2 + [f"shard-0000{i}.arrow" for i in range(3)]
    kept = sorted(path.name for path in (tmp_path / "cache" / "stores").iterdir())
    assert kept == sorted(shard["sha256"] + ".arrow" for shard in store.manifest["shards"])
    assert not store[3].vectors_SD.flags.owndata  # mapped from the cache


def test_a_url_may_be_read_without_a_cache(remote: str, tmp_path: Path) -> None:
    told = documents(8, 12, 20)
    make(remote, told)
    make(tmp_path / "local", told)
    assert_holds(Store(remote, cache=False), told)
    assert not (tmp_path / "cache").exists()
    assert_holds(Store([tmp_path / "local", remote, remote], cache=False), told * 3)


def test_what_is_amiss_at_a_url_is_told(remote: str) -> None:
    with pytest.raises(FileNotFoundError, match="memory://reader/store holds no embedding store"):
        Store(remote)
    make(remote, documents(9, 3, 9))
    files = fsspec.filesystem("memory")
    whole = files.cat_file("/reader/store/shard-00001.arrow")
    for broken in (whole[: len(whole) // 2], whole[:-9] + b"?" + whole[-8:]):
        files.pipe_file("/reader/store/shard-00001.arrow", broken)
        with pytest.raises(ValueError, match="memory://reader/store/shard-00001.arrow is damaged .its checksum"):
            Store(remote)[2]
    files.rm("/reader/store/shard-00001.arrow")
    with pytest.raises(FileNotFoundError, match="shard memory://reader/store/shard-00001.arrow is missing; delete"):
        Store(remote)[2]
    files.rm("/reader/store/manifest.json")
    with pytest.raises(FileNotFoundError, match="an unfinished store; run the same encode command again"):
        Store(remote)


# ---------------------------------------------------------------------- size


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    told = [[f"sentence {i}"] for i in range(300)]
    make(tmp_path / "store", told, per_shard=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert_holds(Store(tmp_path / "store"), told)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_more_shards_are_mapped_than_a_process_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [[f"sentence {i} of document {d}" for i in range(3)] for d in range(12)]
    make(tmp_path / "store", told, per_shard=2)
    monkeypatch.setattr("sonarkit.store.reader.MAPPED", 2)
    store = Store(tmp_path / "store")
    early = store[0].vectors_SD
    for i in (11, 3, 0, 7, 5, 11):
        assert store[i].texts == told[i]
        assert sum(shard is not None for shard in store._shards) <= 2
    np.testing.assert_array_equal(early, store[0].vectors_SD)


def own_memory() -> int:
    """Bytes of this process that are no pages of files, which the system may take back at any time."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells a process' own memory")
def test_an_epoch_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """80 MB of shards are walked twice at random, and their lengths read; what stays is less than half a shard."""
    told = [[f"sentence {i} of document {d}" for i in range(5)] for d in range(2000)]
    store = make(tmp_path / "store", told, width=4096, per_shard=100)
    sizes = [path.stat().st_size for path in (tmp_path / "store").glob("*.arrow")]
    order = np.random.default_rng(0).permutation(len(store)).tolist()
    for i in order[:200]:  # what Python and torch take once
        store.document(i, 7, 2)
    before = own_memory()
    store = Store(tmp_path / "store")
    for i in order + order[::-1]:
        store.document(i, 7, 2)
    store.document_tokens()
    assert sum(sizes) > 80e6 and own_memory() - before < 0.5 * max(sizes), (own_memory() - before, max(sizes))


def test_missing_rights_are_not_a_missing_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str, **options: object) -> None:
        raise PermissionError(f"you may not read {path}")

    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    with pytest.raises(PermissionError, match="you may not read"):
        Store("memory://reader/locked")
