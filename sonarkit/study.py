"""Small experiments, each a command that goes on where it was stopped.

    python sonarkit/study.py objectives --bitext multi30k_train.jsonl.gz --test multi30k_val.jsonl.gz
    python sonarkit/study.py families --out runs/families
    python sonarkit/study.py scaling --out runs/scaling
    python sonarkit/study.py poolings --out runs/poolings

`objectives` trains a small codec with each of the six objectives of SONAR's table 1 (arXiv 2308.11466) and with each pooling,
over several seeds, and prints the table with the paper's numbers and which of its orderings hold.

`families` trains SONAR-LLM, the MSE and diffusion LCMs and the token-level LLM (arXiv 2508.05305) with one backbone, on the
same stories in the same order for as many steps, and judges the stories that they tell.

`scaling` trains each of them in four sizes and fits L(N) = a N^-alpha + b to their losses and to their bits per byte.

`poolings` trains a small speech encoder on synthetic speech, puts mean, max and attention pooling on its body, over several
seeds, and prints beside their numbers the paper's order of the three.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json  # noqa: E402
import multiprocessing  # noqa: E402
import signal  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Iterable, Sequence  # noqa: E402
from dataclasses import dataclass, field, replace  # noqa: E402
from multiprocessing import connection  # noqa: E402
from multiprocessing.connection import Connection  # noqa: E402
from multiprocessing.context import SpawnProcess  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import plotly.graph_objects as go  # noqa: E402
import torch  # noqa: E402
import tyro  # noqa: E402

from sonarkit import recipes  # noqa: E402
from sonarkit.codec.config import Pooling  # noqa: E402
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig  # noqa: E402
from sonarkit.codec.pipeline import Sonar  # noqa: E402
from sonarkit.codec.speech import BodyConfig, SpeechEncoder  # noqa: E402
from sonarkit.core.checkpoint import write_atomically  # noqa: E402
from sonarkit.core.config import difference, to_dict  # noqa: E402
from sonarkit.core.distributed import start  # noqa: E402
from sonarkit.core.errors import user_errors  # noqa: E402
from sonarkit.encode import encode_into  # noqa: E402
from sonarkit.evaluation import objective_study, story_evaluation  # noqa: E402
from sonarkit.evaluation.bits_per_byte import bits_per_byte  # noqa: E402
from sonarkit.evaluation.family_study import ORDERED  # noqa: E402
from sonarkit.evaluation.objective_study import KEYS, METRICS  # noqa: E402
from sonarkit.evaluation.report import evaluate_codec  # noqa: E402
from sonarkit.evaluation.scaling import ScalingFit, fit_scaling  # noqa: E402
from sonarkit.evaluation.sets import rows_of, spoken  # noqa: E402
from sonarkit.evaluation.speech import evaluate_speech, speech_set  # noqa: E402
from sonarkit.evaluation.story_evaluation import StoryEvaluation, evaluate_stories  # noqa: E402
from sonarkit.evaluation.story_judge import SCORES  # noqa: E402
from sonarkit.explore.figures import interval_figure, scaling_figure  # noqa: E402
from sonarkit.models.backbone import BackboneConfig  # noqa: E402
from sonarkit.models.diffusion_lcm import SamplingConfig  # noqa: E402
from sonarkit.models.family import guided_by, load_model, trained_parameters  # noqa: E402
from sonarkit.store.reader import Store  # noqa: E402
from sonarkit.train import targets_of, train_run  # noqa: E402
from sonarkit.training.loop import TrainConfig  # noqa: E402
from sonarkit.training.metrics import loss_key, read_metrics  # noqa: E402
from sonarkit.training.optimizer import OptimizerConfig  # noqa: E402

# ---------------------------------------------------------------------- what the studies share

Run = recipes.CodecRun | recipes.StoreRun | recipes.SpeechRun


@dataclass(frozen=True)
class Job:
    """A model to train and what is to be found out of it, in one process: `find(job, folder of the model, **options)`."""

    name: str
    run: Run
    find: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)


def spread(jobs: Sequence[Job], at_once: int) -> dict[str, Any]:
    """What each of the jobs finds, by its name; several at once, each in a process of its own.

    When one of them fails or is stopped no other begins, and those under way end first. SIGTERM is passed on to them, and what
    they have learnt is kept. ValueError, too, for a process that was killed.
    """
    if at_once == 1 or len(jobs) == 1:
        return dict(map(done, jobs))
    context, waiting = multiprocessing.get_context("spawn"), list(jobs)
    running: dict[Connection, tuple[Job, SpawnProcess]] = {}
    found, failed = dict[str, Any](), list[Exception]()

    def stop(number: int, frame: Any) -> None:
        failed.append(ValueError("the study was stopped; the same command goes on from there"))
        for _, process in running.values():
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < at_once:
                job = waiting.pop(0)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_send, args=(sender, job))
                process.start()
                running[receiver] = job, process
                sender.close()  # the process has its own, and with that its end is heard
                if failed:  # it was stopped just now
                    process.terminate()
            ready = connection.wait(list(running))
            for receiver in [one for one in running if one in ready]:
                try:
                    result = receiver.recv()
                except EOFError:
                    why = "a process of the study was killed (is there too little memory?); the same command goes on"
                    result = ValueError(why)
                job, process = running.pop(receiver)
                process.join()
                receiver.close()
                if not isinstance(result, Exception):
                    found[job.name] = result
                    continue
                failed.append(result)
                if running:  # which may take long
                    print(f"{job.name}: {result}. What is under way ends first", file=sys.stderr, flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, process in running.values():  # Ctrl-C reaches them, too
            process.join()
    if failed:
        raise failed[0]
    return {job.name: found[job.name] for job in jobs}


def _send(sender: Connection, job: Job) -> None:
    """What a process of `spread` does."""
    try:
        sender.send(done(job)[1])
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # which does not travel by itself
        sender.send(error)


def done(job: Job) -> tuple[str, Any]:
    """The job's name and what it finds, which is kept in the run's folder; ValueError where that holds another study's."""
    torch.set_num_threads(job.run.train.threads or 1)
    settings = {"run": to_dict(job.run), **job.options}
    if not isinstance(job.run, recipes.CodecRun):
        settings["codec"] = Sonar.from_pretrained(job.run.codec).fingerprint()
    found = once(job.run.train.out / "report.json", settings, lambda: job.find(job, trained(job.run), **job.options))
    return job.name, found


