"""What a sentence costs in training, by how many came before it: the same sentences cut into documents of 8 to 1 024.

    python tests/bench/context.py             # 100M, 6-layer decoder, 32 005 pieces; some 10 minutes on two cores
    python tests/bench/context.py --quick     # tiny, seconds

Every row judges the same `--total` sentences, so that the decoder does the same work in each and the batch is as large:
only the attention of the backbone over the sentences so far grows. A step is forward and backward pass; "backbone" is that
of the two projections and the backbone alone. Growth is the time of a row over that of the first, beside the growth of its
FLOPs (`sonarkit/models/flops.py`, held against torch's counter). Forward and backward of a sentence at context S take

    backbone    3 (p + 4 n h S) + 5 * 2 D H     p = 2 n (4 H h + 3 H F) for the weights of n layers of hidden width H, heads'
                                                width h, FFN F; its attention looks at all S places of a whole square, of which
                                                a fused kernel, taken beyond 128 sentences in float32 and 512 in bfloat16,
                                                skips up to half; no gradient leads back through the first projection
    decoder     2 q + 2 V                       for each token: forward and the gradient of the input, no more; q the weights
                                                and attention of its layers (less the gradient of the first attention), V
                                                those of the output projection

For 100M and sentences of 16 tokens that is 0.21 GFLOP + 49 kFLOP S and 7 GFLOP: at 1 024 sentences a step takes 0.7 % more
than at 8, and the backbone a quarter more. A model of tokens would look at 16 times as many places from 16 times as many.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from train_step import LANG, REAL, Options, Row, Step, build_model, held, in_turns, ours

from sonarkit.core.distributed import multiplies_bfloat16
from sonarkit.core.packing import packing_of
from sonarkit.models.flops import Load, training_parts
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.store.reader import Document
from sonarkit.text.corpora import open_corpus
from sonarkit.text.sentences import split_sentences


@dataclass
class ContextOptions:
    contexts: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)  # sentences before the last prediction, and it
    total: int = 1024  # sentences in a step; a multiple of all contexts
    vocab: int = 32_005
    precision: str = "auto"  # bfloat16 with the frozen decoder held in it where the hardware multiplies it, else float32
    threads: int = 2
    rounds: int = 2
    quick: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if not self.contexts or any(context < 1 or self.total % context for context in self.contexts):
            raise ValueError(f"total ({self.total}) must be a multiple of every context: {self.contexts}")


def documents(model: SonarLLM, targets: list[list[int]], context: int) -> list[Document]:
    """The judged sentences in documents of `context`, each after a first sentence that is given; vectors are noise."""
    parts = [targets[i : i + context] for i in range(0, len(targets), context)]
    width, generator = model.config.embedding, torch.Generator().manual_seed(0)
    return [
        Document(torch.randn(1 + len(part), width, generator=generator), [targets[0], *part], [1] * (1 + len(part)), "")
        for part in parts
    ]


def backbone_alone(model: SonarLLM, batch: list[Document], dtype: torch.dtype) -> Step:
    vectors_TD = torch.cat([d.vectors_SD[:-1] for d in batch])
    packing = packing_of([len(d.targets) - 1 for d in batch])

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            x_TH = model.forward_proj(vectors_TD).to(model.forward_proj.weight.dtype)
            mean = model.reverse_proj(model.backbone(x_TH, packing)).float().mean()
        mean.backward()
        return mean.detach()

    return step


def main(options: ContextOptions) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    half = options.precision == "bfloat16" or (options.precision == "auto" and multiplies_bfloat16(torch.device("cpu")))
    dtype = torch.bfloat16 if half else torch.float32
    model = build_model(Options(vocab=options.vocab, quick=options.quick))
    model = held(model) if half else model
    corpus = open_corpus(str(REAL) if REAL.is_file() else "storyworld:1000")
    texts = [text for d in corpus for text in split_sentences(d.text)][: options.total]
    targets = model.sonar.target_ids(texts, LANG)
    if len(targets) < options.total:
        raise SystemExit(f"the corpus has {len(targets)} sentences, expected {options.total}; lower --total")
    batches = {context: documents(model, targets, context) for context in options.contexts}
    steps = in_turns(options.rounds, {str(c): ours(model, batch, dtype) for c, batch in batches.items()})
    alone = in_turns(10 * options.rounds, {str(c): backbone_alone(model, batch, dtype) for c, batch in batches.items()})

    print(f"{options.total} sentences, {dtype}, {options.threads} threads, torch {torch.__version__}")
    print("            step                            backbone alone")
    print("context     ms a sentence  growth  FLOPs'   ms a sentence  growth  FLOPs'")
    rows: list[Row] = []
    for context, batch in batches.items():
        load = Load.of([[len(target) for target in d.targets] for d in batch])
        parts = training_parts(model.config.backbone, model.sonar.config, load)
        row: Row = {"context": context, "flops": sum(parts.values()), "backbone_flops": parts["backbone"]}
        row["ms"], row["backbone_ms"] = (1000 * times[str(context)] / options.total for times in (steps, alone))
        rows.append(row)
        step, expected, core, core_expected = (
            row[key] / rows[0][key] for key in ("ms", "flops", "backbone_ms", "backbone_flops")
        )
        print(
            f"{context:7}     {row['ms']:13.3f}  {step:6.3f}  {expected:6.3f}   "
            f"{row['backbone_ms']:13.3f}  {core:6.3f}  {core_expected:6.3f}"
        )
    if options.out:
        asked = {"torch": torch.__version__, "threads": options.threads, "dtype": str(dtype), "rows": rows}
        options.out.write_text(json.dumps(asked, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(ContextOptions, description=__doc__))
