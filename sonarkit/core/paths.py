"""Where the files that come with sonarkit lie: in a clone beside the package, in a wheel inside it."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def _beside_or_inside(name: str) -> Path:
    """The folder `name` as it lies inside an installed wheel, else in the repository beside the package."""
    for folder in (PACKAGE / "assets" / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"The folder {name!r} that comes with sonarkit was not found; reinstall sonarkit.")


def data_folder() -> Path:
    """StoryWorld's grammar and fixed sets, the handwritten stories, and some speech. FileNotFoundError where it is lacking."""
    return _beside_or_inside("data")


def notebooks_folder() -> Path:
    """The ordered notebooks. FileNotFoundError where the folder is lacking."""
    return _beside_or_inside("notebooks")


def asset(name: str) -> Path:
    """The path of a file or folder under `sonarkit/assets/`, such as `mini/sonar`, whether it is there or not."""
    return PACKAGE / "assets" / name