def trained(run: Run) -> Path:
    """The folder of the trained model, which is trained first unless it was. ValueError where that was stopped before its end."""
    final = run.train.out / "final"
    if not (final / "config.json").is_file():
        train_run(run, start())
    if not (final / "config.json").is_file():
        raise ValueError(f"the training in {run.train.out} was stopped before its end; the same command goes on from there")
    return final


def once(file: Path, settings: dict[str, Any], find: Callable[[], Any]) -> Any:
    """What `find` gives, kept in `file`; the settings are noted beside it before. ValueError where others are noted there."""
    noted = file.with_name("settings.json")
    if noted.is_file() and (told := difference(json.loads(noted.read_text(encoding="utf-8")), settings)):
        raise ValueError(f"{file.parent} is of another study ({'; '.join(told)}); choose another --out, or delete it")
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_json(noted, settings)
        _write_json(file, find())
    return json.loads(file.read_text(encoding="utf-8"))


def _keep(out: Path, text: str, rows: dict[str, Any], figure: go.Figure | None = None) -> str:
    """The study's tables, numbers and figure, which any browser opens, in its folder."""
    write_atomically(out / "table.md", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    _write_json(out / "rows.json", rows)
    if figure is not None:
        write_atomically(out / "figure.html", lambda path: figure.write_html(path, include_plotlyjs=True))
    return text


def _write_json(file: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))


# ---------------------------------------------------------------------- objectives

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


