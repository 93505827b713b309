"""A corpus of ten stories, its store and a run on it that nothing disturbed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))  # its `processes`

from attempts import encode, train_llm, write_stories  # noqa: E402


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stories(tmp_path_factory.mktemp("corpus") / "stories.txt")


@pytest.fixture(scope="session")
def whole_store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    encode(corpus, folder)
    return folder


@pytest.fixture(scope="session")
def whole_run(whole_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_llm(whole_store, folder)
    return folder
