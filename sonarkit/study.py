"""Small experiments, each a command that goes on where it was stopped.

    python sonarkit/study.py objectives --bitext multi30k_train.jsonl.gz --test multi30k_val.jsonl.gz

`objectives` trains a small codec with each of the six objectives of SONAR's table 1 (arXiv 2308.11466) and with each pooling,
over several seeds, and prints the table with the paper's numbers and which of its orderings hold.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json  # noqa: E402
import multiprocessing  # noqa: E402
from concurrent.futures import ProcessPoolExecutor  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from sonarkit import recipes  # noqa: E402
from sonarkit.codec.config import Pooling  # noqa: E402
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig  # noqa: E402
from sonarkit.codec.pipeline import Sonar  # noqa: E402
from sonarkit.core.distributed import start  # noqa: E402
from sonarkit.core.errors import user_errors  # noqa: E402
from sonarkit.evaluation import objective_study  # noqa: E402
from sonarkit.evaluation.objective_study import KEYS, METRICS  # noqa: E402
from sonarkit.evaluation.report import evaluate_codec  # noqa: E402
from sonarkit.evaluation.sets import rows_of, spoken  # noqa: E402
from sonarkit.train import train_codec  # noqa: E402
from sonarkit.training.optimizer import OptimizerConfig  # noqa: E402

SONAR = "MT + 0.1 MSE + 0.01 DAE"
TUNED = "+ tuned decoder"
OBJECTIVES = {
    "MT": ObjectiveConfig(1, 0, 0),
    "MT + AE": ObjectiveConfig(1, 0, 1, noise_ratio=0),
    "MT + 0.1 DAE": ObjectiveConfig(1, 0, 0.1),
    "MT + 0.1 MSE": ObjectiveConfig(1, 0.1, 0),
    SONAR: ObjectiveConfig(1, 0.1, 0.01),
}
POOLINGS: tuple[Pooling, ...] = ("max", "last", "attention")  # mean is SONAR's own row


@dataclass(frozen=True)
class Objectives:
    """`bitext` is learnt from (`bitext_share` of the pairs) beside `stories` of StoryWorld; every `test_every`-th row of `test`
    is what the table is measured on. `rows` are some of the table's, by default all. `jobs` runs work at once, with
    `threads` threads each."""

    bitext: tuple[str, ...]
    test: str
    out: Path = Path("runs/objectives")
    bitext_share: float = 0.8
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 600
    tuning_steps: int = 200
    pairs_per_step: int = 64
    width: int = 128
    layers: int = 2
    pieces: int = 4000
    stories: int = 2000
    test_every: int = 4
    rows: tuple[str, ...] = ()
    jobs: int = 2
    threads: int = 1


@dataclass(frozen=True)
class Job:
    name: str
    run: recipes.CodecRun
    test: str
    test_every: int
    threads: int


def objectives(study: Objectives) -> str:
    """Train and judge what is not yet there; the table as text, also kept in `out`."""
    first, second = jobs(study)
    with ProcessPoolExecutor(study.jobs, multiprocessing.get_context("spawn")) as pool:
        results = dict(pool.map(judged, first))
        results |= dict(pool.map(judged, second))  # which begin with what the first ones made
    rows: dict[str, list[list[float]]] = {}
    for name, report in results.items():
        row = name.rpartition(", seed ")[0]
        rows.setdefault(row, []).append([report["mean"][KEYS[metric]] for metric in METRICS])
    rows = {
        name: rows[name] for name in (*objective_study.PAPER, *(f"{pooling} pooling" for pooling in POOLINGS)) if name in rows
    }
    text = objective_study.table(rows) + "\n\n" + objective_study.verdicts(objective_study.orderings(rows))
    (study.out / "table.md").write_text(text + "\n", encoding="utf-8")
    (study.out / "rows.json").write_text(json.dumps({"study": str(study), "rows": rows}, indent=1), encoding="utf-8")
    return text


def jobs(study: Objectives) -> tuple[list[Job], list[Job]]:
    """The runs that begin with random weights, then those that tune the decoders of SONAR's row."""
    begun: dict[str, dict[str, Any]] = {name: {"objective": objective} for name, objective in OBJECTIVES.items()}
    begun |= {f"{pooling} pooling": {"objective": OBJECTIVES[SONAR], "pooling": pooling} for pooling in POOLINGS}
    rows = study.rows or (*begun, TUNED)
    if unknown := set(rows) - {*begun, TUNED}:
        raise ValueError(f"no row {', '.join(sorted(unknown))}; the rows are {', '.join([*begun, TUNED])}")
    if TUNED in rows and SONAR not in rows:
        raise ValueError(f'"{TUNED}" begins with "{SONAR}", which must be among the rows')
    first, second = [], []
    for seed in study.seeds:
        first += [_job(study, name, seed, **fields) for name, fields in begun.items() if name in rows]
        if TUNED not in rows:
            continue
        trained = str(_folder(study, SONAR, seed) / "final")
        tuning = _job(study, TUNED, seed, objective=DecoderObjective(), init=trained)
        train = tuning.run.train
        optimizer = replace(train.optimizer, lr=train.optimizer.lr / 4)
        train = replace(train, steps=study.tuning_steps, optimizer=optimizer)
        second.append(replace(tuning, run=replace(tuning.run, train=train)))
    return first, second


