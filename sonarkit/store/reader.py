"""Reading a store: memory-mapped, a document at a time, without copying its vectors."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonarkit.store.build import FORMAT


@dataclass(frozen=True)
class StoredDocument:
    """S sentences: vectors (S, D) float16 (a view of the file), token ids without specials, texts, and the source."""

    vectors_SD: np.ndarray
    tokens: list[list[int]]
    texts: list[str]
    source: str


@dataclass(frozen=True)
class Document:
    """A document as a concept model learns from it: S sentences, the last one "End of sequence."."""

    vectors_SD: Tensor
    targets: list[list[int]]  # of each sentence, `</s> __lang__ pieces </s>`
    bytes: list[int]  # of each sentence's text in UTF-8


class Store:
    """An embedding store opened for reading; `store[i]` is its i-th document.

    Raises FileNotFoundError when the folder or one of its shards is not there, ValueError when it is no
    finished store, when a shard's size or checksum (`verify=True`) is off, or when it was made by another
    codec than the one whose `codec_fingerprint` is given.
    """

    def __init__(self, folder: str | Path, codec_fingerprint: str | None = None, verify: bool = False) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.is_file():
            state = (
                "an unfinished store; run the same encode command again to finish it"
                if (self.folder / "stamp.json").is_file()
                else "no embedding store; make one with sonarkit/encode.py"
            )
            raise FileNotFoundError(f"{self.folder} holds {state}")
        self.manifest: dict[str, Any] = json.loads(path.read_text())
        if self.manifest.get("format") != FORMAT:
            raise ValueError(f"{path} has format {self.manifest.get('format')!r}, expected {FORMAT!r}")
        if codec_fingerprint not in (None, self.manifest["codec_fingerprint"]):
            raise ValueError(
                f"{self.folder} was made by codec {self.manifest['codec']!r} ({self.manifest['codec_fingerprint']}), but the one "
                f"at hand is {codec_fingerprint}: their vectors mean different things. Encode the corpus again with this codec"
            )
        self.width: int = self.manifest["width"]
        self.lang: str = self.manifest["lang"]
        self._starts = np.cumsum([0] + [shard["documents"] for shard in self.manifest["shards"]]).tolist()
        self._shards = [self._open(shard, verify) for shard in self.manifest["shards"]]

    def _open(self, shard: dict[str, Any], verify: bool) -> pa.RecordBatch:
        path = self.folder / shard["file"]
        if not path.is_file():
            raise FileNotFoundError(
                f"shard {path} is missing; delete {path.with_suffix('.json').name} beside it and run the encode command again"
            )
        remedy = f"delete it and {path.with_suffix('.json').name}, then run the same encode command again"
        if verify and hashlib.sha256(path.read_bytes()).hexdigest() != shard["sha256"]:
            raise ValueError(f"shard {path} is damaged (its checksum is off); {remedy}")
        try:
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"shard {path} is damaged ({error}); {remedy}") from error
        if batch.num_rows != shard["documents"]:
            raise ValueError(f"shard {path} has {batch.num_rows} documents, its note says {shard['documents']}; {remedy}")
        return batch

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> StoredDocument:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of a store of {len(self)}")
        shard = bisect_right(self._starts, index) - 1
        batch, row = self._shards[shard], index - self._starts[shard]
        vectors = batch.column("vectors")[row].values  # the document's slice of the shard
        first, count = vectors.offset, len(vectors)
        flat = np.frombuffer(vectors.flatten().buffers()[1], np.float16)
        return StoredDocument(
            flat.reshape(-1, self.width)[first : first + count],
            batch.column("tokens")[row].as_py(),
            batch.column("text")[row].as_py(),
            batch.column("source")[row].as_py(),
        )

    def document(self, index: int, language_id: int, eos_id: int, max_sentences: int = 32, max_tokens: int = 256) -> Document:
        """The i-th document ready for training: `max_sentences` sentences of `max_tokens` pieces at most, then the end."""
        stored, end = self[index], self.manifest["end_of_sequence"]
        vectors = np.concatenate([stored.vectors_SD[:max_sentences], np.array([end["vector"]], np.float16)])
        tokens = [*stored.tokens[:max_sentences], end["tokens"]]
        return Document(
            torch.from_numpy(vectors.astype(np.float32)),
            [[eos_id, language_id, *ids[:max_tokens], eos_id] for ids in tokens],
            [len(text.encode()) for text in (*stored.texts[:max_sentences], end["text"])],
        )
