"""Sentences -> shards of embeddings.

1. Documents are numbered as the corpus gives them; every `documents_per_shard` of them are one shard.
2. Rank r of R makes shards r, r + R, ...: each is split into sentences, encoded and written as one Arrow file.
3. A shard is written under a temporary name and renamed, its note (counts and checksum) after it: a shard
   without its note was not finished. Whoever starts again keeps what is finished and does the rest.
4. When all ranks are through, rank 0 writes `manifest.json`, and the store can be opened.

The store does not depend on the number of ranks, up to the rounding of the encoder.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor
from tqdm.auto import tqdm

from sonarkit.core.checkpoint import write_atomically
from sonarkit.core.distributed import World, barrier
from sonarkit.text.corpora import Corpus
from sonarkit.text.corpora import Document as Text

FORMAT = "sonarkit-store-1"


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
    folder: Path,
    stamp: StoreStamp,
    coder: Coder,
    split: Callable[[str], list[str]],
    end_text: str,
    world: World,
) -> dict[str, Any]:
    """Encode `corpus` into `folder` (this rank's share of it) and return the manifest.

    `end_text` is the sentence that ends every document; it is encoded once and kept in the manifest. Raises
    ValueError when `folder` holds a store with another stamp, or the corpus has no document with a sentence.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, stamp)
    shards = 0
    bar = tqdm(desc="encode", unit=" sentences", disable=world.rank != 0 or not sys.stderr.isatty())
    for shard, texts in _shards(corpus, stamp.documents_per_shard):
        shards = shard + 1
        if shard % world.size == world.rank and not _note(folder, shard).is_file():
            bar.update(_write_shard(folder, shard, texts, coder, split)["sentences"])
    bar.close()
    barrier(world)
    if world.rank == 0:
        _write_manifest(folder, stamp, coder, end_text, shards, corpus.dropped)
    barrier(world)
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _shards(corpus: Iterable[Text], size: int) -> Iterator[tuple[int, list[Text]]]:
    for shard, numbered in groupby(enumerate(corpus), key=lambda item: item[0] // size):
        yield shard, [text for _, text in numbered]


def _claim(folder: Path, stamp: StoreStamp) -> None:
    """Write the stamp of a new store, or refuse to go on with one made otherwise."""
    path, wanted = folder / "stamp.json", asdict(stamp)
    if path.is_file():
        found = json.loads(path.read_text())
        differences = [
            f"{key}: {found.get(key)!r} there, {value!r} now" for key, value in wanted.items() if found.get(key) != value
        ]
        if differences:
            raise ValueError(
                f"{folder} holds a store made otherwise ({'; '.join(differences)}); choose another folder or delete it"
            )
    elif any(folder.iterdir()) and not list(folder.glob("stamp.json*")):  # another rank may be claiming it
        raise ValueError(f"{folder} is not empty and holds no embedding store; choose an empty folder")
    else:
        _write(path, json.dumps(wanted, indent=1).encode())


def _note(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.json"


def _write_shard(folder: Path, shard: int, texts: list[Text], coder: Coder, split: Callable[[str], list[str]]) -> dict[str, Any]:
    sentences = [split(text.text) for text in texts]
    kept = [(text, parts) for text, parts in zip(texts, sentences) if parts]
    dropped = {"no sentence": len(texts) - len(kept)} if len(kept) < len(texts) else {}
    note: dict[str, Any] = {
        "file": "",
        "documents": len(kept),
        "sentences": 0,
        "tokens": 0,
        "bytes": 0,
        "cut": 0,
        "sha256": "",
        "dropped": dropped,
    }
    if kept:
        flat = [sentence for _, parts in kept for sentence in parts]
        unique = list(dict.fromkeys(flat))  # stories repeat sentences: each is encoded once
        place = {sentence: i for i, sentence in enumerate(unique)}
        vectors = coder.encode(unique).cpu().numpy().astype(np.float16)[[place[s] for s in flat]]
        pieces = coder.pieces(unique)
        whole = [pieces[place[s]] for s in flat]
        tokens = [ids[: coder.max_pieces] for ids in whole]
        data = arrow_bytes(vectors, tokens, flat, [len(parts) for _, parts in kept], [text.source for text, _ in kept])
        file = f"shard-{shard:05d}.arrow"
        _write(folder / file, data)
        note |= {
            "file": file,
            "sentences": len(flat),
            "tokens": sum(map(len, tokens)),
            "bytes": sum(len(s.encode()) for s in flat),
            "cut": sum(len(short) < len(ids) for short, ids in zip(tokens, whole)),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    _write(_note(folder, shard), json.dumps(note).encode())
    return note


def arrow_bytes(
    vectors_TD: np.ndarray, tokens: list[list[int]], texts: list[str], counts: list[int], sources: list[str]
) -> bytes:
    """One Arrow IPC file, a row per document: its vectors, token ids and sentences, and where it came from."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors_TD.reshape(-1)), vectors_TD.shape[1])
    table = pa.table(
        {
            "vectors": pa.ListArray.from_arrays(offsets, rows),
            "tokens": pa.ListArray.from_arrays(offsets, pa.array(tokens, pa.list_(pa.int32()))),
            "text": pa.ListArray.from_arrays(offsets, pa.array(texts, pa.string())),
            "source": pa.array(sources, pa.string()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)  # one record batch: zero-copy slices of it are documents
    return sink.getvalue().to_pybytes()


def _write_manifest(folder: Path, stamp: StoreStamp, coder: Coder, end_text: str, shards: int, dropped: Counter[str]) -> None:
    notes = [json.loads(_note(folder, shard).read_text()) for shard in range(shards)]
    written = [{key: value for key, value in note.items() if key != "dropped"} for note in notes if note["documents"]]
    if not written:
        raise ValueError(f"the corpus {stamp.corpus!r} has no document with a sentence; nothing to store")
    all_dropped = sum((Counter(note["dropped"]) for note in notes), Counter(dropped))
    end = {
        "text": end_text,
        "tokens": coder.pieces([end_text])[0],
        "vector": coder.encode([end_text])[0].cpu().numpy().astype(np.float16).tolist(),
    }
    totals = {key: sum(note[key] for note in written) for key in ("documents", "sentences", "tokens", "bytes", "cut")}
    manifest = {
        "format": FORMAT,
        **asdict(stamp),
        "dtype": "float16",
        **totals,
        "dropped": dict(all_dropped),
        "end_of_sequence": end,
        "shards": written,
    }
    _write(folder / "manifest.json", json.dumps(manifest, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(data))
