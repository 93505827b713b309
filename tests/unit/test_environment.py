"""Where a run was made, found out without ever ending it; and the speed that it is measured by."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sonarkit.core import environment as module
from sonarkit.core.environment import environment
from sonarkit.core.peak import matrix_peak


def repository(folder: Path, *tracked: str) -> str:
    """A git repository that has committed these files. -> its commit."""
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("one\n")

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one", "--no-verify")
    return git("rev-parse", "HEAD")


def test_a_checkout_gives_its_commit_and_whether_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = repository(tmp_path, "sonarkit/__init__.py")
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "sonarkit")
    (tmp_path / "notes.txt").write_text("not tracked")
    found = environment()
    assert (found["git_commit"], found["git_dirty"]) == (commit, False)
    (tmp_path / "sonarkit" / "__init__.py").write_text("two\n")
    found = environment()
    assert (found["git_commit"], found["git_dirty"]) == (commit, True)


def test_somebody_else_s_repository_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sonarkit installed into a virtual environment that lies in a repository of the user's."""
    repository(tmp_path, "thesis.tex")
    (tmp_path / "venv" / "sonarkit").mkdir(parents=True)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "venv" / "sonarkit")
    assert environment()["git_commit"] is None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10), PermissionError("git")])
def test_git_that_fails_ends_nothing(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    found = environment()
    assert found["git_commit"] is None and found["git_dirty"] is None


def test_no_repository_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "sonarkit")
    assert environment()["git_commit"] is None


def test_versions_devices_and_command_are_there_and_the_host_name_is_not() -> None:
    found = json.loads(json.dumps(environment()))  # plain JSON
    assert found["torch"] == torch.__version__ and found["python"].startswith(f"{sys.version_info.major}.")
    assert found["sonarkit"] and found["world_size"] == 1 and found["cpu_count"] >= 1
    assert len(found["gpus"]) == torch.cuda.device_count()
    assert "pytest" in found["command"] or "-m" in found["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started_utc"])
    host = socket.gethostname()
    assert host not in [value for key, value in found.items() if key != "command"] and "hostname" not in found


def test_the_peak_is_what_a_product_reaches_and_measured_once() -> None:
    cpu = torch.device("cpu")
    before = torch.get_rng_state()
    peak = matrix_peak(cpu, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)  # a run that logs it draws the same numbers
    a = torch.randn(512, 512)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    reached = 2 * 512**3 / min(seconds)
    assert 0.3 < peak / reached < 10  # both noisy: other work may share the cores
    began = time.perf_counter()
    assert matrix_peak(cpu, torch.float32) == peak
    assert time.perf_counter() - began < 0.01
