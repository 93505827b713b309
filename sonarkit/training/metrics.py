"""What a run says: one JSON object a line in a file, one short line on the console; TensorBoard and W&B where wanted.

Every record has `kind`, "train" or "eval", the `step` it was written after, and the `seconds` the run had taken, all its
sittings together. A `train` record tells of the steps since the one before it:

| key | unit |
|---|---|
| `loss_nats_per_token` | nats; mean over the target tokens of all ranks, null when every update was skipped |
| `bits_per_byte` | bits per byte of the target text, UTF-8: what models with other tokens are compared by |
| `tokens_per_s`, `sentences_per_s` | target tokens and sentences of all ranks a second of training (no evaluation, no saving) |
| `mfu` | share, 0 to 1, of what matrix products reach on these devices (`core.peak`) at the FLOPs of `models.flops` |
| `lr` | the last step's learning rate |
| `grad_norm` | the last step's global gradient norm before clipping, null when not finite |
| `gpu_memory_gb` or, on a CPU, `peak_memory_gb` | 1e9 bytes, the most that rank 0 has used so far |
| `imbalance` | tokens of the busiest rank over the mean of all, 1 is even; only with several ranks |
| `data_share` | share, 0 to 1, of the time that rank 0 waited for batches |
| `skipped_updates` | steps not taken since loss or gradient were not usable |
| `seconds_left` | seconds to the last step at the speed so far |

Of a family that learns by distance the loss is called by another unit, such as `loss_squared_distance_per_sentence`, and
`tokens_per_s` and `imbalance` count what that is divided by: sentences, or utterances of speech. In a record the loss is the
first key that begins with `loss_`.

The keys of an `eval` record are the task's results. A result may be a text: `sample` is a story told by the model as it
then was, its prompt included.
"""

from __future__ import annotations

import html
import json
import math
import resource
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from sonarkit.core.checkpoint import write_atomically
from sonarkit.core.foreign import parse_json

# what every record of a kind holds beside its loss or results
NUMBERS = {"train": ("step", "seconds", "lr", "tokens_per_s", "seconds_left"), "eval": ("step", "seconds")}


def loss_key(record: Mapping[str, Any]) -> str:
    """What a record calls the loss. ValueError where it has none."""
    for key in record:
        if key.startswith("loss_"):
            return key
    raise ValueError(f"the record has no loss; its keys are {', '.join(record)}")


class Sink(Protocol):
    """Where records go beside the JSONL file."""

    def write(self, kind: str, step: int, values: dict[str, float | str]) -> None:
        """The numbers and texts of a record, by its keys."""

    def close(self, failed: bool) -> None:
        """The run has ended; `failed` by an error."""


