"""Every family by one command: trained on two ranks as on one, stopped and gone on, loaded again, telling a story."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run, torchrun

import sonarkit as sk
from sonarkit import train
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.training.metrics import loss_key, read_metrics

ALONE = World(0, 1, 0, torch.device("cpu"))
FAMILIES = {"sonar-llm": sk.SonarLLM, "mse-lcm": sk.MseLCM, "diffusion-lcm": sk.DiffusionLCM, "token-llm": sk.TokenLLM}
UNITS = {"mse-lcm": "loss_squared_distance_per_sentence", "diffusion-lcm": "loss_squared_distance_per_sentence"}


@pytest.fixture(scope="module")
def store(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "store"
    encode_into("storyworld:22", folder, Sonar.from_pretrained(codec), ALONE)
    return folder


def command(family: str, codec: Path, store: Path, out: Path, **options: Any) -> list[str]:
    given = {
        "data": store, "valid": store, "codec": codec, "out": out, "steps": 6, "log_every": 1, "documents_per_step": 8,
        "micro_tokens": 1400, "hidden": 32, "ffn": 48, "layers": 2, "heads": 2, "head_dim": 16, "lr": 1e-2,
        "precision": "float32", "threads": 1, **options,
    }  # fmt: skip
    words = [str(word) for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
    return [family, "--size", "mini", *words, "--no-tensorboard"]


def losses(out: Path) -> list[tuple[int, float]]:
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [(record["step"], record[loss_key(record)]) for record in records]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_stops_goes_on_and_tells(family: str, codec: Path, store: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main(command(family, codec, store, whole))
    while len(losses(stopped) if (stopped / "metrics.jsonl").exists() else []) < 6:  # sittings of a step or so
        train.main(command(family, codec, store, stopped, max_minutes=1e-4))
    assert losses(stopped) == losses(whole)
    assert losses(whole)[-1][1] < losses(whole)[0][1]
    records = read_metrics(whole / "metrics.jsonl")
    assert loss_key(records[0]) == UNITS.get(family, "loss_nats_per_token")
    judged = next(record for record in records if record["kind"] == "eval")
    assert judged[loss_key(judged)] > 0 and judged["sample"]
    assert all(0 < record["mfu"] < 1 for record in records if record["kind"] == "train")
    model = FAMILIES[family].from_pretrained(whole / "final")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a random codec's sentences are long
        story = model.generate("Once upon a time there was a fox. It ran.", max_sentences=4)
    assert story.prompt_sentences == 2 and 2 <= len(story.sentences) <= 4
    assert story.stopped_by in ("end", "loop", "max_sentences", "max_tokens")


@pytest.mark.parametrize("family", ["mse-lcm", "token-llm"])
def test_two_ranks_take_the_steps_of_one(family: str, codec: Path, store: Path, tmp_path: Path) -> None:
    train.main(command(family, codec, store, tmp_path / "one"))
    found = run(torchrun(2, "train.py", *command(family, codec, store, tmp_path / "two")))
    assert found.returncode == 0, found.stderr[-3000:]
    for (step, alone), (other, together) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert step == other and together == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("family", ["mse-lcm", "diffusion-lcm", "token-llm"])
def test_a_run_goes_on_from_a_trained_model_of_its_shape(
    family: str, codec: Path, store: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    train.main(command(family, codec, store, tmp_path / "first"))
    final = tmp_path / "first" / "final"
    train.main(command(family, codec, store, tmp_path / "second", init=final, steps=1, lr=1e-9))
    assert losses(tmp_path / "second")[0][1] < losses(tmp_path / "first")[0][1]
    refused(train.main, command(family, codec, store, tmp_path / "third", init=final, ffn=512), "configuration is another")


def test_a_frozen_codec_held_in_bfloat16_changes_little(codec: Path, store: Path, tmp_path: Path) -> None:
    """Trained, judged and told with; nothing is said of its weights in what is saved."""
    for kind in ("float32", "auto"):
        out = tmp_path / kind
        train.main(command("sonar-llm", codec, store, out, precision="bfloat16", frozen=kind, steps=2))
    for (step, exact), (other, held) in zip(losses(tmp_path / "float32"), losses(tmp_path / "auto"), strict=True):
        assert step == other and held == pytest.approx(exact, rel=1e-2)
    assert sk.SonarLLM.from_pretrained(tmp_path / "auto" / "final").sonar.decoder.embedding.weight.dtype == torch.float32


def test_a_token_model_over_another_tokenizer(codec: Path, store: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    model = tmp_path / "mine.spm"
    model.write_bytes(Sonar.from_pretrained(codec).tokenizer.model)
    train.main(command("token-llm", codec, store, tmp_path / "run", tokenizer=model, steps=1))
    assert sk.TokenLLM.from_pretrained(tmp_path / "run" / "final").config.tokenizer == "sentencepiece"
    model.write_bytes(b"no model")
    refused(train.main, command("token-llm", codec, store, tmp_path / "other", tokenizer=model), "no whole SentencePiece model")


def test_what_only_sonar_llm_has_is_refused(codec: Path, store: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(train.main, ["mse-lcm", "--size", "900M", "--plan"], "--plan is for codec and sonar-llm")
    refused(train.main, ["lcm"], "unknown model family 'lcm'", "mse-lcm, diffusion-lcm, token-llm")
