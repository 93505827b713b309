"""Sentences -> shards of embeddings; each distinct sentence of the corpus is encoded and stored once.

1. Documents are numbered as the corpus gives them; every `documents_per_shard` of them are one shard. Rank r of R works on
   shards r, r + R, ...
2. Plan: each shard's sentences are hashed, 128 bits each, and rank 0 numbers the distinct ones in the order in which they
   first occur, over the whole corpus.
3. Encode: a shard is one Arrow file with the vectors of the sentences that occur in it first; a sentence that occurred before
   has the number of its vector. A shard's note (counts and checksum) is written after it: a shard without its note was
   not finished. Whoever starts again keeps what is finished and does the rest.
4. When all ranks are through, rank 0 writes `manifest.json`, and the store can be opened.

Which sentences are encoded together follows from the corpus alone, so the store does not depend on the number of ranks or on
interruptions: to the last bit where the encoder repeats itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from sonarkit.core.distributed import PATIENCE, Watch, World, agreed
from sonarkit.core.files import Folder, Place, RemoteFolder, open_folder
from sonarkit.core.foreign import parse_json
from sonarkit.core.lock import LOCK, sole_writer
from sonarkit.store.progress import LOOK, Progress, meet
from sonarkit.text.corpora import Corpus
from sonarkit.text.corpora import Document as Text

FORMAT = "sonarkit-store-2"
PLAN = "plan.npz"
BLOCK = 16_384  # sentences that are encoded at once
KEPT = 64 << 20  # characters: a smaller corpus stays in memory between its two readings; StoryWorld takes 1 ms a story to write
HASH_BYTES = 16  # two of 30 million sentences share 128 bits with a probability of 1e-24


@dataclass(frozen=True)
class StoreStamp:
    """What made a store. Two runs with another stamp do not write into one store."""

    corpus: str
    lang: str
    segmenter: str
    codec: str
    codec_fingerprint: str
    width: int
    documents_per_shard: int = 512
    format: str = FORMAT


@dataclass(frozen=True)
class Coder:
    """What the store needs of a codec: `encode` sentences to (n, D) vectors, `pieces` to token ids without specials.

    Its encoder reads the first `max_pieces` pieces of a sentence; the store keeps as many, and counts what was cut.
    """

    encode: Callable[[list[str]], Tensor]
    pieces: Callable[[list[str]], list[list[int]]]
    max_pieces: int | None = None


def build(
    corpus: Corpus,
    folder: Place,
    stamp: StoreStamp,
    coder: Coder,
    split: Callable[[str], list[str]],
    end_text: str,
    world: World,
) -> dict[str, Any]:
    """Encode `corpus` into `folder`, a path or URL (this rank's share of it), and return the manifest.

    The corpus is read twice, a small one once. The plan takes some 50 bytes a sentence on rank 0, and 8 on every rank while it
    encodes. A store that is whole is left as it is. `end_text` is the sentence that ends every document; it is encoded once and
    kept in the manifest. Raises ValueError when another process is writing into `folder` (at a URL that is not seen), when it
    holds a store with another stamp, when the corpus has no document with a sentence, or is another than when the store was
    begun.
    """
    place = open_folder(folder)
    with _sole_writer(place, world), Watch(world, PATIENCE.total_seconds()) as watch:
        return _build(corpus, place, stamp, coder, split, end_text, world, watch)


def _build(
    corpus: Corpus,
    place: Folder,
    stamp: StoreStamp,
    coder: Coder,
    split: Callable[[str], list[str]],
    end_text: str,
    world: World,
    watch: Watch,
) -> dict[str, Any]:
    if world.rank == 0:
        place.make()
        _claim(place, stamp)
    meet(world)
    if (manifest := _whole(place)) is not None:
        _tidy(place, world)  # after the manifest somebody may have been killed
        return manifest
    texts = _Texts(corpus)
    if not place.exists(PLAN):
        shards = _hash_shards(texts, place, stamp.documents_per_shard, split, world, watch)
        meet(world)
        if world.rank == 0:
            _write_plan(place, shards, stamp.corpus)
    meet(world)
    plan = Plan.read(place)
    _encode_shards(texts, place, stamp, coder, split, world, watch, plan)
    if world.rank == 0:
        _write_manifest(place, stamp, coder, end_text, plan, corpus.dropped)
    _tidy(place, world)
    meet(world)
    return read_manifest(place)


def _tidy(place: Folder, world: World) -> None:
    """Rank 0 takes away what a whole store does not need: the plan, and what killed ranks left."""
    if world.rank == 0:
        place.remove(name for name in place.names() if name.endswith((PLAN, ".hashes", ".tmp")))


def _sole_writer(place: Folder, world: World) -> AbstractContextManager[None]:
    """All ranks are one writer, for which rank 0 asks."""
    return sole_writer(place.path) if world.rank == 0 and not isinstance(place, RemoteFolder) else nullcontext()


def read_manifest(place: Folder) -> dict[str, Any]:
    """What `manifest.json` says. FileNotFoundError where there is none, ValueError when it is no JSON object."""
    return _read(place, "manifest.json", place.read("manifest.json"))


def _read(
    place: Folder, name: str, data: bytes, remedy: str = "delete it and run the same encode command again"
) -> dict[str, Any]:
    """What a JSON file of a store says; ValueError, with the remedy, when it is damaged."""
    try:
        return dict(parse_json(data))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}/{name} is damaged ({error}); {remedy}") from error


def _read_notes(place: Folder, names: list[str]) -> list[dict[str, Any]]:
    return [_read(place, name, data) for name, data in zip(names, place.read_all(names))]


def _whole(place: Folder) -> dict[str, Any] | None:
    """The manifest of a store that has all its shards."""
    names = place.names()
    if "manifest.json" not in names:
        return None
    manifest = read_manifest(place)
    files = [shard["file"] for shard in manifest["shards"]]
    return manifest if names.issuperset(files) and names.issuperset(file.replace(".arrow", ".json") for file in files) else None


class _Texts:
    """The documents of a corpus, read once if they are few enough to be kept."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._kept, self._whole = corpus, list[Text](), False

    def __iter__(self) -> Iterator[Text]:
        if self._whole:
            yield from self._kept
            return
        self._kept, size = [], 0
        for text in self._corpus:
            size += len(text.text)
            if size <= KEPT:
                self._kept.append(text)
            yield text
        self._whole = size <= KEPT
        if not self._whole:
            self._kept = []


def _shards(corpus: Iterable[Text], size: int) -> Iterator[tuple[int, list[Text]]]:
    for shard, numbered in groupby(enumerate(corpus), key=lambda item: item[0] // size):
        yield shard, [text for _, text in numbered]


def _claim(place: Folder, stamp: StoreStamp) -> None:
    """Write the stamp of a new store, or refuse to go on with one made otherwise."""
    wanted = asdict(stamp)
    if place.exists("stamp.json"):
        found = _read(place, "stamp.json", place.read("stamp.json"), "choose another folder, or delete this one")
        differences = [
            f"{key}: {found.get(key)!r} there, {value!r} now" for key, value in wanted.items() if found.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{place} holds a store made otherwise ({'; '.join(differences)}); choose another folder or delete it"
            )
    elif any(name != LOCK and not name.endswith(".tmp") for name in place.names()):  # a writer that was killed may have left one
        raise ValueError(f"{place} is not empty and holds no embedding store; choose an empty folder")
    else:
        place.write("stamp.json", json.dumps(wanted, indent=1).encode())


# ---------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """Which vector each of N sentences in K shards has; vectors are numbered as their sentences first occur."""

    numbers_N: np.ndarray
    sentences_K: np.ndarray  # of each shard
    vectors_K: np.ndarray  # of each shard: sentences that occur in it first
    digests_K: np.ndarray  # of each shard's sentences: the corpus is read twice and must be the same

    @classmethod
    def read(cls, place: Folder) -> Plan:
        """The plan that rank 0 wrote. ValueError when it is damaged."""
        try:
            with np.load(io.BytesIO(place.read(PLAN))) as arrays:
                return cls(arrays["numbers"], arrays["sentences"], arrays["vectors"], arrays["digests"])
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{place}/{PLAN} is damaged ({error}); delete it and run the same encode command again") from error


def _hashes(shard: int) -> str:
    return f"shard-{shard:05d}.hashes"


def hash_sentences(sentences: list[str]) -> bytes:
    """128 bits of each sentence, end to end."""
    return b"".join(hashlib.blake2b(s.encode(), digest_size=HASH_BYTES).digest() for s in sentences)


def _digest(hashes: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(hashes, digest_size=8).digest(), "little")


def _hash_shards(
    corpus: Iterable[Text], place: Folder, size: int, split: Callable[[str], list[str]], world: World, watch: Watch
) -> int:
    """Write the hashes of this rank's shards; the number of shards of all ranks."""
    there, shards, documents = place.names(), 0, 0
    with Progress(world, "read", "documents") as progress:
        for shard, texts in _shards(corpus, size):
            watch.at(f"reading shard {shard}")
            shards, documents = shard + 1, documents + len(texts)
            if shard % world.size == world.rank and _hashes(shard) not in there:
                place.write(_hashes(shard), hash_sentences([sentence for text in texts for sentence in split(text.text)]))
            progress.reached(documents)
    return shards


def _write_plan(place: Folder, shards: int, corpus: str) -> None:
    there, names = place.names(), [_hashes(shard) for shard in range(shards)]
    hashes = place.read_all(names)
    sentences_K = np.array([len(each) // HASH_BYTES for each in hashes], np.int64)
    digests_K = np.array([_digest(each) for each in hashes], np.uint64)
    hash_N2 = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    if not len(hash_N2):
        raise ValueError(f"the corpus {corpus!r} has no document with a sentence; nothing to store")
    del hashes
    finished = {name: shard for shard in range(shards) if (name := _note(shard)) in there}
    notes = _read_notes(place, list(finished))
    known = sum(name.startswith("shard-") and name.endswith(".json") for name in there)
    if len(notes) < known or any(int(note["digest"], 16) != digests_K[shard] for note, shard in zip(notes, finished.values())):
        place.remove(names)
        raise _changed(place)
    numbers_N = number_distinct(hash_N2)
    # a number never seen before is one above all before it
    highest_N1 = np.concatenate([[0], np.maximum.accumulate(numbers_N) + 1])
    ends_K = highest_N1[np.cumsum(sentences_K)]
    sink = io.BytesIO()
    np.savez(sink, numbers=numbers_N, sentences=sentences_K, vectors=np.diff(ends_K, prepend=0), digests=digests_K)
    place.write(PLAN, sink.getvalue())
    place.remove(names)


def number_distinct(hash_N2: np.ndarray) -> np.ndarray:
    """(N, 2) 128-bit hashes -> (N,) the number of each distinct one, 0, 1, ... in the order of their first occurrence.

    A sixteenth of the hashes is sorted at a time, to need little memory beside them.
    """
    first_N = np.empty(len(hash_N2), np.int64)  # where each hash occurred first
    sixteenth_N = (hash_N2[:, 0] >> np.uint64(60)).astype(np.uint8)
    for part in range(16):
        (where,) = np.nonzero(sixteenth_N == part)
        if not len(where):
            continue
        hash_M2 = hash_N2[where]
        order = np.lexsort((hash_M2[:, 1], hash_M2[:, 0]))  # stable: among equals the first occurrence leads
        begins = np.concatenate([[True], (np.diff(hash_M2[order], axis=0) != 0).any(1)])
        leader = np.flatnonzero(begins)[np.cumsum(begins) - 1]
        first_N[where[order]] = where[order[leader]]
    new_N = first_N == np.arange(len(first_N))
    return (np.cumsum(new_N) - 1)[first_N]


# ---------------------------------------------------------------------- the shards


def _note(shard: int) -> str:
    return f"shard-{shard:05d}.json"


def _encode_shards(
    corpus: Iterable[Text],
    place: Folder,
    stamp: StoreStamp,
    coder: Coder,
    split: Callable[[str], list[str]],
    world: World,
    watch: Watch,
    plan: Plan,
) -> None:
    """Encode this rank's shards that have no note yet, and wait for the other ranks."""
    there, shards = agreed(world, place.names()), 0
    finished = [shard for shard in range(len(plan.vectors_K)) if _note(shard) in there]
    left = [shard for shard in range(len(plan.vectors_K)) if _note(shard) not in there]
    ahead = {rank: left[rank :: world.size] for rank in range(world.size)}  # also after a restart as many for each
    mine, done = set(ahead[world.rank]), int(plan.vectors_K[finished].sum())

    def count() -> int:
        """Sentences that all ranks have encoded, as their notes tell; each rank does its shards in order."""
        nonlocal done
        for todo in ahead.values():
            while todo and place.exists(_note(todo[0])):
                done += int(plan.vectors_K[todo.pop(0)])
        return done

    def others_work() -> bool:
        count()
        return any(ahead.values())

    with Progress(world, "encode", "sentences", int(plan.vectors_K.sum()), done) as progress:
        for shard, texts in _shards(corpus, stamp.documents_per_shard):
            watch.at(f"encoding shard {shard}")
            shards = shard + 1
            if shard in mine:
                _write_shard(place, shard, texts, stamp.width, coder, split, plan, watch)
                progress.look(count)
        if shards != len(plan.vectors_K):
            raise _changed(place)
        while world.size > 1 and others_work():  # for hours, where one rank is slow: a barrier would run out of patience
            watch.at("waiting for the others")
            progress.look(count)
            time.sleep(LOOK)
        meet(world)
        progress.look(count, last=True)


def _changed(place: Folder) -> ValueError:
    return ValueError(
        f"the corpus is not what it was when {place} was begun; bring it back as it was, or encode it into another folder"
    )


def _write_shard(
    place: Folder,
    shard: int,
    texts: list[Text],
    width: int,
    coder: Coder,
    split: Callable[[str], list[str]],
    plan: Plan,
    watch: Watch,
) -> None:
    sentences = [split(text.text) for text in texts]
    kept = [(text, parts) for text, parts in zip(texts, sentences) if parts]
    flat = [sentence for _, parts in kept for sentence in parts]
    digest = _digest(hash_sentences(flat))
    if shard >= len(plan.digests_K) or digest != int(plan.digests_K[shard]):
        raise _changed(place)
    note: dict[str, Any] = {
        "file": "",
        "documents": len(kept),
        "sentences": len(flat),
        "distinct": int(plan.vectors_K[shard]),
        "tokens": 0,
        "bytes": 0,
        "cut": 0,
        "sha256": "",
        "digest": f"{digest:016x}",
        "dropped": {"no sentence": len(texts) - len(kept)} if len(kept) < len(texts) else {},
    }
    if kept:
        begin, known = int(plan.sentences_K[:shard].sum()), int(plan.vectors_K[:shard].sum())
        numbers = plan.numbers_N[begin : begin + len(flat)]
        new = np.flatnonzero(np.diff(np.maximum.accumulate(np.concatenate([[known - 1], numbers]))))  # occur here first
        vectors = np.empty((len(new), width), np.float16)
        for start in range(0, len(new), BLOCK):  # a shard of books is long
            watch.at(f"encoding shard {shard}, sentence {start} of {len(new)}")
            part = slice(start, start + BLOCK)
            vectors[part] = coder.encode([flat[i] for i in new[part]]).cpu().numpy()
        unique = list(dict.fromkeys(flat))
        pieces = dict(zip(unique, coder.pieces(unique)))
        tokens = [pieces[sentence][: coder.max_pieces] for sentence in flat]
        data = arrow_bytes(
            vectors, new, numbers, tokens, flat, [len(parts) for _, parts in kept], [text.source for text, _ in kept]
        )
        file = f"shard-{shard:05d}.arrow"
        place.write(file, data)
        note |= {
            "file": file,
            "tokens": sum(map(len, tokens)),
            "bytes": sum(len(s.encode()) for s in flat),
            "cut": sum(len(short) < len(pieces[s]) for short, s in zip(tokens, flat)),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    place.write(_note(shard), json.dumps(note).encode())


def arrow_bytes(
    vectors_VD: np.ndarray,
    new_V: np.ndarray,
    numbers_N: np.ndarray,
    tokens: list[list[int]],
    texts: list[str],
    counts: list[int],
    sources: list[str],
) -> bytes:
    """One Arrow IPC file, a row per document.

    A row has the vectors of the document's new sentences; of all its sentences the numbers of their vectors, the token ids and
    the texts; and where it came from. `new_V` are the places, among N sentences, of those that `vectors_VD` belong to;
    `counts` the sentences of each document.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    offsets = pa.array(starts, pa.int32())
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors_VD.reshape(-1)), vectors_VD.shape[1])
    table = pa.table(
        {
            "vectors": pa.ListArray.from_arrays(pa.array(np.searchsorted(new_V, starts), pa.int32()), rows),
            "numbers": pa.ListArray.from_arrays(offsets, pa.array(numbers_N, pa.int64())),
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens, pa.list_(pa.int32()))),
            "text": pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string())),
            "source": pa.array(sources, pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)  # one record batch: zero-copy slices of it are documents
    return sink.getvalue().to_pybytes()


def _write_manifest(place: Folder, stamp: StoreStamp, coder: Coder, end_text: str, plan: Plan, dropped: Counter[str]) -> None:
    notes = _read_notes(place, [_note(shard) for shard in range(len(plan.digests_K))])
    if [note["digest"] for note in notes] != [f"{int(digest):016x}" for digest in plan.digests_K]:
        raise _changed(place)
    written = [{key: value for key, value in note.items() if key != "dropped"} for note in notes if note["documents"]]
    end = {
        "text": end_text,
        "tokens": coder.pieces([end_text])[0],
        "vector": coder.encode([end_text])[0].cpu().numpy().astype(np.float16).tolist(),
    }
    manifest = {
        **asdict(stamp),
        "dtype": "float16",
        **{key: sum(note[key] for note in written) for key in ("documents", "sentences", "distinct", "tokens", "bytes", "cut")},
        "dropped": dict(sum((Counter(note["dropped"]) for note in notes), Counter(dropped))),
        "end_of_sequence": end,
        "shards": written,
    }
    place.write("manifest.json", json.dumps(manifest, indent=1).encode())
