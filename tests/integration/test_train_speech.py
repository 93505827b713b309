"""A speech encoder by one command: spoken, taught, stopped and gone on, on two ranks as on one, and measured afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run, torchrun

from sonarkit import train
from sonarkit.codec.config import CodecConfig, PoolerConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.speech import BodyConfig, SpeechConfig, SpeechEncoder, encode_speech
from sonarkit.core.distributed import World
from sonarkit.core.paths import asset
from sonarkit.recipes import SpeechRun, recipe
from sonarkit.text.speech_data import Utterance, open_speech, write_manifest
from sonarkit.training.metrics import loss_key, read_metrics
from sonarkit.training.speech_task import AugmentConfig

soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
ALONE = World(0, 1, 0, torch.device("cpu"))
TEXTS = ["The little fox ran home.", "Mia fand einen roten Drachen.", "They all laughed.", "Tom lui donna une vieille carte."]
CODES = ["eng_Latn", "deu_Latn", "eng_Latn", "fra_Latn"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rising tone for each of four texts, three times, in unequal lengths."""
    folder, rng, utterances = tmp_path_factory.mktemp("speech"), np.random.default_rng(0), []
    for i in range(12):
        time = np.arange(8_000 + 1_600 * (i % 5)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * 200 * (1 + i % 4) * time * (1 + 0.2 * time)) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{i}.flac", tone, 16_000)
        utterances.append(Utterance(folder / f"{i}.flac", TEXTS[i % 4], CODES[i % 4], ""))
    write_manifest(folder / "train.tsv", utterances)
    write_manifest(folder / "dev.tsv", utterances[:4])
    return folder / "train.tsv"


def command(codec: Path, manifest: Path, out: Path, *more: Any, **options: Any) -> list[str]:
    given = {
        "data": manifest, "valid": manifest.with_name("dev.tsv"), "codec": codec, "out": out, "steps": 6, "log_every": 1,
        "seconds_per_step": 2.0, "micro_seconds": 1.2, "width": 16, "layers": 1, "heads": 2, "ffn": 24, "kernel": 3,
        "dropout": 0.0, "pooler_dropout": 0.0, "pooler_heads": 2, "pooler_ffn": 32, "lr": 1e-2, "warmup_steps": 0,
        "ctc_weight": 0.0, "ctc_layer": 1, "piece_weight": 0.0, "pooling": "attention",
        "precision": "float32", "threads": 1, **options,
    }  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
    return ["speech", "--size", "mini", *map(str, [*words, "--no-tensorboard", *more])]


def losses(out: Path) -> list[tuple[int, float]]:
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [(record["step"], record[loss_key(record)]) for record in records]


# ---------------------------------------------------------------------- recipes


def test_the_mini_recipe_is_the_shipped_shape() -> None:
    run, sonar = recipe("speech", "mini"), Sonar.from_pretrained("mini", speech="mini")
    assert isinstance(run, SpeechRun)
    assert replace(run.speech_config(sonar.config), codec=sonar.fingerprint()) == sonar.speech.config
    assert sum(file.stat().st_size for file in asset("mini/speech").iterdir()) < 12e6


def test_the_published_recipe_is_w2v_bert_under_three_layers_of_attention() -> None:
    pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    run = recipe("speech", "600M")
    assert isinstance(run, SpeechRun) and run.codec == "sonar"
    config = run.speech_config(CodecConfig(("eng_Latn",)))
    assert config.pooler == PoolerConfig(1024, 3, 16, 4096, dropout=0.1, norm="post")
    assert config.body == BodyConfig(1024, 24, 16, kind="w2v-bert", ffn=4096)
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    assert sum(p.numel() for p in encoder.body.parameters()) == pytest.approx(600e6, rel=0.05)


def test_options_reach_the_run() -> None:
    arguments = ["speech", "--data", "a.tsv", "b.tsv", "--pooling", "max", "--width", "256", "--speeds", "1.0", "--mels", "0"]
    run = train.parse([*arguments, "--frozen-steps", "3"])
    assert isinstance(run, SpeechRun) and run.data == ("a.tsv", "b.tsv") and run.frozen_steps == 3
    assert run.augment == AugmentConfig((1.0,), time_masks=0, mel_masks=1, mels=0, silence=0.5, noise=0.1)
    assert run.speech_config(Sonar.from_pretrained("mini").config).pooling == "max"
    with pytest.raises(ValueError, match="needs a body of the kind w2v-bert, got conformer"):
        replace(run, init="w2v-bert:facebook/w2v-bert-2.0")
    with pytest.raises(ValueError, match="one to be judged on"):
        replace(run, valid=())


