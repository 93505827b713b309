"""What a run says: one JSON object a line in a file, one short line on the console.

Every record has `kind`, "train" or "eval", the `step` it was written after, and the `seconds` the run had taken. The
keys of a `train` record are those of `loop._train_record`; those of an `eval` record are the task's results. A result
may be a text: `sample` is a story told by the model as it then was, its prompt included.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sonarkit.core.checkpoint import write_atomically


class RunLog:
    """Rank 0's voice: appends records to a JSONL file and keeps the console to one line. Other ranks stay silent.

    A run that goes on from `step` first drops the records beyond it, which it will write again. On a terminal
    the console is a progress bar, elsewhere a line per record.
    """

    def __init__(self, path: Path, step: int, steps: int, speaks: bool = True) -> None:
        self.path, self.steps, self.speaks = path, steps, speaks
        self._bar = tqdm(
            total=steps, initial=step, desc="train", unit="step", dynamic_ncols=True, disable=not (speaks and sys.stderr.isatty())
        )
        if not speaks:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = "".join(json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step)
            write_atomically(path, lambda temporary: temporary.write_text(kept, encoding="utf-8"))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  (held open for the run)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self.speaks:
            self._file.close()

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def train(self, record: dict[str, Any]) -> None:
        """Write a `train` record; `loss_nats_per_token` is None when every update since the last one was skipped."""
        self._write({"kind": "train", **record})
        loss = record["loss_nats_per_token"]
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
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"could not write {self.path} ({error}); the checkpoints are kept. Free space and run the same command again"
            ) from error


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a last line cut by a crash is left out. ValueError for any other bad line."""
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}; move the file away") from error
    return records


def peak_memory_gb(device: torch.device) -> float:
    """The most memory this process has used, in 1e9 bytes: on the GPU, or resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
