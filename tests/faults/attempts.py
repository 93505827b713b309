"""What the fault tests disturb: encoding, training and saving, small, each attempt in a process of its own.

The processes are forked from one that has imported everything, so that an attempt costs what it does and not what torch takes
to be imported. A moment is counted in calls, of Python's functions and of C's, in all threads: it comes wherever the work is,
between any two of them, whatever else the machine does.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.checkpoint import distributed_checkpoint
from sonarkit.core.distributed import World
from sonarkit.core.peak import matrix_peak
from sonarkit.encode import Stopped, _stopping_on_sigterm, encode_into
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.store.reader import Store
from sonarkit.text.sentences import split_sentences
from sonarkit.text.tokenizer import train_tokenizer
from sonarkit.training.concept_task import ConceptDataConfig, ConceptTask
from sonarkit.training.loop import TrainConfig, train
from sonarkit.training.metrics import read_metrics
from sonarkit.training.optimizer import OptimizerConfig

ALONE = World(0, 1, 0, torch.device("cpu"))
STORIES = [" ".join(f"Fox {i * j % 9} ran to tree {j}." for j in range(4)) + " Night fell." for i in range(10)]
STEPS = 6
ENDLESS = 1 << 60


def tiny_codec() -> Sonar:
    """A codec of random weights, the same in every process."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(STORIES * 9, 285, ("eng_Latn", "fra_Latn"))
    shape = {"width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "ffn": 16, "dropout": 0.0, "max_tokens": 48}
    sonar = Sonar(codec_config(tokenizer.languages, tokenizer.size, **shape), tokenizer).eval()
    sonar.name = "tiny"
    return sonar


CODEC = tiny_codec()
# what is read, imported or measured once a process: here, once for all attempts
torch.set_num_threads(1)
split_sentences(STORIES[0], "eng_Latn")
distributed_checkpoint()
matrix_peak(ALONE.device, torch.float32)

# ---------------------------------------------------------------------- the work


def write_stories(path: Path) -> Path:
    path.write_text("\n\n".join(STORIES), encoding="utf-8")
    return path


def encode(corpus: Path, store: Path) -> None:
    """Five shards; SIGTERM ends it as it ends the command."""
    with suppress(Stopped), _stopping_on_sigterm():
        encode_into(str(corpus), store, CODEC, ALONE, documents_per_shard=2)


def new_llm() -> SonarLLM:
    backbone = BackboneConfig(hidden=16, ffn=16, layers=1, heads=2, head_dim=8)
    return SonarLLM(SonarLLMConfig(backbone, CODEC.config.width, CODEC.name, CODEC.fingerprint()), CODEC)


def train_llm(store: Path, out: Path, world: World = ALONE, **settings: Any) -> None:
    """Six steps, a checkpoint after every second."""
    torch.manual_seed(0)
    opened, data = Store(store, verify=True), ConceptDataConfig(documents_per_step=3, micro_tokens=250)
    task = ConceptTask(new_llm(), [opened], opened, data, seed=1)
    options = {"steps": STEPS, "log_every": 1, "save_every": 2, "tensorboard": False} | settings
    train(task, TrainConfig(out, optimizer=OptimizerConfig(lr=1e-2, warmup_steps=2), **options), world)


def save(folder: Path, seed: int = 1) -> None:
    """A model over the one that lies there."""
    torch.manual_seed(seed)
    new_llm().save_pretrained(folder)


# ---------------------------------------------------------------------- what came of it


def contents(folder: Path) -> dict[str, bytes]:
    """The files under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def losses(out: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every step, as the metrics file has them, to the last bit."""
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [(record["step"], record["loss_nats_per_token"], record["grad_norm"]) for record in records]


# ---------------------------------------------------------------------- attempts


def moments(calls: int, count: int = 20, seed: int = 0) -> list[int]:
    """So many moments of a work of so many calls, one at random in each equal part of it."""
    rng = random.Random(seed)
    return [1 + int(0.998 * calls * (i + rng.random()) / count) for i in range(count)]


@contextmanager
def begun(
    work: Callable[..., None], *arguments: Any, end: int = signal.SIGKILL, after: int | None = None
) -> Iterator[tuple[multiprocessing.process.BaseProcess, Any]]:
    """`work(*arguments)` in a process of its own, which sends itself the signal `end` after so many calls; and their number."""
    calls = _forks().RawValue("q")
    process = _forks().Process(target=_work, args=(work, arguments, end, after, calls))
    process.start()
    try:
        yield process, calls
    finally:
        process.kill()
        process.join()


@cache
def _forks() -> Any:
    """Processes forked from one that has imported this file: it must find it (before Python 3.13 it is not told where)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["attempts"])
    found = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with patch.dict(os.environ, PYTHONPATH=found):
        multiprocessing.forkserver.ensure_running()
    return context


def attempt(work: Callable[..., None], *arguments: Any, end: int = signal.SIGKILL, after: int | None = None) -> int | None:
    """The exit status of such a process: that of the signal, negative, if it ended by it."""
    with begun(work, *arguments, end=end, after=after) as (process, _):
        process.join()
        return process.exitcode


def calls_of(work: Callable[..., None], *arguments: Any) -> int:
    """How many calls the work takes when nothing disturbs it."""
    with begun(work, *arguments, after=ENDLESS) as (process, calls):
        process.join()
        assert process.exitcode == 0
        return calls.value


def _work(work: Callable[..., None], arguments: tuple[Any, ...], end: int, after: int | None, calls: Any) -> None:
    def count(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            calls.value += 1
            if calls.value == after:
                os.kill(os.getpid(), end)

    if after is not None:
        threading.setprofile(count)
        sys.setprofile(count)
    try:
        work(*arguments)
    finally:
        sys.setprofile(None)
