"""The metrics file survives crashes and resumes; the console stays short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sonarkit.training.metrics import RunLog, peak_memory_gb, read_metrics


def record(step: int, loss: float | None = 1.25) -> dict[str, Any]:
    return {"step": step, "loss_nats_per_token": loss, "lr": 1e-3, "tokens_per_s": 1234.5, "seconds_left": 75.0}


def test_records_are_on_disk_at_once_and_the_console_is_one_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with RunLog(path, 0, 20) as log:
        log.train(record(10))
        assert read_metrics(path) == [{"kind": "train", **record(10)}]
        log.train(record(20, loss=None))
        log.evaluation({"step": 20, "seconds": 3.0, "bleu": 91.23456, "sample": "Le renard\nrêva."})
    assert [r["kind"] for r in read_metrics(path)] == ["train", "train", "eval"]
    assert read_metrics(path)[-1]["sample"] == "Le renard\nrêva."
    assert capsys.readouterr().out.splitlines() == [
        "step 10/20  loss 1.2500  lr 1.00e-03  1234 tokens/s  01:15 left",
        "step 20/20  loss -  lr 1.00e-03  1234 tokens/s  01:15 left",
        "step 20/20  evaluation: bleu 91.23",
        "  sample: Le renard rêva.",
    ]


def test_a_resumed_run_drops_what_was_written_beyond_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with RunLog(path, 0, 30) as log:
        for step in (10, 20, 30):
            log.train(record(step))
    with open(path, "a") as file:
        file.write('{"kind": "train", "st')  # cut by a crash
    assert [r["step"] for r in read_metrics(path)] == [10, 20, 30]
    with RunLog(path, 20, 30) as log:
        assert [r["step"] for r in read_metrics(path)] == [10, 20]
        log.train(record(30, loss=0.5))
    assert [r["loss_nats_per_token"] for r in read_metrics(path)] == [1.25, 1.25, 0.5]
    assert list(tmp_path.iterdir()) == [path]


def test_other_ranks_stay_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path / "metrics.jsonl", 0, 10, speaks=False) as log:
        log.advance()
        log.train(record(10))
        log.evaluation({"step": 10, "seconds": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(record(1)) + "\nnot json\n" + json.dumps(record(2)) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: expected a JSON object, got 'not json"):
        read_metrics(path)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    with RunLog(tmp_path / "metrics.jsonl", 0, 10) as log:
        file, log._file = log._file, open("/dev/full", "w", buffering=1)  # noqa: SIM115
        with pytest.raises(OSError, match=r"metrics\.jsonl.*checkpoints are kept"):
            log.train(record(1))
        log._file = file


def test_peak_memory_is_in_gigabytes() -> None:
    assert 0.01 < peak_memory_gb(torch.device("cpu")) < 1000
