"""A training step of a full-size speech encoder beside Hugging Face's w2v-BERT 2.0 alone, on the same sound, in turns.

    python tests/bench/speech_step.py            # 24 layers of 1024, random weights; 18 GB, a quarter of an hour
    python tests/bench/speech_step.py --quick    # tiny, seconds: does it run

in an environment with `pip install -e ".[speech]"`. A step is forward and backward pass of what `train.py speech --size 600M`
trains: mean squared error to given vectors, over `--utterances` utterances of 2 to 8 seconds (noise: what is heard does not
matter to the cost). "w2v-BERT" is the recipe's body, Hugging Face's, under our pooler; "conformer" ours, of the arrangement of
Meta's published encoders; the peer is Hugging Face's body with a mean in place of a pooler. Filter banks are made beforehand.

Each time is the best of `--rounds` rounds in which all take turns. Memory is the peak of a process of its own that builds the
model and takes one step, AdamW's update included.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from sonarkit.codec import speech
from sonarkit.codec.config import CodecConfig, PoolerConfig
from sonarkit.recipes import SpeechRun, recipe
from sonarkit.training.optimizer import make_optimizer

Step = Callable[[], None]
NAMES = ("w2v-BERT", "conformer", "peer")


@dataclass
class Options:
    utterances: int = 8
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    threads: int = 2
    rounds: int = 2
    quick: bool = False
    out: Path | None = None
    measure: str | None = None  # for the processes that measure memory: one of NAMES


def sound(options: Options) -> list[Tensor]:
    """Filter banks (L, 80) of utterances of 2 to 8 seconds."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(2, 8, options.utterances) * 16_000
    return [speech.filter_bank(0.1 * torch.randn(int(length), generator=generator)) for length in lengths]


def config(name: str, options: Options) -> speech.SpeechConfig:
    run = recipe("speech", "600M")
    assert isinstance(run, SpeechRun)
    whole = run.speech_config(CodecConfig(("eng_Latn",)))  # Meta's width, 1024
    body = replace(whole.body, kind="conformer" if name == "conformer" else "w2v-bert")
    if options.quick:
        body = replace(body, width=64, layers=2, heads=4, ffn=128)
        return replace(whole, width=64, body=body, pooler=PoolerConfig(64, 1, 4, 128))
    return replace(whole, body=body)


def encoder(name: str, options: Options) -> nn.Module:
    torch.manual_seed(0)
    made = config(name, options)
    return (speech.W2vBert(made.body) if name == "peer" else speech.SpeechEncoder(made)).train()


def vectors(model: nn.Module, features: list[Tensor]) -> Tensor:
    """(N, D); the peer's are means over its padded batch's own frames."""
    if isinstance(model, speech.SpeechEncoder):
        return model(features)
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    x_BLH, lengths = model(padded, [len(one) for one in features])
    mask_BL1 = speech.mask_of(lengths, x_BLH.device)[..., None]
    return (x_BLH * mask_BL1).sum(1) / mask_BL1.sum(1)


def step_of(model: nn.Module, features: list[Tensor], dtype: torch.dtype) -> Step:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            found = vectors(model, features).float()
        F.mse_loss(found, torch.zeros_like(found)).backward()

    return step


def compare_speed(features: list[Tensor], options: Options) -> list[dict[str, Any]]:
    rows, seconds = [], sum(map(len, features)) / 100
    models = {name: encoder(name, options) for name in NAMES}
    for precision in options.precisions:
        best = dict.fromkeys(models, float("inf"))
        for number in range(options.rounds + 1):  # the first warms up
            for name, model in models.items():
                gc.collect()
                began = time.perf_counter()
                step_of(model, features, getattr(torch, precision))()
                if number:
                    best[name] = min(best[name], time.perf_counter() - began)
                model.zero_grad(set_to_none=True)  # or three models' gradients would lie side by side
        rates = {name: seconds / took for name, took in best.items()}
        ratios = {name: round(rates[name] / rates["peer"], 2) for name in NAMES[:2]}
        told = ", ".join(f"{name} {rate:.2f}" for name, rate in rates.items())
        print(f"step, {precision}: {told} seconds of sound a second; to the peer {ratios}", flush=True)
        rows.append({"what": f"step, {precision}", "unit": "seconds of sound a second", **rates, "ratios": ratios})
    return rows


def compare_memory(options: Options) -> list[dict[str, Any]]:
    rows = []
    for precision in options.precisions:
        measured = {}
        for name in NAMES:
            given = ["--utterances", str(options.utterances), "--threads", str(options.threads), "--precisions", precision]
            command = [sys.executable, __file__, "--measure", name, *given, *(["--quick"] if options.quick else [])]
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            measured[name] = json.loads(printed.splitlines()[-1])
        peaks = {name: one["peak"] / 2**30 for name, one in measured.items()}
        told = ", ".join(f"{name} {peak:.2f} GiB" for name, peak in peaks.items())
        updates = ", ".join(f"{name} {one['update']:.1f} s" for name, one in measured.items())
        print(f"memory, {precision}: {told}; AdamW's update {updates}", flush=True)
        rows.append({"what": f"memory, {precision}", "unit": "GiB", **peaks, "updates": updates})
    return rows


def measure(features: list[Tensor], options: Options) -> None:
    model = encoder(options.measure or "", options)
    run = recipe("speech", "600M")
    optimizers = make_optimizer(model, run.train.optimizer)
    step_of(model, features, getattr(torch, options.precisions[0]))()
    began = time.perf_counter()
    optimizers.step()
    took = time.perf_counter() - began
    print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "update": took}))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    features = sound(options)
    if options.measure:
        measure(features, options)
        return
    weights = {name: sum(p.numel() for p in encoder(name, options).parameters()) / 1e6 for name in NAMES}
    told = ", ".join(f"{name} {count:.1f}M" for name, count in weights.items())
    print(f"{told} weights; {sum(map(len, features)) / 100:.0f} s of sound, {options.threads} threads, torch {torch.__version__}")
    rows = [*compare_memory(options), *compare_speed(features, options)]  # the latter keeps three models
    if options.out:
        options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
