"""The metrics file survives crashes and resumes; the console stays short."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from sonarkit.training.metrics import RunLog, peak_memory_gb, read_metrics


def record(step: int, loss: float | None = 1.25) -> dict[str, Any]:
    loss_and_speed = {"loss_nats_per_token": loss, "lr": 1e-3, "tokens_per_s": 1234.5}
    return {"step": step, "seconds": 1.5 * step, **loss_and_speed, "seconds_left": 75.0}


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
    path.write_text(json.dumps({"kind": "train", **record(1)}) + "\nnot json\n" + json.dumps(record(2)) + "\n")
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


# ---------------------------------------------------------------------- TensorBoard


def events(folder: Path) -> Any:
    """What TensorBoard itself would show of a run."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_tensorboard_shows_the_records_over_the_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    with RunLog(tmp_path / "metrics.jsonl", 0, 20, tensorboard=True) as log:
        log.train(record(10) | {"mfu": 0.5})
        log.train(record(20, loss=None))
        log.evaluation({"step": 20, "seconds": 3.0, "bits_per_byte": 1.5, "sample": "Le renard\nrêva."})
    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/loss_nats_per_token")] == [(10, 1.25)]
    assert [(e.step, e.value) for e in found.Scalars("train/mfu")] == [(10, 0.5)]
    assert [e.step for e in found.Scalars("train/tokens_per_s")] == [10, 20]
    assert [(e.step, e.value) for e in found.Scalars("eval/bits_per_byte")] == [(20, 1.5)]
    (sample,) = found.Tensors("eval/sample/text_summary")
    assert (sample.step, sample.tensor_proto.string_val[0].decode()) == (20, "Le renard\nrêva.")
    assert "train/step" not in found.Tags()["scalars"]


def test_tensorboard_forgets_what_a_resumed_run_writes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    path = tmp_path / "metrics.jsonl"
    for start, steps, loss in ((0, (10, 20, 30), 1.0), (20, (30,), 0.5)):
        with RunLog(path, start, 40, tensorboard=True) as log:
            for step in steps:
                log.train(record(step, loss))
    shown = [(e.step, e.value) for e in events(tmp_path).Scalars("train/loss_nats_per_token")]
    assert shown == [(10, 1.0), (20, 1.0), (30, 0.5)]
    assert shown == [(r["step"], r["loss_nats_per_token"]) for r in read_metrics(path)]


def test_a_run_without_tensorboard_says_so_once_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with RunLog(tmp_path / "metrics.jsonl", 0, 20, tensorboard=True) as log:
        log.train(record(10))
        log.train(record(20))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].endswith("pip install tensorboard")
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20]
    with RunLog(tmp_path / "other" / "metrics.jsonl", 0, 20, speaks=False, tensorboard=True):
        pass
    assert capsys.readouterr() == ("", "")


def test_nothing_is_imported_that_is_not_used() -> None:
    code = "import sys, sonarkit.training.metrics; print({'tensorboard', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# ---------------------------------------------------------------------- Weights & Biases


class FakeWandb(types.ModuleType):
    """Keeps what it is told, by run id, as the service does: a step that a run already has is dropped."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.kept: dict[str, dict[int, dict[str, Any]]] = {}
        self.exit_codes: list[int] = []

    def Html(self, text: str) -> tuple[str, str]:  # noqa: N802
        return ("html", text)

    def init(self, **options: Any) -> Any:
        self.started.append(options)
        steps = self.kept.setdefault(options["id"], {})

        def log(values: dict[str, Any], step: int) -> None:
            if step >= max(steps, default=0):
                steps.setdefault(step, {}).update(values)

        return types.SimpleNamespace(log=log, finish=lambda exit_code: self.exit_codes.append(exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_the_records_and_a_resumed_run_goes_on_in_its_own(tmp_path: Path, wandb: FakeWandb) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with RunLog(path, 0, 30, wandb="foxes", config={"lr": 1}) as log:
        log.train(record(10))
        log.train(record(20, loss=None))
    with RunLog(path, 10, 30, wandb="foxes") as log:
        log.train(record(20))
        log.train(record(30, loss=0.5))
        log.evaluation({"step": 30, "seconds": 1.0, "bleu": 90.0, "sample": "<b>A fox."})
    first, second = wandb.started
    assert first["project"] == "foxes" and first["config"] == {"lr": 1} and first["dir"] == str(tmp_path / "run")
    assert first["id"] == second["id"] == (tmp_path / "run" / "wandb_id").read_text() and second["resume"] == "allow"
    (steps,) = wandb.kept.values()
    assert sorted(steps) == [10, 20, 30]
    assert steps[10]["train/loss_nats_per_token"] == 1.25
    assert steps[30]["train/loss_nats_per_token"] == 0.5 and steps[30]["eval/bleu"] == 90.0
    assert steps[30]["eval/sample"] == ("html", "<p>&lt;b&gt;A fox.</p>")
    assert wandb.exit_codes == [0, 0]


def test_wandb_is_told_when_a_run_fails(tmp_path: Path, wandb: FakeWandb) -> None:
    with pytest.raises(FloatingPointError), RunLog(tmp_path / "metrics.jsonl", 0, 30, wandb="foxes"):
        raise FloatingPointError
    assert wandb.exit_codes == [1]


def test_only_rank_0_reports_to_wandb(tmp_path: Path, wandb: FakeWandb) -> None:
    with RunLog(tmp_path / "metrics.jsonl", 0, 30, speaks=False, wandb="foxes") as log:
        log.train(record(10))
    assert not wandb.started


def test_wandb_asked_for_and_missing_is_an_error_with_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="'foxes' needs the package: pip install wandb"):
        RunLog(tmp_path / "metrics.jsonl", 0, 30, wandb="foxes")


def test_peak_memory_is_in_gigabytes() -> None:
    assert 0.01 < peak_memory_gb(torch.device("cpu")) < 1000
