"""Does what is built install and run where nobody prepared anything: another Python, another torch, no clone, no extra?

    python tests/bench/installation.py python3.11                            # the torch of .ci/constraints.txt
    python tests/bench/installation.py python3.12:2.8.0 python3.13 --tests   # the oldest torch; tests/unit, tests/parity
    python tests/bench/installation.py python3.11:2.9.1 --extras sonar

Builds the wheel, looks at what is in it, and for each Python[:torch] makes an environment of its own, installs the wheel
without extras, imports every module, tells a story and copies the notebooks, from an empty folder. With --tests the extra
`dev` comes after, and the tests run against what was installed. A row each; ends with 1 where one failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Annotated

import tyro

CLONE = Path(__file__).resolve().parents[2]
MOST = 60e6  # bytes of the wheel
INSIDE = (
    "assets/mini/sonar/",
    "assets/mini/sonar-llm/",
    "assets/mini/speech/",
    "assets/notebooks/00_",
    "assets/data/storyworld/test",
)
IMPORTS = """
import importlib, pkgutil, sys, sonarkit, torch
from pathlib import Path
assert "site-packages" in sonarkit.__file__, sonarkit.__file__
names = [module.name for module in pkgutil.walk_packages(sonarkit.__path__, "sonarkit.")]
for name in names: importlib.import_module(name)
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}: {len(names)} modules")
"""

COPY = """
from pathlib import Path
from sonarkit.cli import copy_notebooks
from sonarkit.core.paths import notebooks_folder
print(copy_notebooks(notebooks_folder(), Path("notebooks")), "notebooks")
"""


def main(
    pythons: Annotated[tuple[str, ...], tyro.conf.Positional] = ("python3.11",), tests: bool = False, extras: tuple[str, ...] = ()
) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        wheel = built(Path(temporary))
        rows = [tried(python, wheel, tests, extras) for python in pythons]
    print("\n".join(rows))
    return int(any("failed" in row for row in rows))


def built(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, CLONE], check=True)
    (wheel,) = folder.glob("*.whl")
    names, size = zipfile.ZipFile(wheel).namelist(), wheel.stat().st_size
    missing = [part for part in INSIDE if not any(name.startswith(f"sonarkit/{part}") for name in names)]
    if missing or size > MOST:
        raise SystemExit(
            f"{wheel.name}: {size / 1e6:.1f} MB (at most {MOST / 1e6:.0f}); missing: {', '.join(missing) or 'nothing'}"
        )
    print(f"{wheel.name}: {size / 1e6:.1f} MB, {len(names)} files", flush=True)
    return wheel


def tried(python: str, wheel: Path, tests: bool, extras: tuple[str, ...]) -> str:
    """One line of the table; of what failed, the last lines."""
    python, torch = re.fullmatch(r"(.+?)(?::(\d+\.[\d.]+))?", python).groups()  # type: ignore[union-attr]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        environment, elsewhere = Path(temporary) / "environment", Path(temporary) / "elsewhere"
        elsewhere.mkdir()
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        here = environment / ("Scripts" if sys.platform == "win32" else "bin")

        def run(*command: str | Path) -> str:
            told = subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True)
            if told.returncode:
                raise RuntimeError(f"{' '.join(map(str, command))[:100]} failed:\n{(told.stdout + told.stderr)[-2000:]}")
            return told.stdout

        constraints = Path(temporary) / "constraints.txt"
        pinned = (CLONE / ".ci" / "constraints.txt").read_text()
        constraints.write_text(re.sub(r"(?m)^torch==.*$", f"torch=={torch}", pinned) if torch else pinned)
        install = [here / "python", "-m", "pip", "install", "-q", "-c", constraints]
        did: list[str] = []
        try:
            run(python, "-m", "venv", environment)
            run(*install, str(wheel) + (f"[{','.join(extras)}]" if extras else ""))
            did.append(run(here / "python", "-c", IMPORTS).strip())
            story = run(here / "sonarkit", "story", "Once upon a time there was a little fox named Mia.")
            did.append(f"a story of {len(story.split())} words")
            did.append(run(here / "python", "-c", COPY).strip())
            if tests:
                run(*install, f"{wheel}[dev]")
                parts = [CLONE / "tests" / part for part in ("unit", "parity")]
                did.append(run(here / "python", "-m", "pytest", "-q", *parts).strip().splitlines()[-1])
        except RuntimeError as failure:
            did.append(str(failure))
    return f"{', '.join(did)}; {time.monotonic() - began:.0f} s"


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