# ---------------------------------------------------------------------- training


def test_a_speech_encoder_trains_stops_and_goes_on(codec: Path, manifest: Path, tmp_path: Path) -> None:
    train.main(command(codec, manifest, tmp_path / "whole", steps=12))
    fingerprint = Sonar.from_pretrained(codec).fingerprint()
    targets = [
        manifest.with_suffix(f".vectors.{fingerprint}.safetensors"),
        manifest.with_name(f"dev.vectors.{fingerprint}.safetensors"),
    ]
    written = [file.stat().st_mtime_ns for file in targets]
    while len(losses(tmp_path / "cut") if (tmp_path / "cut" / "metrics.jsonl").exists() else []) < 12:  # sittings of a step or so
        train.main(command(codec, manifest, tmp_path / "cut", steps=12, max_minutes=1e-4))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [file.stat().st_mtime_ns for file in targets] == written, "the teacher is asked once"
    assert losses(tmp_path / "whole")[-1][1] < losses(tmp_path / "whole")[0][1]
    records = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    judged = next(record for record in records if record["kind"] == "eval")
    name = f"{manifest.parent.name.replace('-', '_')}_dev"
    assert {f"{name}_mse", f"{name}_cosine", f"{name}_error_percent"} <= judged.keys()
    sonar = Sonar.from_pretrained(codec, speech=tmp_path / "whole" / "final")
    assert sonar.speech.config.codec == fingerprint
    assert sonar.encode_speech([manifest.parent / "0.flac"]).shape == (1, 32)


def test_two_ranks_take_the_steps_of_one(codec: Path, manifest: Path, tmp_path: Path) -> None:
    more = {"frozen_steps": 2, "ctc_weight": 0.1, "decoder_weight": 0.1}
    train.main(command(codec, manifest, tmp_path / "one", **more))
    found = run(torchrun(2, "train.py", *command(codec, manifest, tmp_path / "two", **more)))
    assert found.returncode == 0, found.stderr[-3000:]
    for (step, alone), (other, together) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert step == other and together == pytest.approx(alone, rel=1e-3)


