"""A tiny codec and a tiny SONAR-LLM with random weights."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Finished, assert_refused

from sonarkit import cli
from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def make_codec(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Saves a codec of random weights, of another seed a codec that speaks another space."""

    def make(seed: int) -> Path:
        torch.manual_seed(seed)
        config = codec_config(
            tokenizer.languages,
            tokenizer.size,
            width=32,
            encoder_layers=1,
            decoder_layers=1,
            heads=4,
            ffn=64,
            dropout=0.0,
            max_tokens=48,
        )
        folder = tmp_path_factory.mktemp(f"codec-{seed}")
        Sonar(config, tokenizer).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def codec(make_codec: Callable[[int], Path]) -> Path:
    """The folder of a tiny codec; sentences above 46 tokens are cut."""
    return make_codec(0)


@pytest.fixture(scope="session")
def llm(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SONAR-LLM over that codec."""
    sonar = Sonar.from_pretrained(codec)
    torch.manual_seed(0)
    backbone = BackboneConfig(hidden=32, ffn=64, layers=1, heads=2, head_dim=16)
    folder = tmp_path_factory.mktemp("sonar-llm")
    SonarLLM(SonarLLMConfig(backbone, sonar.config.width, str(codec), sonar.fingerprint()), sonar).save_pretrained(folder)
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Checks that an entry's `main`, called in this process, ends with status 2 and a line with these words."""

    def check(main: Callable[[list[str]], None], arguments: list[Any], *words: str) -> None:
        with pytest.raises(SystemExit) as ending:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert_refused(Finished(arguments, int(ending.value.code or 0), captured.out, captured.err), *words)

    return check


@pytest.fixture
def sonarkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Runs the command in this process: `sonarkit("decode", "x.npy", stdin=b"...")`."""

    def command(*arguments: object, stdin: bytes = b"") -> Finished:
        monkeypatch.setattr(sys, "argv", ["sonarkit", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = 0
        try:
            cli.main()
        except SystemExit as ending:
            status = int(ending.code or 0)
        captured = capsys.readouterr()
        return Finished(list(arguments), status, captured.out, captured.err)

    return command
