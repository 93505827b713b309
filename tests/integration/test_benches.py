"""A benchmark or a recipe that nobody starts for months still has to start."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


def test_the_speech_step_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    options = ["--quick", "--rounds", "1", "--precisions", "float32", "--threads", "1", "--out", str(tmp_path / "rows.json")]
    found = subprocess.run([sys.executable, BENCH / "speech_step.py", *options], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    memory, speed = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert all(row[name] > 0 for row in (speed, memory) for name in ("w2v-BERT", "conformer", "peer"))


def test_fuzzing_begins_from_files_that_are_read(tmp_path: Path) -> None:
    """Of every reader at least one; mutations of what is refused at once find nothing."""
    pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
    spec = importlib.util.spec_from_file_location("fuzz_readers", BENCH.parent / "fuzz" / "fuzz_readers.py")
    assert spec and spec.loader
    spec.loader.exec_module(fuzz := importlib.util.module_from_spec(spec))
    for name, make in fuzz.READERS.items():
        for part in ("seeds", "read"):
            (tmp_path / name / part).mkdir(parents=True)
        reader, read = make()(tmp_path / name / "read"), 0
        for data in fuzz.seeds(name, tmp_path / name / "seeds"):
            with suppress(ValueError, OSError):
                reader(data)
                read += 1
        assert read, name