def _job(study: Objectives, name: str, seed: int, **fields: Any) -> Job:
    base = recipes.codec_mini()
    optimizer = OptimizerConfig(lr=2e-3, muon=True, warmup_steps=50, schedule="cosine", min_lr_ratio=0.01)
    run = replace(
        base,
        train=replace(
            base.train,
            out=_folder(study, name, seed),
            steps=study.steps,
            seed=seed,
            optimizer=optimizer,
            threads=study.threads,
            tensorboard=False,
            save_every=0,
        ),
        bitext=study.bitext,
        bitext_share=study.bitext_share,
        stories=study.stories,
        pieces=study.pieces,
        width=study.width,
        encoder_layers=study.layers,
        decoder_layers=study.layers,
        ffn=4 * study.width,
        pairs_per_step=study.pairs_per_step,
        micro_pairs=study.pairs_per_step,
        judged=False,
    )
    return Job(f"{name}, seed {seed}", replace(run, **fields), study.test, study.test_every, study.threads)


def _folder(study: Objectives, name: str, seed: int) -> Path:
    plain = name.replace(" + ", "-").replace("+ ", "").replace(" ", "_")
    return study.out / f"{plain}-{seed}"


def judged(job: Job) -> tuple[str, dict]:
    """Train the run and measure it, unless that was done."""
    torch.set_num_threads(job.threads)
    file = job.run.train.out / "report.json"
    if not file.is_file():
        if not (job.run.train.out / "final" / "config.json").is_file():
            train_codec(job.run, start())
        sonar = Sonar.from_pretrained(job.run.train.out / "final")
        rows = spoken(rows_of(job.test, every=job.test_every), sonar.languages)
        report = evaluate_codec(sonar, rows, beam_size=1, spbleu=False)
        file.write_text(json.dumps(report, indent=1), encoding="utf-8")
        print(f"{job.name}: " + ", ".join(f"{metric} {report['mean'][KEYS[metric]]:.1f}" for metric in METRICS), flush=True)
    return job.name, json.loads(file.read_text(encoding="utf-8"))


STUDIES = {"objectives": (Objectives, objectives)}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in STUDIES:
        print(__doc__)
        raise SystemExit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    config, run = STUDIES[arguments[0]]
    with user_errors():
        print(run(tyro.cli(config, prog=f"study.py {arguments[0]}", args=arguments[1:], config=(tyro.conf.OmitArgPrefixes,))))


if __name__ == "__main__":
    main()
