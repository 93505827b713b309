"""`kill -9` at 20 moments of encoding, of training and of saving, and the same command again: as if nothing had been."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from attempts import CODEC, attempt, calls_of, contents, encode, losses, moments, save, train_llm

from sonarkit.core import checkpoint
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.store.reader import Store

KILLED = -signal.SIGKILL


def test_encoding(corpus: Path, whole_store: Path, tmp_path: Path) -> None:
    """Every other restart is killed as well, so that there are 30 kills."""
    calls = calls_of(encode, corpus, tmp_path / "counted")
    times = moments(calls)
    begun = set()
    for i, time in enumerate(times):
        store = tmp_path / f"store-{i}"
        assert attempt(encode, corpus, store, after=time) == KILLED
        begun.add(len(contents(store)))
        if i % 2:
            assert attempt(encode, corpus, store, after=times[i // 2]) in (KILLED, 0)
        assert attempt(encode, corpus, store) == 0
        assert contents(store) == contents(whole_store), f"killed after {time} of {calls} calls"
    assert len(begun) > 6, "the kills came at all stages of the work"


def test_training(whole_store: Path, whole_run: Path, tmp_path: Path) -> None:
    calls = calls_of(train_llm, whole_store, tmp_path / "counted")
    resumed = set()
    for i, time in enumerate(moments(calls)):
        out = tmp_path / f"run-{i}"
        assert attempt(train_llm, whole_store, out, after=time) == KILLED
        resumed.add(checkpoint.latest(out))
        assert attempt(train_llm, whole_store, out) == 0
        assert_same_run(out, whole_run, f"killed after {time} of {calls} calls")
    found = {path and path.name for path in resumed}
    assert found >= {None, "step-00000002", "step-00000004"}, "the kills came before and after checkpoints"


def assert_same_run(out: Path, whole: Path, why: str = "") -> None:
    """The losses to the last bit, the model byte for byte, and nothing half written."""
    assert losses(out) == losses(whole), why
    assert contents(out / "final") == contents(whole / "final"), why
    names, wanted = ({path.name for path in folder.iterdir() if path.suffix or path.name == "final"} for folder in (out, whole))
    assert names == wanted == {"final", "metrics.jsonl", "run.json"}, why


def test_saving(tmp_path: Path) -> None:
    """What lies there is the old model or the new one, never something between."""
    calls = calls_of(save, tmp_path / "counted")
    save(tmp_path / "old", seed=2)
    save(tmp_path / "new")
    file = "model.safetensors"
    old, new = ((tmp_path / name / file).read_bytes() for name in ("old", "new"))
    found = []
    for i, time in enumerate(moments(calls)):
        folder = tmp_path / f"model-{i}"
        save(folder, seed=2)
        assert attempt(save, folder, after=time) == KILLED
        found.append((folder / file).read_bytes())
        assert found[-1] in (old, new)
        SonarLLM.from_pretrained(folder, sonar=CODEC)
        assert attempt(save, folder) == 0
        left = {name: data for name, data in contents(folder).items() if not name.endswith(".tmp")}
        assert left == contents(tmp_path / "new")
    assert old in found and new in found


@pytest.mark.parametrize("what", ["encode", "train"])
def test_sigterm_at_any_moment(what: str, corpus: Path, whole_store: Path, whole_run: Path, tmp_path: Path) -> None:
    """It ends well, or by the signal where nothing has begun; and the same command goes on."""
    work, source = (encode, corpus) if what == "encode" else (train_llm, whole_store)
    calls = calls_of(work, source, tmp_path / "counted")
    for i, time in enumerate(moments(calls, 5, seed=1)):
        out = tmp_path / str(i)
        status = attempt(work, source, out, end=signal.SIGTERM, after=time)
        assert status in (0, -signal.SIGTERM)
        assert status or not (out / "writer.lock").exists()
        assert attempt(work, source, out) == 0
        if what == "encode":
            assert contents(out) == contents(whole_store) and len(Store(out, verify=True)) == 10
        else:
            assert_same_run(out, whole_run)
