"""Reading a store: memory-mapped, a document at a time, without copying what the documents do not share."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonarkit.codec.published import cache_folder
from sonarkit.core.checkpoint import write_atomically
from sonarkit.core.files import Folder, Place, RemoteFolder, open_folder
from sonarkit.store.build import FORMAT, read_manifest
from sonarkit.store.manifest import check_manifest


@dataclass(frozen=True)
class StoredDocument:
    """S sentences: vectors (S, D) float16, token ids without specials, texts, and the source.

    The vectors are a view of the file, unless some sentences occurred in the store before.
    """

    vectors_SD: np.ndarray
    tokens: list[list[int]]
    texts: list[str]
    source: str


@dataclass(frozen=True)
class Document:
    """A document as a concept model learns from it: S sentences, the last one "End of sequence.", and vectors in float32."""

    vectors_SD: Tensor
    targets: list[list[int]]  # of each sentence, `</s> __lang__ pieces </s>`
    bytes: list[int]  # of each sentence's text in UTF-8
    source: str = ""  # such as `stories.jsonl:12`


MAPPED = 16_384  # shards at once; a process of Linux may have 65 530 maps

_COLUMNS = {  # beside the vectors
    "numbers": pa.list_(pa.int64()),
    "tokens": pa.list_(pa.list_(pa.int32())),
    "text": pa.list_(pa.string()),
    "source": pa.string(),
}


@dataclass(frozen=True)
class _Shard:
    """The columns of a shard as arrays, views of the file. N sentences of M documents, V vectors."""

    sentence_starts: np.ndarray  # (M + 1,) where a document's sentences begin
    vectors_VD: np.ndarray
    numbers_N: np.ndarray  # of each sentence's vector, counted over the folder's shards
    token_starts: np.ndarray  # (N + 1,)
    tokens: np.ndarray
    text_starts: np.ndarray  # (N + 1,)
    texts: pa.Buffer
    sources: pa.StringArray

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> _Shard:
        """Raises ValueError (as pa.ArrowInvalid is one) for columns that are not those of a store's shard."""
        batch.validate()  # a length may be negative, a buffer shorter than it
        types = dict(zip(batch.schema.names, batch.schema.types))
        width = getattr(getattr(types.get("vectors"), "value_type", None), "list_size", 1)
        if types != _COLUMNS | {"vectors": pa.list_(pa.list_(pa.float16(), width))}:
            raise ValueError(f"its columns are {types}")
        batch.column("source").validate(full=True)  # the one that Arrow itself will follow
        vectors, numbers, tokens, text = (batch.column(name) for name in ("vectors", "numbers", "tokens", "text"))
        _, text_starts, texts = text.values.buffers()
        found = cls(
            numbers.offsets.to_numpy(),
            vectors.values.values.to_numpy().reshape(-1, vectors.type.value_type.list_size),
            numbers.values.to_numpy(),
            tokens.values.offsets.to_numpy(),
            tokens.values.values.to_numpy(),
            np.frombuffer(text_starts, np.int32, len(text.values) + 1),
            texts,
            batch.column("source"),
        )
        if not len(found.numbers_N) + 1 == len(found.token_starts) == len(found.text_starts):
            raise ValueError("its columns are of different length")
        return found