def objectives(study: Objectives) -> str:
    """Train and judge what is not yet there; the table as text, also kept in `out`."""
    first, second = jobs(study)
    results = spread(first, study.jobs)
    results |= spread(second, study.jobs)  # which begin with what the first ones made
    rows: dict[str, list[list[float]]] = {}
    for name, report in results.items():
        row = name.rpartition(", seed ")[0]
        rows.setdefault(row, []).append([report["mean"][KEYS[metric]] for metric in METRICS])
    rows = {
        name: rows[name] for name in (*objective_study.PAPER, *(f"{pooling} pooling" for pooling in POOLINGS)) if name in rows
    }
    text = objective_study.table(rows) + "\n\n" + objective_study.verdicts(objective_study.orderings(rows))
    named = replace(study, bitext=tuple(Path(file).name for file in study.bitext), test=Path(study.test).name)
    return _keep(study.out, text, {"study": to_dict(named), "rows": rows})


def jobs(study: Objectives) -> tuple[list[Job], list[Job]]:
    """The runs that begin with random weights, then those that tune the decoders of SONAR's row.

    ValueError for a row that the table lacks, and for the tuned decoder without SONAR's row.
    """
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
    judging = {"test": study.test, "test_every": study.test_every}
    return Job(f"{name}, seed {seed}", replace(run, **fields), judge_codec, judging)


def _folder(study: Objectives, name: str, seed: int) -> Path:
    plain = name.replace(" + ", "-").replace("+ ", "").replace(" ", "_")
    return study.out / f"{plain}-{seed}"


def judge_codec(job: Job, folder: Path, test: str, test_every: int) -> dict[str, Any]:
    """The codec's report on every `test_every`-th row of `test`."""
    sonar = Sonar.from_pretrained(folder)
    rows = spoken(rows_of(test, every=test_every), sonar.languages)
    report = evaluate_codec(sonar, rows, beam_size=1, spbleu=False)
    print(f"{job.name}: " + ", ".join(f"{metric} {report['mean'][KEYS[metric]]:.1f}" for metric in METRICS), flush=True)
    return report


# ---------------------------------------------------------------------- the four families


@dataclass(frozen=True)
class ModelStudy:
    """What `families` and `scaling` have in common.

    Every model learns from `stories` training stories of StoryWorld, encoded by `codec`, `documents_per_step` a step, in the
    order of its seed; its loss is that of the first `valid_stories` of the validation set. `jobs` models are trained at
    once, with `threads` threads each. A study goes on where it was stopped, in the same `out` with the same options;
    `families`, seeds and `jobs` may change.
    """

    out: Path
    codec: str = "mini"
    families: tuple[str, ...] = tuple(recipes.FAMILIES)
    stories: int = 20_000
    valid_stories: int = 200
    documents_per_step: int = 32
    jobs: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        if unknown := set(self.families) - set(recipes.FAMILIES):
            raise ValueError(f"no family {', '.join(sorted(unknown))}; the families are {', '.join(recipes.FAMILIES)}")
        if min(self.stories, self.valid_stories, self.jobs, self.threads) < 1 or not self.families:
            raise ValueError(f"families, stories, valid_stories, jobs and threads must be at least 1: {self}")

    @property
    def train(self) -> Path:
        """The store to learn from."""
        return self.out / "stores" / f"train-{self.stories}"

    @property
    def valid(self) -> Path:
        """The store to be judged on."""
        return self.out / "stores" / f"valid-{self.valid_stories}"


def make_stores(study: ModelStudy) -> None:
    """The stores to learn from and to be judged on, unless they are there."""
    for corpus, limit, folder in (
        (f"storyworld:{study.stories}", None, study.train),
        ("storyworld:valid", study.valid_stories, study.valid),
    ):
        if not (folder / "manifest.json").is_file():
            encode_into(corpus, folder, Sonar.from_pretrained(study.codec), start(), limit=limit)