class RunLog:
    """Rank 0's voice: appends records to a JSONL file and keeps the console to one line. Other ranks stay silent.

    A run that goes on from `step` first drops the records beyond it, which it will write again. On a terminal
    the console is a progress bar, elsewhere a line per record.

    With `tensorboard` the same numbers and texts go to event files in the folder `tensorboard` beside `path`, where the
    package is installed; `wandb` names a Weights & Biases project to report to, and `config` is what it shows as the run's.
    ValueError when wandb is asked for and not installed, OSError when a record cannot be written.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        steps: int,
        speaks: bool = True,
        *,
        tensorboard: bool = False,
        wandb: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.steps, self.speaks = path, steps, speaks
        self._sinks: list[Sink] = []
        self._bar = tqdm(
            total=steps, initial=step, desc="train", unit="step", dynamic_ncols=True, disable=not (speaks and sys.stderr.isatty())
        )
        if not speaks:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = "".join(json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step)
            write_atomically(path, lambda temporary: temporary.write_text(kept, encoding="utf-8"))
        if wandb:
            self._sinks.append(WeightsAndBiases(wandb, path.parent, config or {}))
        if tensorboard:
            try:
                self._sinks.append(TensorBoard(path.parent / "tensorboard", step))
            except ImportError:
                self.say("no TensorBoard files, since the package is missing (metrics.jsonl has it all): pip install tensorboard")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (held open for the run)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        try:
            if self.speaks:
                self._file.close()
            for sink in self._sinks:
                sink.close(failed=error is not None)
        except OSError as late:  # a full disk tells again what it could not write before
            if error is None:
                raise self._not_written(late) from late

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def train(self, record: dict[str, Any]) -> None:
        """Write a `train` record; its loss is None when every update since the last one was skipped."""
        self._write({"kind": "train", **record})
        loss = record[loss_key(record)]
        told = f"loss {'-' if loss is None else f'{loss:.4f}'}  lr {record['lr']:.2e}  {record['tokens_per_s']:.0f} tokens/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(told)  # the bar itself tells step and remaining time
        else:
            self.say(f"step {record['step']}/{self.steps}  {told}  {tqdm.format_interval(record['seconds_left'])} left")

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write an `eval` record. On the console its texts follow, a line each."""
        self._write({"kind": "eval", **record})
        results = {key: value for key, value in record.items() if key not in ("step", "seconds")}
        told = ", ".join(f"{key} {value:.4g}" for key, value in results.items() if not isinstance(value, str))
        self.say(f"step {record['step']}/{self.steps}  evaluation: {told}")
        for key, text in results.items():
            if isinstance(text, str):
                self.say(f"  {key}: {' '.join(text.split())}")

    def say(self, line: str) -> None:
        """A line on standard output, above the bar."""
        if self.speaks:
            tqdm.write(line)
            sys.stdout.flush()

    def _write(self, record: dict[str, Any]) -> None:
        if not self.speaks:
            return
        shown = {k: v for k, v in record.items() if k not in ("kind", "step") and isinstance(v, int | float | str)}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            for sink in self._sinks:
                sink.write(record["kind"], record["step"], shown)
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> OSError:
        return OSError(
            f"could not write {self.path} ({error}); the checkpoints are kept. Free space and run the same command again"
        )


class TensorBoard:
    """Event files; `train/lr` and so on over the step. ImportError without the package."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        # A run that goes on writes the steps beyond `step` again: what is there of them is not to be shown.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def write(self, kind: str, step: int, values: dict[str, float | str]) -> None:
        for key, value in values.items():
            if isinstance(value, str):
                self._writer.add_text(f"{kind}/{key}", value, step)
            else:
                self._writer.add_scalar(f"{kind}/{key}", value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `project`; its id is kept in `out`/wandb_id, so that who goes on goes on there, too.

    W&B drops what comes for a step it already has: a resumed run repeats those numbers anyway.
    """

    def __init__(self, project: str, out: Path, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(f"reporting to the W&B project {project!r} needs the package: pip install wandb") from error
        path = out / "wandb_id"
        if not path.is_file():
            write_atomically(path, lambda temporary: temporary.write_text(secrets.token_hex(4), encoding="utf-8"))
        self._html, known = wandb.Html, path.read_text(encoding="utf-8").strip()
        self._run = wandb.init(project=project, id=known, resume="allow", name=out.name, dir=str(out), config=config)

    def write(self, kind: str, step: int, values: dict[str, float | str]) -> None:
        shown = {
            f"{kind}/{key}": self._html(f"<p>{html.escape(value)}</p>") if isinstance(value, str) else value
            for key, value in values.items()
        }
        self._run.log(shown, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut by a crash is left out. ValueError for any other line that is none."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if not _is_record(record):
            numbers = ", ".join(NUMBERS["train"])
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got {line[:60]!r} (of kind train or eval, with numbers for "
                f"{numbers}); move the file away"
            )
        records.append(record)
    return records


def _is_record(record: Any) -> bool:
    names = NUMBERS.get(str(record.get("kind"))) if isinstance(record, dict) else None
    if names is None or not isinstance(record.get("sample", ""), str):
        return False
    endless = [value for value in record.values() if isinstance(value, int) and abs(value) >= 2**63]  # JSON has such integers
    return not endless and all(type(record.get(name)) in (int, float) and abs(record[name]) < math.inf for name in names)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has used, in 1e9 bytes: on the GPU, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
