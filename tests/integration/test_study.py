"""The studies of model families, tiny: every family judged, gone on with, and the same numbers again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sonarkit import study
from sonarkit.evaluation.scaling import fit_scaling
from sonarkit.models.backbone import BackboneConfig

SHARED = ["--stories", 12, "--valid-stories", 4, "--documents-per-step", 4, "--jobs", 1]
SHAPE = ["--hidden", 32, "--ffn", 48, "--layers", 2, "--heads", 2, "--head-dim", 16]
JUDGED = ["--count", 3, "--max-sentences", 4, "--max-tokens", 24, "--tuned-on", 2, "--guidances", 1, 3]


@pytest.fixture(autouse=True)
def long_sentences_are_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a random codec's sentences are long
        yield


@pytest.fixture
def of_study(codec: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a study in this process; what it printed."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        study.main([str(word) for word in (*arguments, "--codec", codec, *SHARED)])
        return capsys.readouterr().out

    return run


def test_all_families_are_judged_by_one_command(of_study: Callable[..., str], tmp_path: Path) -> None:
    first = tmp_path / "first"
    options = ["--steps", 4, *SHAPE, *JUDGED]
    printed = of_study("families", "--out", first, *options, "--families", "sonar-llm", "token-llm")
    assert "sonar-llm, seed 0: grammar" in printed
    weights = (first / "sonar-llm-0" / "final" / "model.safetensors").stat().st_mtime_ns

    printed = of_study("families", "--out", first, *options)  # the other two join them
    assert "sonar-llm, seed 0" not in printed and "diffusion-lcm, seed 0: grammar" in printed
    assert (first / "sonar-llm-0" / "final" / "model.safetensors").stat().st_mtime_ns == weights
    assert "diffusion-lcm" in (first / "figure.html").read_text(encoding="utf-8")
    table = (first / "table.md").read_text(encoding="utf-8")
    assert table.strip() in printed
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows[1:5] == ["| sonar-llm", "| mse-lcm", "| diffusion-lcm", "| token-llm"] and rows[5] == "| less sonar-llm"
    assert "diffusion-lcm, seed 0: guidance 3 has " in printed and "- diffusion-lcm by guidance " in table
    assert "embedding" in next(line for line in table.splitlines() if line.startswith("| token-llm"))
    found = json.loads((first / "rows.json").read_text(encoding="utf-8"))
    assert set(found["intervals"]) == set(found["seeds"]) == {"sonar-llm", "mse-lcm", "diffusion-lcm", "token-llm"}
    assert all(of_model["bits_per_byte"]["value"] > 1 for of_model in found["intervals"].values())  # they know nothing yet
    assert set(found["report"]["against_first"]) == {"mse-lcm", "diffusion-lcm", "token-llm"}

    assert of_study("families", "--out", first, *options).strip() == table.strip()  # nothing is done again
    second = tmp_path / "second"
    shutil.copytree(first / "stores", second / "stores")
    of_study("families", "--out", second, *options)
    assert (second / "table.md").read_text(encoding="utf-8") == table
    assert json.loads((second / "rows.json").read_text(encoding="utf-8"))["intervals"] == found["intervals"]


def workers(pid: int) -> list[int]:
    """The processes that a study has begun for its jobs."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def alive(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("killed", [False, True])
def test_a_stopped_study_keeps_what_it_has_and_begins_nothing_more(codec: Path, tmp_path: Path, killed: bool) -> None:
    """By SIGTERM, also after one of its processes was killed."""
    command = ["families", "--out", tmp_path, "--codec", codec, *SHARED, "--jobs", 2, *SHAPE, *JUDGED, "--steps", 100_000]
    command = [sys.executable, study.__file__, *map(str, command)]
    begun = [tmp_path / f"{family}-0" / "metrics.jsonl" for family in ("sonar-llm", "mse-lcm")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
        try:
            while not all(file.is_file() and file.stat().st_size for file in begun):
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.2)
            if killed:
                os.kill(workers(process.pid)[0], signal.SIGKILL)
                while "was killed" not in (tmp_path / "log").read_text():
                    time.sleep(0.2)
                assert len(workers(process.pid)) == 1 and process.poll() is None
            process.terminate()
            assert process.wait(120) == 2
            deadline = time.monotonic() + 30
            while alive(process.pid) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not alive(process.pid)  # none of its processes outlives it by long
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    log = (tmp_path / "log").read_text()
    assert ("the study was stopped; the same command goes on from there" in log) is not killed
    assert log.count("a process of the study was killed (is there too little memory?)") == 2 * killed  # at once, and at the end
    assert sum(any(file.parent.glob("step-*")) for file in begun) == 2 - killed  # checkpoints
    assert not (tmp_path / "diffusion-lcm-0").exists()