def model_run(study: ModelStudy, family: str, backbone: BackboneConfig, steps: int, seed: int, out: Path) -> recipes.StoreRun:
    """The mini recipe of a family, with these sizes; it is judged at its end only."""
    base = recipes.FAMILIES[family]("mini")
    optimizer = replace(base.train.optimizer, warmup_steps=min(base.train.optimizer.warmup_steps, steps // 10))
    return replace(
        base,
        data=study.train,
        valid=study.valid,
        codec=study.codec,
        backbone=backbone,
        batches=replace(base.batches, documents_per_step=study.documents_per_step),
        train=replace(
            base.train,
            out=out,
            steps=steps,
            seed=seed,
            threads=study.threads,
            eval_every=0,
            tensorboard=False,
            optimizer=optimizer,
        ),
    )


@dataclass(frozen=True)
class Families(ModelStudy):
    """Every model has this `backbone` (a diffusion LCM: two towers of as many weights) and learns for `steps` steps.

    What they add to it is of similar size but for the token-level model's embedding, which the table counts apart. They
    are judged on how they go on with `count` stories of `on`, which none of them has seen, for at most `max_sentences`
    sentences, and a token-level model for at most `max_tokens` tokens. A diffusion LCM's guidance is that of `guidances` with
    the highest mean of grammar, consistency and plot on the first `tuned_on` validation stories.
    """

    out: Path = Path("runs/families")
    backbone: BackboneConfig = recipes.SONAR_LLM_SIZES["mini"]
    steps: int = 1000
    seeds: tuple[int, ...] = (0,)
    on: str = "storyworld:test"
    count: int = 100
    max_sentences: int = 32
    max_tokens: int = 1024
    guidances: tuple[float, ...] = (0.8, 1.0, 1.5, 2.0, 3.0)
    tuned_on: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds or not self.guidances or min(self.steps, self.count, self.tuned_on) < 1:
            raise ValueError(f"there must be a seed and a guidance, and steps, count and tuned_on must be at least 1: {self}")


def families(study: Families) -> str:
    """Train and judge what is not yet there; the tables as text, also kept in `out` with all numbers (`rows.json`)."""
    make_stores(study)
    jobs = []
    for seed in study.seeds:
        for family in study.families:
            run = model_run(study, family, study.backbone, study.steps, seed, study.out / f"{family}-{seed}")
            judging: dict[str, Any] = {"on": study.on, "count": study.count, "max_sentences": study.max_sentences}
            if family == "token-llm":
                judging["max_tokens"] = study.max_tokens
            if family == "diffusion-lcm":
                judging |= {"guidances": list(study.guidances), "tuned_on": study.tuned_on}
            jobs.append(Job(f"{family}, seed {seed}", run, judge_stories, {"family": family, **judging}))
    results = spread(jobs, study.jobs)
    found = {
        family: [StoryEvaluation.from_dict(results[f"{family}, seed {seed}"]) for seed in study.seeds]
        for family in study.families
    }
    pools = [story_evaluation.pooled(of_family) for of_family in found.values()]
    notes = [*story_evaluation.notes(pools), f"{study.steps} steps of {study.documents_per_step} of {study.stories} stories"]
    if "diffusion-lcm" in study.families:
        chosen = ", ".join(f"{one.settings['options']['sampling']['guidance']:g}" for one in found["diffusion-lcm"])
        tried = ", ".join(f"{guidance:g}" for guidance in study.guidances)
        notes.append(f"guidance of the diffusion LCM: {chosen}, the best of {tried} on {study.tuned_on} validation stories")
    if len(study.seeds) > 1:
        notes.append(f"means of {len(study.seeds)} seeds; intervals are over stories, not over seeds (rows.json has each seed's)")
    parts = [story_evaluation.table(pools), story_evaluation.comparison_table(pools), "\n".join(f"- {note}" for note in notes)]
    rows = {
        "study": to_dict(study),
        "intervals": {one.model: {name: score.to_dict() for name, score in one.scores.items()} for one in pools},
        "seeds": {
            family: [{name: score.value for name, score in one.scores.items()} for one in of_family]
            for family, of_family in found.items()
        },
        "report": story_evaluation.report_of(pools),
    }
    figure = interval_figure({one.model: {name: one.scores[name] for name in SCORES} for one in pools})
    return _keep(study.out, "\n\n".join(filter(None, parts)), rows, figure)


def judge_stories(
    job: Job, folder: Path, family: str, on: str, count: int, guidances: Sequence[float] = (), tuned_on: int = 0, **options: Any
) -> dict[str, Any]:
    """How the model goes on with `count` stories of `on`."""
    model = load_model(folder)
    if guidances:
        found = {}
        for guidance in guidances:
            sampling = SamplingConfig(guidance=guidance)
            valid = story_evaluation.prompts_for("storyworld:valid", tuned_on)
            scores = evaluate_stories(model, valid, family, sampling=sampling, **options).scores
            found[sampling] = np.mean([scores[name].value for name in ORDERED])
            print(f"{job.name}: guidance {guidance:g} has {found[sampling]:.2f} on {tuned_on} validation stories", flush=True)
        options["sampling"] = max(found, key=lambda sampling: found[sampling])
    evaluation = evaluate_stories(model, story_evaluation.prompts_for(on, count), family, **options)
    told = ", ".join(f"{name} {evaluation.scores[name].value:.2f}" for name in story_evaluation.COMPARED)
    print(f"{job.name}: {told}", flush=True)
    return evaluation.to_dict()


# ---------------------------------------------------------------------- scaling


# Each has about three times the weights of the one before it, the last about as many as mini and half of them again.
SIZES = {
    "XS": BackboneConfig(hidden=96, ffn=320, layers=3, heads=3, head_dim=32),
    "S": BackboneConfig(hidden=160, ffn=512, layers=4, heads=5, head_dim=32),
    "M": BackboneConfig(hidden=256, ffn=832, layers=5, heads=4, head_dim=64),
    "L": BackboneConfig(hidden=384, ffn=1280, layers=6, heads=6, head_dim=64),
}


@dataclass(frozen=True)
class Scaling(ModelStudy):
    """Each family in these of `SIZES`, with `seeds` seeds for SONAR-LLM and `baseline_seeds` for the others.

    Every model takes `steps` steps. Losses, each in its family's own unit, are those of all validation stories; bits per byte,
    which all have in common, of the first `limit` of them, for a diffusion LCM without guidance.

    With two jobs on two cores (AVX-512 with bfloat16 products) the 24 models took two hours beside other work, the largest
    token-level model 42 minutes of them.
    """

    out: Path = Path("runs/scaling")
    sizes: tuple[str, ...] = tuple(SIZES)
    steps: int = 400
    seeds: int = 3
    baseline_seeds: int = 1
    limit: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.sizes) - set(SIZES):
            raise ValueError(f"no size {', '.join(sorted(unknown))}; the sizes are {', '.join(SIZES)}")
        if min(self.steps, self.seeds, self.baseline_seeds, self.limit) < 1:
            raise ValueError(f"steps, seeds, baseline_seeds and limit must be at least 1: {self}")


UNITS = ("loss", "bits_per_byte")


def scaling(study: Scaling) -> str:
    """Train and measure what is not yet there; laws and points as text, also kept in `out` with all numbers (`rows.json`)."""
    make_stores(study)
    jobs, of = [], []
    for size in study.sizes:
        for family in study.families:
            for seed in range(study.seeds if family == "sonar-llm" else study.baseline_seeds):
                run = model_run(study, family, SIZES[size], study.steps, seed, study.out / f"{family}-{size}-{seed}")
                jobs.append(Job(f"{family} {size}, seed {seed}", run, measure, {"limit": study.limit}))
                of.append({"family": family, "size": size, "seed": seed})
    results = spread(jobs, study.jobs)
    points = [known | results[job.name] for known, job in zip(of, jobs)]
    fits = {
        unit: {
            family: fit_scaling(
                [point["parameters"] for point in points if point["family"] == family],
                [point[unit] for point in points if point["family"] == family],
            )
            for family in study.families
        }
        for unit in UNITS
    }
    kept = {unit: {family: fit.to_dict() for family, fit in of_unit.items()} for unit, of_unit in fits.items()}
    text = "\n\n".join([scaling_points(points), *(scaling_laws(unit, of_unit, points) for unit, of_unit in fits.items())])
    text += (
        "\n\nParameters are those trained, a token embedding aside. Losses of different units do not compare, bits per byte do."
    )
    figure = scaling_figure(fits["bits_per_byte"], 10 * max(point["parameters"] for point in points))
    return _keep(study.out, text, {"study": to_dict(study), "points": points, "fits": kept}, figure)


def measure(job: Job, folder: Path, limit: int) -> dict[str, Any]:
    """The model's size, its last validation loss, and its bits per byte on the first `limit` stories of the same set."""
    assert isinstance(job.run, recipes.StoreRun)
    model = load_model(folder)
    last = [record for record in read_metrics(job.run.train.out / "metrics.jsonl") if record["kind"] == "eval"][-1]
    parameters, embedding = trained_parameters(model)
    found = {
        "parameters": parameters,
        "embedding_parameters": embedding,
        "loss": last[loss_key(last)],
        "unit": loss_key(last).removeprefix("loss_"),
        "bits_per_byte": bits_per_byte(model, Store(job.run.valid), limit, **guided_by(model, 1.0)).value,
    }
    print(f"{job.name}: loss {found['loss']:.4f} {found['unit']}, {found['bits_per_byte']:.4f} bits per byte", flush=True)
    return found


def scaling_points(points: Sequence[dict[str, Any]]) -> str:
    """Markdown: what each family has in each size, the mean of its seeds and half of their span."""
    lines = ["| family | size | parameters | seeds | loss | bits/byte |", "|---" * 6 + "|"]
    for family, size in dict.fromkeys((point["family"], point["size"]) for point in points):
        of_model = [point for point in points if (point["family"], point["size"]) == (family, size)]
        first = of_model[0]
        loss, bits = (_mean_and_span([point[unit] for point in of_model]) for unit in UNITS)
        beside = f" + {first['embedding_parameters'] / 1e6:.2f}M" if first["embedding_parameters"] else ""
        cells = (family, size, f"{first['parameters'] / 1e6:.2f}M{beside}", len(of_model), f"{loss} {first['unit']}", bits)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def scaling_laws(unit: str, fits: dict[str, ScalingFit], points: Iterable[dict[str, Any]]) -> str:
    """Markdown: the law of each family, or why there is none."""
    own = {point["family"]: point["unit"] for point in points}
    lines = [f"| {unit.replace('_', ' ')} | unit | a | alpha | b | R^2 | points |", "|---" * 7 + "|"]
    for family, fit in fits.items():
        named = own[family] if unit == "loss" else unit
        if fit.law is None:
            lines.append(f"| {family} | {named} | no law: {fit.problem} | | | | {len(fit.sizes)} |")
            continue
        parameters = " | ".join(str(fit.intervals[name]) for name in ("a", "alpha", "b"))
        lines.append(f"| {family} | {named} | {parameters} | {fit.r2:.4f} | {len(fit.sizes)} |")
    return "\n".join(lines)


def _mean_and_span(values: Sequence[float]) -> str:
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.4f}" + (f" ± {half:.4f}" if len(values) > 1 else "")


