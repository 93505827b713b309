"""One bit of a shard, a checkpoint or a weights file is another: found by checksum, named, and mended where a copy exists."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import CODEC, contents, encode, losses, save, train_llm

from sonarkit.codec.pipeline import Sonar
from sonarkit.core import checkpoint
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.store.reader import Store


def flips(paths: list[Path], count: int = 20, seed: int = 0) -> Iterator[Path]:
    """So many times one of the files with one bit, anywhere in it, turned over; whole again afterwards."""
    rng = random.Random(seed)
    for _ in range(count):
        path = rng.choice(paths)
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        yield path
        path.write_bytes(whole)


def test_a_shard(whole_store: Path, corpus: Path, tmp_path: Path) -> None:
    store = shutil.copytree(whole_store, tmp_path / "store")
    for path in flips(sorted(store.glob("*.arrow"))):
        with pytest.raises(
            ValueError, match=f"{path.name} is damaged .*; delete it and {path.stem}.json, then run the same encode"
        ):
            Store(store, verify=True)
        path.unlink()
        path.with_suffix(".json").unlink()
        encode(corpus, store)
        assert contents(store) == contents(whole_store)


def test_a_shard_is_found_before_training_begins(whole_store: Path, tmp_path: Path) -> None:
    """Also by a store that was opened without a look at its checksums."""
    store = shutil.copytree(whole_store, tmp_path / "store")
    opened = Store(store)
    assert opened.verify(most=1e6) and not opened.verify(most=1)
    for path in flips(sorted(store.glob("*.arrow")), 3, seed=1):
        with pytest.raises(ValueError, match=f"{path.name} is damaged .its checksum is off"):
            opened.verify()
        with pytest.raises(ValueError, match=f"{path.name} is damaged .its checksum is off"):
            train_llm(store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_tells_of_a_store(whole_store: Path, corpus: Path, tmp_path: Path) -> None:
    """Notes and the manifest are JSON: a bit that spoils it is named."""
    store = shutil.copytree(whole_store, tmp_path / "store")
    for name, remedy in (("manifest.json", "delete it and run"), ("stamp.json", "choose another folder")):
        whole = (store / name).read_bytes()
        (store / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(ValueError, match=f"{name} is damaged .*; {remedy}"):
            encode(corpus, store)
        (store / name).write_bytes(whole)
    (store / "manifest.json").unlink()
    note = store / "shard-00001.json"
    note.write_bytes(b"\xff" + note.read_bytes()[1:])
    with pytest.raises(ValueError, match="shard-00001.json is damaged .*; delete it and run the same encode command again"):
        encode(corpus, store)
    note.unlink()
    encode(corpus, store)
    assert contents(store) == contents(whole_store)


def test_a_checkpoint(whole_store: Path, whole_run: Path, tmp_path: Path) -> None:
    """The one before it is the copy: the run goes on from there to the same end."""
    out = shutil.copytree(whole_run, tmp_path / "run")
    newest = checkpoint.latest(out)
    assert newest is not None and newest.name == "step-00000006"
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != "checksums.json")
    for path in flips(files):
        with pytest.raises(ValueError, match=f"{path.relative_to(newest)} is missing or damaged .*; delete {newest} to resume"):
            checkpoint.read(newest)
    flipped = next(flips(files, seed=1))
    with pytest.raises(ValueError, match=f"{flipped.name} is missing or damaged"):
        train_llm(whole_store, out)
    shutil.rmtree(newest)
    train_llm(whole_store, out)
    assert losses(out) == losses(whole_run) and contents(out / "final") == contents(whole_run / "final")


def test_weights(tmp_path: Path) -> None:
    """Of a model and of a codec."""
    save(tmp_path / "llm")
    CODEC.save_pretrained(tmp_path / "codec")
    before = contents(tmp_path)
    for path in flips([tmp_path / "llm" / "model.safetensors", tmp_path / "codec" / "model.safetensors"]):
        with pytest.raises(ValueError, match=f"{path} is damaged .*; copy or download it again"):
            SonarLLM.from_pretrained(tmp_path / "llm", sonar=Sonar.from_pretrained(tmp_path / "codec"))
    assert contents(tmp_path) == before
    SonarLLM.from_pretrained(tmp_path / "llm", sonar=Sonar.from_pretrained(tmp_path / "codec"))
