"""What a store's manifest must say before anything in it is believed: it may come from elsewhere, or have been edited."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

_COUNTS = ("documents", "sentences", "distinct")
_KINDS: dict[str, type] = {
    **dict.fromkeys(("corpus", "lang", "segmenter", "codec", "codec_fingerprint"), str),
    **dict.fromkeys((*_COUNTS, "tokens", "bytes", "cut", "width"), int),
    "dropped": dict,
    "end_of_sequence": dict,
    "shards": list,
}
_SHARD_KINDS: dict[str, type] = {"file": str, "sha256": str, **dict.fromkeys(_COUNTS, int)}


def check_manifest(place: object, manifest: dict[str, Any]) -> None:
    """ValueError, naming the entry, for one of another kind than `build` writes and for a shard outside of the store."""
    try:
        _expect(manifest, _KINDS, "")
        end = manifest["end_of_sequence"]
        _expect(end, {"text": str, "tokens": list, "vector": list}, "end_of_sequence.")
        if len(end["vector"]) != manifest["width"] or not all(
            isinstance(x, int | float) for x in [*end["tokens"], *end["vector"]]
        ):
            raise ValueError(f"expected end_of_sequence to have numbers, {manifest['width']} of them as its vector")
        for i, shard in enumerate(manifest["shards"]):
            _expect(shard, _SHARD_KINDS, f"shards[{i}].")
            if PurePath(shard["file"]).name != shard["file"] or not re.fullmatch("[0-9a-f]{64}", shard["sha256"]):
                raise ValueError(
                    f"expected shards[{i}] to be a file of the store's folder and its SHA-256, "
                    f"got {shard['file']!r} and {shard['sha256']!r}"
                )
    except ValueError as error:
        raise ValueError(f"{place}/manifest.json is damaged ({error}); delete it and run the same encode command again") from None


def _expect(entry: object, kinds: dict[str, type], where: str) -> None:
    for name, kind in kinds.items():
        value = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or (isinstance(value, int) and value < 0):
            raise ValueError(f"expected {where}{name} to be {kind.__name__}, got {str(value)[:60]}")