def test_the_text_encoder_reads_what_is_heard(codec: Path, manifest: Path, tmp_path: Path) -> None:
    train.main(command(codec, manifest, tmp_path / "run", pooling="text", piece_weight=2.0, subsampling="stack", steps=40))
    told = [row["loss_pieces"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert np.mean(told[-5:]) < 0.8 * np.mean(told[:5])
    encoder = Sonar.from_pretrained(codec, speech=tmp_path / "run" / "final").speech
    assert encoder.config.pooling == "text" and encoder.pooler is None


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_other_poolings_keep_the_bodys_width(
    pooling: str, codec: Path, manifest: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    refused(
        train.main,
        command(codec, manifest, tmp_path / "narrow", pooling=pooling),
        f"{pooling} pooling gives vectors as wide as the body, 16, but the codec's are 32: add --width 32",
    )
    train.main(command(codec, manifest, tmp_path / "wide", pooling=pooling, width=32))
    encoder = SpeechEncoder.from_pretrained(tmp_path / "wide" / "final")
    assert encoder.pooler is None and encoder.config.pooling == pooling


def test_a_run_goes_on_from_an_encoder_of_its_shape(
    codec: Path, manifest: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    train.main(command(codec, manifest, tmp_path / "first", steps=12))
    final = tmp_path / "first" / "final"
    train.main(command(codec, manifest, tmp_path / "second", init=final, steps=1, lr=1e-9))
    assert losses(tmp_path / "second")[0][1] < losses(tmp_path / "first")[0][1]
    refused(train.main, command(codec, manifest, tmp_path / "third", init=final, ffn=48), "configuration is another", "ffn")
    body = {"init": f"body:{final}", "pooling": "text", "piece_weight": 1.0}
    refused(train.main, command(codec, manifest, tmp_path / "fourth", **body, ffn=48), "body:", "configuration is another", "ffn")
    train.main(command(codec, manifest, tmp_path / "fifth", **body, steps=1, lr=1e-9, weight_decay=0))
    before, after = (SpeechEncoder.from_pretrained(of).body.state_dict() for of in (final, tmp_path / "fifth" / "final"))
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)


def test_w2v_bert_waits_while_its_pooler_learns(codec: Path, manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed (pip install -e ".[speech]")')
    shape = BodyConfig(16, 1, 2, 24, kind="w2v-bert")
    torch.manual_seed(1)
    pretrained = SpeechEncoder(SpeechConfig(32, shape, "attention", PoolerConfig(32, 1, 2, 32))).body
    pretrained.model.save_pretrained(tmp_path / "w2v")  # type: ignore[union-attr]
    options = {"init": f"w2v-bert:{tmp_path / 'w2v'}", "kind": "w2v-bert", "kernel": 31, "subsampling": "stack"}
    train.main(command(codec, manifest, tmp_path / "run", frozen_steps=3, steps=3, weight_decay=0, **options))
    trained = SpeechEncoder.from_pretrained(tmp_path / "run" / "final")
    for name, weight in pretrained.state_dict().items():
        torch.testing.assert_close(trained.body.state_dict()[name], weight.half().float(), rtol=0, atol=0)
    other = train.parse(command(codec, manifest, tmp_path / "other", **{**options, "ffn": 48}))
    with pytest.raises(ValueError, match="w2v-bert:.* configuration is another: .*ffn"):  # transformers draws a bar besides
        train.train_run(other, ALONE)


@espeak
def test_synthetic_speech_is_made_where_it_is_not_there(codec: Path, tmp_path: Path) -> None:
    sets = {"data": "synthetic:5", "valid": "synthetic:3@valid-unheard", "synthetic": tmp_path / "speech", "micro_seconds": 20}
    train.main(command(codec, Path("unused.tsv"), tmp_path / "run", steps=1, **sets))
    assert len(open_speech(tmp_path / "speech" / "train-5" / "manifest.tsv")) == 5
    spoken = sorted((tmp_path / "speech").rglob("*.flac"))
    assert len(spoken) == 8
    times = [file.stat().st_mtime_ns for file in spoken]
    train.main(command(codec, Path("unused.tsv"), tmp_path / "again", steps=1, **sets))
    assert times == [file.stat().st_mtime_ns for file in spoken], "what is there is not said again"
    judged = next(r for r in read_metrics(tmp_path / "again" / "metrics.jsonl") if r["kind"] == "eval")
    assert "valid_unheard_cosine" in judged


def test_what_cannot_be_trained_is_refused(codec: Path, manifest: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    def no(*words: str, **options: Any) -> None:
        refused(train.main, command(codec, manifest, tmp_path / "run", **options), *words)

    no("no speech at", data=tmp_path / "none.tsv")
    no("expected synthetic:COUNT", data="synthetic:many")
    no("pooling 'mean' has none", pooling="mean", width=32, frozen_steps=2)
    no("more than micro_seconds = 0.5", micro_seconds=0.5)
    refused(train.main, ["speech", "--size", "7B"], "unknown size '7B'; the sizes are mini, 600M")
    refused(train.main, ["spech"], "unknown model family", "speech")
    refused(train.main, ["speech", "--plan"], "--plan is for codec and sonar-llm")
    twice = command(codec, manifest, tmp_path / "run", "--valid", manifest, manifest)
    refused(train.main, twice, "need different names")
    assert not (tmp_path / "run").exists()


def test_vectors_do_not_depend_on_the_command_line(codec: Path, manifest: Path, tmp_path: Path) -> None:
    """What the run saved gives, file by file, what it gives in a batch."""
    train.main(command(codec, manifest, tmp_path / "run", steps=2))
    encoder = SpeechEncoder.from_pretrained(tmp_path / "run" / "final")
    paths = [utterance.path for utterance in open_speech(manifest)]
    one_by_one = torch.cat([encode_speech(encoder, [path]) for path in paths])
    torch.testing.assert_close(encode_speech(encoder, paths), one_by_one, atol=1e-5, rtol=1e-5)