def test_seeds_are_kept_apart_and_pooled(of_study: Callable[..., str], tmp_path: Path) -> None:
    options = ["--steps", 2, *SHAPE, *JUDGED, "--families", "mse-lcm", "--seeds", 0, 1]
    table = of_study("families", "--out", tmp_path, *options)
    assert "means of 2 seeds" in table
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    one, two = (seed["bits_per_byte"] for seed in rows["seeds"]["mse-lcm"])
    assert one != two and rows["intervals"]["mse-lcm"]["bits_per_byte"]["value"] == pytest.approx((one + two) / 2)


def test_several_sizes_are_measured(of_study: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "SIZES", {name: BackboneConfig(8 * n, 8 * n, 1, 2, 4 * n) for n, name in enumerate("XS", 1)})
    options = ["--steps", 2, "--seeds", 2, "--limit", 4, "--families", "sonar-llm", "token-llm", "--sizes", "X", "S"]
    text = of_study("scaling", "--out", tmp_path, *options)
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert len(rows["points"]) == 2 * (2 + 1) and set(rows["fits"]) == {"loss", "bits_per_byte"}
    small, large = (point for point in rows["points"] if point["family"] == "token-llm")
    assert small["parameters"] < large["parameters"] and small["unit"] == "nats_per_token"
    assert 0 < small["embedding_parameters"] < large["embedding_parameters"]
    assert all(point["bits_per_byte"] > 1 for point in rows["points"])  # they know nothing yet
    for of_unit in rows["fits"].values():
        assert len(of_unit["sonar-llm"]["sizes"]) == 4 and "at least 4 different sizes" in of_unit["token-llm"]["problem"]
    assert sum(line.startswith("| sonar-llm | ") for line in text.splitlines()) == 2 + 2 and " ± " in text
    assert of_study("scaling", "--out", tmp_path, *options).strip() == (tmp_path / "table.md").read_text("utf-8").strip()
    assert "bits per byte" in (tmp_path / "figure.html").read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed (apt-get install espeak-ng)")
def test_poolings_of_speech_are_trained_and_judged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
    options = [
        "poolings",
        "--out",
        tmp_path,
        "--synthetic",
        tmp_path / "speech",
        "--count",
        6,
        "--test",
        "synthetic:8@test-unheard",
    ]
    options += [
        "--steps",
        2,
        "--body-steps",
        3,
        "--layers",
        1,
        "--ffn",
        16,
        "--seconds-per-step",
        8,
        "--jobs",
        1,
        "--seeds",
        0,
        1,
    ]
    study.main([str(word) for word in options])
    printed = capsys.readouterr().out
    assert "body, pooled by text: X-eng " in printed and "attention, seed 1: X-eng " in printed
    assert all("_pieces" not in row for row in (tmp_path / "max-0" / "metrics.jsonl").read_text().splitlines())
    table = (tmp_path / "table.md").read_text(encoding="utf-8").strip()
    assert table in printed and "| max | " in table and "(28.1)" in table.splitlines()[3] and "X-eng: " in table.splitlines()[-1]
    assert [len(list(folder.glob("*.vectors*"))) for folder in (tmp_path / "speech").glob("t*")] == [1, 1]  # one teacher for all
    kept = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert list(kept["rows"]) == ["mean", "max", "attention"] and len(kept["body"]["body, pooled by text"]) == 4
    assert all(len(seed) == len(kept["metrics"]) == 4 for seeds in kept["rows"].values() for seed in seeds)
    study.main([str(word) for word in options])
    assert capsys.readouterr().out.strip() == table  # nothing is done again


def test_laws_are_told_with_their_intervals() -> None:
    sizes = [1e5, 3e5, 1e6, 3e6, 1e7]
    losses = [50 * size**-0.4 + 0.5 for size in sizes]
    losses[0] *= 1.01
    fits = {"one": fit_scaling(sizes, losses, resamples=50), "two": fit_scaling(sizes, losses[::-1])}
    lines = study.scaling_laws("loss", fits, [{"family": name, "unit": "nats"} for name in fits]).splitlines()
    assert lines[2].startswith("| one | nats | ") and str(fits["one"].intervals["alpha"]) in lines[2]
    assert "no law: the losses do not fall" in lines[3]


def test_what_does_not_fit_is_refused(refused: Callable[..., None], codec: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no family lcm; the families are sonar-llm, mse-lcm"):
        study.Families(families=("lcm",))
    with pytest.raises(ValueError, match="no size XXL; the sizes are XS, S, M, L"):
        study.Scaling(sizes=("XXL",))
    with pytest.raises(ValueError, match="steps, count and tuned_on must be at least 1"):
        study.Families(count=0)
    options = ["families", "--out", tmp_path, "--codec", codec, *SHARED, *SHAPE, *JUDGED, "--families", "mse-lcm"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.main([str(word) for word in (*options, "--steps", 1)])
    (tmp_path / "mse-lcm-0" / "report.json").unlink()  # trained, and not yet judged
    refused(study.main, [*options, "--steps", 2], "mse-lcm-0 is of another study (", "steps: 1 -> 2", "choose another --out")