# ---------------------------------------------------------------------- poolings of speech


# arXiv 2308.11466, FLEURS, zero-shot BLEU into English: the mean of French and Spanish.
SPEECH_PAPER = {"mean": (22.9,), "max": (28.05,), "attention": (29.4,)}
SPEECH_METRICS = ("X-eng", "transcription", "word errors", "xsim")


@dataclass(frozen=True)
class Poolings:
    """A body of `layers` conformer layers, as wide as the codec's vectors, learns from `count` utterances of StoryWorld by
    espeak-ng; `test` has voices that it never heard.

    First it learns to hear, by mini's recipe: for `body_steps` steps the codec's text encoder pools. Then each pooling takes its
    place, for `steps` steps and with each of `seeds`, and the body learns on; attention brings a layer of its own. (In the paper
    the body was w2v-BERT, pretrained. From random weights for 700 steps of half a minute mean and max pooling missed 98 and 99 %
    of the searches.) `seconds_per_step` of sound a step; frames spell after layer `ctc_layer`. `jobs` encoders are trained at
    once, with `threads` threads each. The study goes on where it was stopped, in the same `out` with the same options.
    """

    out: Path = Path("runs/poolings")
    synthetic: Path = Path("stores/speech")
    codec: str = "mini"
    count: int = 16_000
    test: str = "synthetic:600@test-unheard"
    seeds: tuple[int, ...] = (0, 1, 2)
    body_steps: int = 3000
    steps: int = 600
    layers: int = 3
    heads: int = 4
    ffn: int = 512
    ctc_layer: int = 1
    seconds_per_step: float = 20.0
    jobs: int = 2
    threads: int = 1


