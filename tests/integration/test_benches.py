"""A benchmark that nobody starts for months still has to start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


def test_the_speech_step_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    options = ["--quick", "--rounds", "1", "--precisions", "float32", "--threads", "1", "--out", str(tmp_path / "rows.json")]
    found = subprocess.run([sys.executable, BENCH / "speech_step.py", *options], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    speed, memory = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]
    assert all(row[name] > 0 for row in (speed, memory) for name in ("w2v-BERT", "conformer", "peer"))