class Store:
    """An embedding store opened for reading; `store[i]` is its i-th document, of `len(store)`; `width` is D.

    `folder` is a path, a URL that fsspec reads (`s3://`, `gs://`), or several of them: they are read as one, in this order,
    without copying. Shards of a URL are fetched when they are needed first and kept, by their checksum, in `stores/` of
    `$SONARKIT_CACHE`; with `cache=False` they stay in memory.

    Raises FileNotFoundError when a folder or one of its shards is not there; ValueError when it is no finished store, when a
    shard's size or checksum (`verify=True`; always for what is fetched) is off, when it was made by another codec than the
    one whose `codec_fingerprint` is given, or when the stores do not fit each other.
    """

    def __init__(
        self,
        folder: Place | Sequence[Place],
        codec_fingerprint: str | None = None,
        verify: bool = False,
        cache: bool = True,
    ) -> None:
        folders = [folder] if isinstance(folder, str | Path) else list(folder)
        if not folders:
            raise ValueError("expected the folder of a store, or several, got none")
        places = [open_folder(each) for each in folders]
        manifests = [_manifest(place, codec_fingerprint) for place in places]
        for place, manifest in zip(places[1:], manifests[1:]):
            _check_fit(places[0], manifests[0], place, manifest)
        self.folder: Place | list[Place] = folders[0] if len(folders) == 1 else folders
        self.manifest = manifests[0] if len(manifests) == 1 else _joined(manifests)
        self.width: int = self.manifest["width"]
        self.lang: str = self.manifest["lang"]
        self._end = np.array(self.manifest["end_of_sequence"]["vector"], np.float32)
        self._files = [(place, shard) for place, manifest in zip(places, manifests) for shard in manifest["shards"]]
        self._starts: list[int] = np.cumsum([0, *(shard["documents"] for _, shard in self._files)]).tolist()
        self._vector_starts: list[int] = np.cumsum([0, *(shard["distinct"] for _, shard in self._files)]).tolist()
        begins = np.cumsum([0, *(manifest["distinct"] for manifest in manifests)])
        # what a folder's number 0 is in the whole
        self._zeros = [int(begin) for begin, manifest in zip(begins, manifests) for _ in manifest["shards"]]
        self._cache = cache
        self._shards: list[_Shard | None] = [None] * len(self._files)
        self._opened: deque[int] = deque()  # the shards that are mapped
        if verify:
            self.verify()
        for i, (place, _) in enumerate(self._files[:MAPPED]):
            if not isinstance(place, RemoteFolder):  # opening maps; what is remote must come first
                self._shard(i)

    def verify(self, most: float = math.inf) -> bool:
        """Hold every shard against its checksum, several at once; ValueError names one that is damaged.

        At a URL only what is in the cache is read: what is fetched is always checked. Returns False, and reads nothing, when
        there are more than `most` bytes.
        """
        paths = [self._path(place, shard) for place, shard in self._files]
        here = [i for i, path in enumerate(paths) if path.is_file()]
        if sum(paths[i].stat().st_size for i in here) > most:
            return False

        def check(i: int) -> None:
            with open(paths[i], "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != self._files[i][1]["sha256"]:
                    raise ValueError(f"shard {paths[i]} is damaged (its checksum is off); {self._remedy(i)}")

        with ThreadPoolExecutor() as pool:
            deque(pool.map(check, here), 0)
        return True

    def _path(self, place: Folder, shard: dict[str, Any]) -> Path:
        """Where a shard lies on this machine, or would if it came from a URL and was kept."""
        return _cached(shard["sha256"]) if isinstance(place, RemoteFolder) else place.path / shard["file"]

    def _remedy(self, i: int) -> str:
        place, shard = self._files[i]
        if isinstance(place, RemoteFolder) and self._cache and self._path(place, shard).is_file():
            return f"delete {self._path(place, shard)}, to fetch it again"
        return f"delete it and {shard['file'].replace('.arrow', '.json')}, then run the same encode command again"

    def _shard(self, i: int) -> _Shard:
        shard = self._shards[i]
        if shard is None:
            shard = self._shards[i] = self._open(i)
            self._opened.append(i)
            if len(self._opened) > MAPPED:
                self._shards[self._opened.popleft()] = None  # its arrays live as long as somebody has them
        return shard

    def _open(self, i: int) -> _Shard:
        place, shard = self._files[i]
        where, remedy = f"{place}/{shard['file']}", self._remedy(i)
        try:
            data = self._buffer(place, shard)
        except FileNotFoundError as error:
            note = shard["file"].replace(".arrow", ".json")
            raise FileNotFoundError(
                f"shard {where} is missing; delete {note} beside it and run the encode command again"
            ) from error
        if data is None:
            raise ValueError(f"shard {where} is damaged (its checksum is off); {remedy}")
        try:
            batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
            batch.validate()  # that no column reaches beyond the file; reads none of it
            columns = _Shard.of(batch)
        except (pa.ArrowException, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"shard {where} is damaged ({error}); {remedy}") from error
        found = {"documents": batch.num_rows, "sentences": len(columns.numbers_N), "distinct": len(columns.vectors_VD)}
        for what, count in found.items():
            if count != shard[what]:
                raise ValueError(f"shard {where} has {count} {what}, its note says {shard[what]}; {remedy}")
        if columns.vectors_VD.shape[1] != self.width:
            raise ValueError(f"shard {where} has vectors of width {columns.vectors_VD.shape[1]}, expected {self.width}; {remedy}")
        return columns

    def _buffer(self, place: Folder, shard: dict[str, Any]) -> pa.Buffer | None:
        """The bytes of a shard, mapped where they lie in a file; None when those that came from a URL are damaged."""
        path = self._path(place, shard)
        if isinstance(place, RemoteFolder) and not (self._cache and path.is_file()):
            data = place.read(shard["file"])
            if hashlib.sha256(data).hexdigest() != shard["sha256"]:
                return None
            if not self._cache:
                return pa.py_buffer(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: temporary.write_bytes(data))
        return _mapped(path)

    def __len__(self) -> int:
        return self._starts[-1]

    def _find(self, index: int) -> tuple[int, int, int]:
        """The shard of a document, and from where to where its sentences are among the shard's."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a store of {len(self)}")
        shard = bisect_right(self._starts, index) - 1
        row = index - self._starts[shard]
        begin, end = self._shard(shard).sentence_starts[row : row + 2].tolist()
        if not 0 <= begin <= end <= len(self._shard(shard).numbers_N):
            raise self._points_outside(shard)
        return shard, begin, end

    def _points_outside(self, shard: int) -> ValueError:
        place, told = self._files[shard]
        return ValueError(f"shard {place}/{told['file']} is damaged (it points out of itself); open the store with verify=True")

    def _vectors(self, shard: int, begin: int, end: int) -> np.ndarray:
        """(S, D) the vectors of these sentences of a shard: a view of the file if they lie there one after the other."""
        own = self._shard(shard)
        place_S = own.numbers_N[begin:end] + (self._zeros[shard] - self._vector_starts[shard])  # in this shard, else negative
        earliest = self._zeros[shard] - self._vector_starts[shard]
        if len(place_S) and not earliest <= place_S.min() <= place_S.max() < len(own.vectors_VD):
            raise self._points_outside(shard)
        first = int(place_S[0]) if len(place_S) else 0
        if first >= 0 and (place_S == np.arange(first, first + len(place_S))).all():
            return own.vectors_VD[first : first + len(place_S)]
        vectors_SD = own.vectors_VD[place_S] if (place_S >= 0).all() else np.empty((len(place_S), self.width), np.float16)
        if (place_S < 0).any():
            for i, place in enumerate(place_S.tolist()):
                number = place + self._vector_starts[shard]
                where = shard if place >= 0 else bisect_right(self._vector_starts, number) - 1
                vectors_SD[i] = self._shard(where).vectors_VD[number - self._vector_starts[where]]
        return vectors_SD

    def __getitem__(self, index: int) -> StoredDocument:
        shard, begin, end = self._find(index)
        columns = self._shard(shard)
        token_starts = columns.token_starts[begin : end + 1].tolist()
        text_starts = columns.text_starts[begin : end + 1].tolist()
        return StoredDocument(
            self._vectors(shard, begin, end),
            [columns.tokens[a:b].tolist() for a, b in zip(token_starts, token_starts[1:])],
            [bytes(columns.texts[a:b]).decode() for a, b in zip(text_starts, text_starts[1:])],
            columns.sources[index - self._starts[shard]].as_py(),
        )

    def document(self, index: int, language_id: int, eos_id: int, max_sentences: int = 32, max_tokens: int = 256) -> Document:
        """The i-th document ready for training: `max_sentences` sentences of `max_tokens` pieces at most, then the end.

        IndexError where there is none, ValueError for a damaged shard.
        """
        shard, begin, end = self._find(index)
        end = min(end, begin + max_sentences)
        columns, last = self._shard(shard), self.manifest["end_of_sequence"]
        starts = columns.token_starts[begin : end + 1].tolist()
        ids = columns.tokens[starts[0] : starts[-1]].tolist()
        cuts = [(a - starts[0], min(b, a + max_tokens) - starts[0]) for a, b in zip(starts, starts[1:])]
        vectors_SD = np.empty((end - begin + 1, self.width), np.float32)
        vectors_SD[:-1], vectors_SD[-1] = self._vectors(shard, begin, end), self._end
        return Document(
            torch.from_numpy(vectors_SD),
            [[eos_id, language_id, *pieces, eos_id] for pieces in (*(ids[a:b] for a, b in cuts), last["tokens"][:max_tokens])],
            [*np.diff(columns.text_starts[begin : end + 1]).tolist(), len(last["text"].encode())],
            columns.sources[index - self._starts[shard]].as_py(),
        )

    def document_tokens(self, max_sentences: int = 32, max_tokens: int = 256) -> np.ndarray:
        """(documents,) int64 the target tokens of every document, as `document` would cut it; reads no vector."""
        specials = 3  # `</s> __lang__` and `</s>`
        last = min(len(self.manifest["end_of_sequence"]["tokens"]), max_tokens) + specials
        totals = [np.empty(0, np.int64)]
        for i in range(len(self._files)):
            columns = self._shard(i)
            begins = columns.sentence_starts
            length_N = np.minimum(np.diff(columns.token_starts), max_tokens).astype(np.int64) + specials
            place_N = np.arange(len(length_N)) - np.repeat(begins[:-1], np.diff(begins))  # of a sentence in its document
            length_N[place_N >= max_sentences] = 0
            totals.append(np.diff(np.concatenate([[0], np.cumsum(length_N)])[begins]) + last)
        return np.concatenate(totals)


def _manifest(place: Folder, codec_fingerprint: str | None) -> dict[str, Any]:
    """The manifest of the store at `place`, made by this codec; see `Store` for what is raised."""
    if not place.exists("manifest.json"):
        state = (
            "an unfinished store; run the same encode command again to finish it"
            if place.exists("stamp.json")
            else "no embedding store; make one with sonarkit/encode.py"
        )
        raise FileNotFoundError(f"{place} holds {state}")
    manifest = read_manifest(place)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{place} has format {manifest.get('format')!r}, expected {FORMAT!r}; encode the corpus again, into another folder"
        )
    check_manifest(place, manifest)
    if codec_fingerprint not in (None, manifest["codec_fingerprint"]):
        raise ValueError(
            f"{place} was made by codec {manifest['codec']!r} ({manifest['codec_fingerprint']}), but the one "
            f"at hand is {codec_fingerprint}: their vectors mean different things. Encode the corpus again with this codec"
        )
    return manifest


def _check_fit(place: Folder, manifest: dict[str, Any], other_place: Folder, other: dict[str, Any]) -> None:
    """ValueError naming what two stores differ in that must be one for their documents to be read as one store's."""
    pairs = [(key, manifest[key], other[key]) for key in ("codec_fingerprint", "width", "lang")]
    pairs += [
        (f"the last sentence's {key}", manifest["end_of_sequence"][key], other["end_of_sequence"][key])
        for key in ("text", "tokens")
    ]
    if differences := [f"{key}: {one!r} and {two!r}" for key, one, two in pairs if one != two]:
        raise ValueError(
            f"{place} and {other_place} cannot be read as one store ({'; '.join(differences)}); encode one of them again"
        )


def _joined(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    """One manifest for several stores: counts are summed, names are listed."""
    return {
        **manifests[0],
        **{key: sum(each[key] for each in manifests) for key in ("documents", "sentences", "distinct", "tokens", "bytes", "cut")},
        **{key: " + ".join(dict.fromkeys(each[key] for each in manifests)) for key in ("corpus", "segmenter", "codec")},
        "dropped": dict(sum((Counter(each["dropped"]) for each in manifests), Counter())),
        "shards": [shard for each in manifests for shard in each["shards"]],
    }


def _cached(sha256: str) -> Path:
    return cache_folder() / "stores" / f"{sha256}.arrow"


def _mapped(path: Path) -> pa.Buffer:
    """A file mapped into memory, its descriptor closed: thousands of shards may be open where 1 024 files may."""
    size = path.stat().st_size
    return pa.py_buffer(torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy() if size else b"")