def poolings(study: Poolings) -> str:
    """Train and judge what is not yet there; the table as text, also kept in `out`."""
    sonar = Sonar.from_pretrained(study.codec)
    for spec in (f"synthetic:{study.count}", study.test):  # once, before the jobs would each make them
        targets_of(speech_set(spec, synthetic=study.synthetic, progress=True), sonar, start())
    base = recipes.speech_mini()
    width = sonar.config.width
    train = replace(base.train, threads=study.threads, eval_every=0, save_every=0, tensorboard=False)
    body = BodyConfig(width, study.layers, study.heads, study.ffn, kernel=15, subsampling="convolution")
    run = replace(
        base,
        body=body,
        data=(f"synthetic:{study.count}",),
        valid=(study.test,),
        synthetic=study.synthetic,
        codec=study.codec,
        ctc_layer=study.ctc_layer,
        seconds_per_step=study.seconds_per_step,
        pooler_heads=study.heads,
        pooler_ffn=study.ffn,
    )

    def taking(steps: int, **changed: Any) -> TrainConfig:
        optimizer = replace(base.train.optimizer, warmup_steps=min(base.train.optimizer.warmup_steps, steps // 10))
        return replace(train, steps=steps, optimizer=optimizer, **changed)

    alone = taking(study.body_steps, out=study.out / "body", threads=study.jobs * study.threads, save_every=500)
    hearing = spread([Job("body, pooled by text", replace(run, train=alone), judge_speech, {"test": study.test})], 1)
    run = replace(run, init=f"body:{study.out / 'body' / 'final'}", piece_weight=0.0)
    jobs, rows = [], dict[str, list[list[float]]]()
    for seed in study.seeds:
        for pooling in ("mean", "max", "attention"):
            this = replace(run, pooling=pooling, train=taking(study.steps, out=study.out / f"{pooling}-{seed}", seed=seed))
            jobs.append(Job(f"{pooling}, seed {seed}", this, judge_speech, {"test": study.test}))
    for name, found in spread(jobs, study.jobs).items():
        rows.setdefault(name.partition(",")[0], []).append(found)
    shown = objective_study.table(rows, SPEECH_PAPER, SPEECH_METRICS, "pooling")
    orders = objective_study.verdicts(objective_study.orderings(rows, SPEECH_PAPER, SPEECH_METRICS))
    kept = {"study": to_dict(study), "metrics": SPEECH_METRICS, "rows": rows, "body": hearing}
    return _keep(study.out, f"{shown}\n\n{orders}", kept)


def judge_speech(job: Job, folder: Path, test: str) -> list[float]:
    """SPEECH_METRICS of the encoder."""
    assert isinstance(job.run, recipes.SpeechRun)
    sonar = Sonar.from_pretrained(job.run.codec)
    sonar.add_speech(SpeechEncoder.from_pretrained(folder))
    judged_on = speech_set(test, synthetic=job.run.synthetic)
    report = evaluate_speech(sonar, judged_on.utterances, judged_on.translations, beam_size=1)
    spoken_in = report["languages"]
    into = np.mean([row["bleu_into_eng_Latn"] for code, row in spoken_in.items() if code != "eng_Latn"]).item()
    search = np.mean([row["xsim" if code == "eng_Latn" else "xsim_to_eng_Latn"] for code, row in spoken_in.items()]).item()
    found = [into, report["mean"]["bleu"], report["mean"]["wer"], search]
    print(f"{job.name}: " + ", ".join(f"{name} {value:.1f}" for name, value in zip(SPEECH_METRICS, found)), flush=True)
    return found


STUDIES: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "objectives": (Objectives, objectives),
    "families": (Families, families),
    "scaling": (Scaling, scaling),
    "poolings": (Poolings, poolings),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the study that the arguments name and print its tables; by default those of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in STUDIES:
        print(__doc__)
        raise SystemExit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    config, run = STUDIES[arguments[0]]
    with user_errors():
        print(run(tyro.cli(config, prog=f"study.py {arguments[0]}", args=arguments[1:], config=(tyro.conf.OmitArgPrefixes,))))


if __name__ == "__main__":
    main()
