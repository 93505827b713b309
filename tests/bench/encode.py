"""What lies between a corpus and its store, and between a store and training, beside the encoder's own time.

    python tests/bench/encode.py                          # storyworld:2000 with mini; a minute on two cores
    python tests/bench/encode.py --corpus stories.jsonl --codec sonar --device cuda --documents-per-shard 4096
    python tests/bench/encode.py --scale 2000000          # the plan and the token counts of so many stories; 3 GB, no encoder

Encoding: the whole of `encode_into` against `Sonar.encode` on the same distinct sentences in the same shards, best of
`--rounds` in turns. Reading: documents ready for training, at random, as NumPy and offsets give them. Scale: the two steps that
see the whole corpus at once, on hashes and lengths drawn at random.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import start
from sonarkit.encode import encode_into
from sonarkit.store.build import arrow_bytes, number_distinct
from sonarkit.store.reader import Store
from sonarkit.text.corpora import open_corpus
from sonarkit.text.sentences import split_sentences

LANG = "eng_Latn"


def main(
    corpus: str = "storyworld:2000",
    codec: str = "mini",
    device: str = "cpu",
    threads: int = 2,
    rounds: int = 3,
    documents_per_shard: int = 512,
    scale: int = 0,
) -> None:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if scale:
            tell(at_scale(Path(folder), scale, documents_per_shard))
        else:
            sonar = Sonar.from_pretrained(codec, device=device)
            tell(encoding(Path(folder) / "store", corpus, sonar, rounds, documents_per_shard))
            tell(reading(Store(Path(folder) / "store"), sonar))


def tell(results: dict[str, Any]) -> None:
    for name, value in results.items():
        print(f"{name:44} {value:,.4g}" if isinstance(value, float) else f"{name:44} {value}", flush=True)


def seconds(what: Callable[[], object]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def encoding(store: Path, corpus: str, sonar: Sonar, rounds: int, per_shard: int) -> dict[str, Any]:
    stories = [split_sentences(story.text, LANG) for story in open_corpus(corpus)]
    seen: set[str] = set()
    shards = []
    for first in range(0, len(stories), per_shard):  # the batches of the store
        new = [s for s in dict.fromkeys(s for story in stories[first : first + per_shard] for s in story) if s not in seen]
        seen.update(new)
        shards.append(new)
    shards = [shard for shard in shards if shard]
    world = start(str(sonar.device))
    sonar.encode(shards[0][:256])  # warm
    bare, whole, at_once = [], [], []
    for _ in range(rounds):
        bare.append(seconds(lambda: [sonar.encode(shard).cpu() for shard in shards]))
        shutil.rmtree(store, ignore_errors=True)
        whole.append(seconds(lambda: encode_into(corpus, store, sonar, world, documents_per_shard=per_shard)))
        at_once.append(seconds(lambda: sonar.encode([s for shard in shards for s in shard]).cpu()))
    sentences, distinct = sum(map(len, stories)), len(seen)
    within = sum(len({s for story in stories[i : i + per_shard] for s in story}) for i in range(0, len(stories), per_shard))
    manifest = json.loads((store / "manifest.json").read_text())
    assert (manifest["sentences"], manifest["distinct"]) == (sentences, distinct)
    return {
        "documents, sentences, distinct": (len(stories), sentences, distinct),
        "repeated sentences, %": 100 * (1 - distinct / sentences),
        f"repeated within {per_shard} documents, %": 100 * (1 - within / sentences),
        "Sonar.encode, distinct sentences/s": distinct / min(bare),
        "encode_into, distinct sentences/s": distinct / min(whole),
        "all around the encoder, % of the whole": 100 * (1 - min(bare) / min(whole)),
        "sorted over the whole corpus, % faster": 100 * (min(bare) / min(at_once) - 1),
    }


def reading(store: Store, sonar: Sonar, loads: int = 5000) -> dict[str, Any]:
    language, end = sonar.tokenizer.language_id(store.lang), sonar.tokenizer.eos_id
    order = np.random.default_rng(0).integers(0, len(store), loads).tolist()
    took = min(seconds(lambda: [store.document(i, language, end) for i in order]) for _ in range(3))
    sentences = sum(len(store.document(i, language, end).targets) for i in order)
    return {
        "Store.document, documents/s": loads / took,
        "Store.document, sentences/s": sentences / took,
        "Store.document, µs": 1e6 * took / loads,
        "document_tokens, documents/s": len(store) / min(seconds(store.document_tokens) for _ in range(3)),
    }


def at_scale(folder: Path, stories: int, per_shard: int, sentences: int = 15, tokens: int = 14) -> dict[str, Any]:
    """A store of so many stories of 15 sentences, its vectors 4 wide: one shard written, linked to as often as it takes."""
    rng, count = np.random.default_rng(0), stories * sentences
    planned, plan_bytes = planning(count)
    n = per_shard * sentences
    ids = [rng.integers(0, 32_000, tokens).tolist() for _ in range(n)]
    data = arrow_bytes(
        np.zeros((n, 4), np.float16), np.arange(n), np.arange(n), ids, ["x" * 60] * n, [sentences] * per_shard, ["x"] * per_shard
    )
    shards = -(-stories // per_shard)
    note = {"documents": per_shard, "sentences": n, "distinct": n, "tokens": n * tokens, "bytes": 60 * n, "cut": 0, "sha256": ""}
    for shard in range(shards):
        path = folder / f"shard-{shard:05d}.arrow"
        path.write_bytes(data) if shard % 64 == 0 else path.hardlink_to(folder / f"shard-{shard - shard % 64:05d}.arrow")
    end = {"text": "x", "tokens": [1], "vector": [0.0] * 4}
    manifest = {"format": "sonarkit-store-2", "codec_fingerprint": "", "lang": LANG, "width": 4, "end_of_sequence": end}
    totals = {key: note[key] * shards for key in ("documents", "sentences", "distinct")}
    listed = [{"file": f"shard-{shard:05d}.arrow", **note} for shard in range(shards)]
    (folder / "manifest.json").write_text(json.dumps({**manifest, **totals, "shards": listed}))
    opened = seconds(lambda: Store(folder))
    store = Store(folder)
    return {
        "sentences planned": count,
        "plan, s": planned,
        "plan, bytes of memory a sentence": plan_bytes / count,
        f"opening {shards} shards, s": opened,
        "document_tokens, s": seconds(store.document_tokens),
        "document_tokens, documents/s": len(store) / seconds(store.document_tokens),
    }


def planning(count: int) -> tuple[float, int]:
    """Seconds and bytes that numbering so many sentences takes, an eighth of which occurred before; the hashes included."""
    hash_N2 = np.random.default_rng(0).integers(0, 2**64, (count, 2), dtype=np.uint64)
    again = hash_N2[count // 2 :: 4]
    again[:] = hash_N2[: len(again)]
    before = peak()
    took = seconds(lambda: number_distinct(hash_N2))
    return took, peak() - before + hash_N2.nbytes


def peak() -> int:
    """The most bytes this process has held so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
