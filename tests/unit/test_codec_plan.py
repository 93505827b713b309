"""A codec's dry run: FLOPs against torch's counter, activations against what autograd keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sonarkit import train
from sonarkit.codec.config import codec_config
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig, PairBatch, decoder_loss, pair_loss
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.loss import LossSum
from sonarkit.text.tokenizer import Tokenizer
from sonarkit.training.codec_plan import CodecLoad, codec_memory, codec_plan, codec_training_parts
from sonarkit.training.loop import TrainConfig

PIECES = 21
TRAIN = TrainConfig(Path("nowhere"), steps=10)
OBJECTIVES = {
    "all": ObjectiveConfig(1.0, 0.1, 0.01, noise_ratio=0.0, word_shuffle=1),
    "mt": ObjectiveConfig(1.0, 0.1, 0.0),
    "ae": ObjectiveConfig(0.0, 0.0, 1.0, noise_ratio=0.0),
    "decoder": DecoderObjective(),
}


@pytest.fixture
def wide(tokenizer: Tokenizer) -> Sonar:
    return Sonar(codec_config(tokenizer.languages, tokenizer.size, 64, 3, 4, 4, 256, dropout=0.0, max_tokens=64), tokenizer)


def step(sonar: Sonar, objective: ObjectiveConfig | DecoderObjective, pairs: int) -> LossSum:
    pieces, language = [50] * PIECES, sonar.tokenizer.language_id("eng_Latn")
    source, end = [language, *pieces, sonar.tokenizer.eos_id], sonar.tokenizer.eos_id
    batch = PairBatch([source] * (2 * pairs), [[end, language, *pieces, end]] * (2 * pairs), "0")
    if isinstance(objective, DecoderObjective):
        return decoder_loss(sonar, batch, objective)
    return pair_loss(sonar, batch, objective)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_equal_torchs_count(wide: Sonar, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonarkit.core.packing.PLAIN_LENGTHS", (10**9, 10**9))  # plain products: fused ones are not all counted
    with FlopCounterMode(display=False) as counter:
        step(wide, OBJECTIVES[name], 3).total.backward()
    planned = codec_training_parts(wide.config, CodecLoad.of(3, PIECES, OBJECTIVES[name]), OBJECTIVES[name])
    # Without gradients attention is fused, which torch's counter does not see on a CPU.
    unseen = 6 * 3 * 4 * 64 * (PIECES + 2) ** 2 if name == "decoder" else 0
    assert sum(planned.values()) - unseen == counter.get_total_flops()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_activations_are_what_autograd_keeps(wide: Sonar, name: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonarkit.core.packing.PLAIN_LENGTHS", (0, 0))
    known = {p.untyped_storage().data_ptr() for p in wide.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, half):
        total = step(wide, OBJECTIVES[name], 40).total
    assert total.requires_grad
    measured = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    needed = codec_memory(wide.config, CodecLoad.of(40, PIECES, OBJECTIVES[name]), OBJECTIVES[name], TRAIN, 1, half)
    losses = 2 if name == "all" else 1
    kept = needed["activations"] + needed["copies"] + losses * 4 * wide.config.vocab_size * wide.config.width
    assert kept == pytest.approx(measured, rel=0.06)


def test_the_published_codec_from_nllb(capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["codec", "--size", "1B", "--plan", "--gpus", "8", "64", "--gpu", "A100"])
    printed = capsys.readouterr().out
    assert "encoder" in printed and "100000 steps" in printed
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith(("8 ", "64 "))]
    assert [row[0] for row in rows] == ["8", "64"] and all("!" not in row for row in rows)


def test_what_cannot_be_planned_is_refused(wide: Sonar) -> None:
    def planned(**options: object) -> str:
        given = {"pairs_per_step": 4, "micro_pairs": 2, "pieces": 20.0, **options}
        return codec_plan(wide.config, ObjectiveConfig(), TRAIN, **given)  # type: ignore[arg-type]

    assert "2 x" in planned(gpus=[1])
    assert "! does not fit" in planned(gpus=[1], device_memory=1e6)
    refused = (({"device": "A1"}, "unknown device"), ({"mfu": 0}, "mfu is a share"), ({"gpus": [8]}, "cannot be shared"))
    for options, told in refused:
        with pytest.raises(ValueError, match=told):
            planned(**options)
