"""A training step of a SONAR codec against one of Hugging Face's M2M100: the same shapes, the same sentences, in turns.

    python tests/bench/codec_step.py            # 6 + 6 layers of 512, 32 005 pieces; some 5 minutes on two cores
    python tests/bench/codec_step.py --quick    # tiny, seconds: does it run

in an environment with `pip install -e ".[hf]"`. A step is forward and backward pass of translation with teacher forcing, both
directions of `--pairs` pairs of real sentences; the optimizer's, the same for both, is left out. M2M100's decoder looks at all
outputs of its encoder, ours at their mean: that is the codec. The peer is padded to the longest sentence of a batch, or takes the
sentences sorted by length in four batches, whichever is faster. "SONAR" is our step with all three losses (MT, MSE, and DAE of
every sentence), whose target tokens are counted once, as the others'.

Each time is the best of `--rounds` rounds in which all take turns; memory is the peak of a process of its own during one step,
beyond the weights.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from sonarkit.codec.config import codec_config
from sonarkit.codec.objectives import ObjectiveConfig, PairBatch, pair_loss
from sonarkit.codec.pipeline import Sonar
from sonarkit.text.corpora import open_corpus
from sonarkit.text.sentences import split_sentences

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinystories_sample.jsonl"
LANG = "eng_Latn"
Step = Callable[[], None]
Row = dict[str, Any]


@dataclass
class Options:
    pairs: int = 64
    vocab: int = 32_005
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    threads: int = 2
    rounds: int = 3
    quick: bool = False
    out: Path | None = None
    measure: str | None = None  # for the processes that measure memory: sonarkit, SONAR or M2M100


def build(options: Options) -> tuple[Sonar, PairBatch]:
    """A codec with random weights, and sentences beside those that follow them in a story."""
    mini = Sonar.from_pretrained("mini")
    source = str(REAL) if REAL.is_file() else "storyworld:test"
    texts = [s for document in open_corpus(source) for s in split_sentences(document.text)][: 2 * options.pairs]
    mini.tokenizer.size = options.vocab  # the table of a larger tokenizer
    width, layers, ffn = (64, 2, 128) if options.quick else (512, 6, 2048)
    torch.manual_seed(0)
    sonar = Sonar(codec_config(mini.languages, options.vocab, width, layers, layers, 8, ffn, 0.0), mini.tokenizer)
    return sonar.train(), PairBatch(sonar.source_ids(texts, LANG), sonar.target_ids(texts, LANG), "0")


def tokens(batch: PairBatch) -> int:
    return batch.tokens(decoded=True)


# ---------------------------------------------------------------------- a step of each


def ours(sonar: Sonar, batch: PairBatch, objective: ObjectiveConfig, dtype: torch.dtype) -> Step:
    def step() -> None:
        sonar.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = pair_loss(sonar, batch, objective)
        (loss.total / loss.count).backward()

    return step


def peer(sonar: Sonar) -> nn.Module:
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    c = sonar.config
    config = M2M100Config(
        vocab_size=c.vocab_size,
        d_model=c.width,
        encoder_layers=c.encoder.layers,
        decoder_layers=c.decoder.layers,
        encoder_attention_heads=c.encoder.heads,
        decoder_attention_heads=c.decoder.heads,
        encoder_ffn_dim=c.encoder.ffn,
        decoder_ffn_dim=c.decoder.ffn,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        max_position_embeddings=c.max_tokens,
        use_cache=False,
    )
    return M2M100ForConditionalGeneration(config).train()


def published(model: nn.Module, batch: PairBatch, dtype: torch.dtype, parts: int) -> Step:
    """M2M100's step over the sentences in `parts` padded batches; sorted by length where there are several."""
    half = len(batch.sources) // 2
    pairs = list(zip(batch.sources, [*batch.targets[half:], *batch.targets[:half]]))
    if parts > 1:
        pairs.sort(key=lambda pair: max(map(len, pair)))
    size, count = -(-len(pairs) // parts), tokens(batch)
    batches = [_padded(pairs[i : i + size]) for i in range(0, len(pairs), size)]

    def step() -> None:
        model.zero_grad(set_to_none=True)
        for inputs in batches:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                logits_NLV = model(**{key: value for key, value in inputs.items() if key != "labels"}).logits
            labels = inputs["labels"].flatten()
            nats = torch.nn.functional.cross_entropy(logits_NLV.flatten(0, 1).float(), labels, reduction="sum")
            (nats / count).backward()

    return step


def _padded(pairs: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    def pad(rows: list[list[int]], value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

    labels = pad([target[1:] for _, target in pairs], -100)
    labels[:, 0] = -100  # the language token is given
    sources = pad([source for source, _ in pairs], 0)
    return {
        "input_ids": sources,
        "attention_mask": (sources != 0).long(),
        "decoder_input_ids": pad([target[:-1] for _, target in pairs], 0),
        "labels": labels,
    }


MT = ObjectiveConfig(mse_weight=0, dae_weight=0)
ALL = ObjectiveConfig()


def steps(sonar: Sonar, batch: PairBatch, dtype: torch.dtype) -> dict[str, Step]:
    model = peer(sonar)
    return {
        "sonarkit": ours(sonar, batch, MT, dtype),
        "SONAR": ours(sonar, batch, ALL, dtype),
        "M2M100": published(model, batch, dtype, 1),
        "M2M100, sorted": published(model, batch, dtype, 4),
    }


# ---------------------------------------------------------------------- measuring


def compare_speed(sonar: Sonar, batch: PairBatch, options: Options) -> list[Row]:
    rows = []
    for precision in options.precisions:
        runs = steps(sonar, batch, getattr(torch, precision))
        best = dict.fromkeys(runs, float("inf"))
        for number in range(options.rounds + 1):  # the first warms up
            for name, run in runs.items():
                gc.collect()
                began = time.perf_counter()
                run()
                if number:
                    best[name] = min(best[name], time.perf_counter() - began)
        rates = {name: tokens(batch) / seconds for name, seconds in best.items()}
        theirs = max(rates["M2M100"], rates["M2M100, sorted"])
        ratios = {name: round(rates[name] / theirs, 2) for name in ("sonarkit", "SONAR")}
        told = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        print(f"step, {precision}: {told} target tokens/s; to the better M2M100 {ratios}", flush=True)
        rows.append({"what": f"step, {precision}", "unit": "target tokens/s", **rates, "ratios": ratios})
    return rows


def compare_memory(options: Options) -> list[Row]:
    rows = []
    for precision in options.precisions:
        peaks = {}
        for name in ("sonarkit", "SONAR", "M2M100", "M2M100, sorted"):
            given = ["--pairs", str(options.pairs), "--vocab", str(options.vocab), "--threads", str(options.threads)]
            command = [sys.executable, __file__, "--measure", name, "--precisions", precision, *given]
            printed = subprocess.run(
                [*command, *(["--quick"] if options.quick else [])], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            peaks[name] = json.loads(printed.splitlines()[-1])["peak"] / 2**20
        print(f"memory, {precision}: {', '.join(f'{n} {p:.0f}' for n, p in peaks.items())} MiB beyond weights", flush=True)
        rows.append({"what": f"memory, {precision}", "unit": "MiB", **peaks})
    return rows


def measure(sonar: Sonar, batch: PairBatch, options: Options) -> None:
    step = steps(sonar, batch, getattr(torch, options.precisions[0]))[options.measure or ""]
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    step()
    print(json.dumps({"peak": _status("VmHWM") - before}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    sonar, batch = build(options)
    if options.measure:
        measure(sonar, batch, options)
        return
    print(f"{2 * options.pairs} sentences, {tokens(batch)} target tokens; {options.threads} threads, torch {torch.__version__}")
    rows = [*compare_speed(sonar, batch, options), *compare_memory(options)]
    if options.out:
        options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
