"""Does it keep its pace and its memory when there is a lot to do?

    python tests/bench/load.py                                 # 1.09 million sentences
    python tests/bench/load.py --documents 4000 --told 200     # some minutes on two cores

Encodes so many StoryWorld stories with `mini` and prints rate and memory by tenths, opens the store in a new process, tells
stories in batches of 64, and runs notebooks six times in one kernel.
"""

from __future__ import annotations

import gc
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import tyro
from nbclient import NotebookClient

from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.text.storyworld import stories

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
BATCH = 64
RUNS = 6  # of a notebook in one kernel: an allocator needs some until it asks for no more
PROBE = """
import gc, os, warnings, torch
warnings.simplefilter("ignore")
gc.collect()
print(os.getpid(), sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)))
"""
SAMPLE = 0.5  # seconds between two looks at the memory


def main(
    documents: int = 100_000,
    told: int = 1000,
    notebooks: tuple[str, ...] = ("00_start_here", "03_embedding_space", "06_generation"),
    folder: Path | None = None,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        store = (folder or Path(temporary)) / "store"
        encoding(store, documents)
        opening(store)
    telling(told)
    for name in notebooks:
        run_again(name)


def encoding(store: Path, documents: int) -> None:
    """`encode.py` as a user starts it; the memory of the process, and how far its shards are, are looked at from outside."""
    entry = NOTEBOOKS.parent / "sonarkit" / "encode.py"
    looks: list[tuple[float, int, float]] = []  # seconds, finished shards, MiB
    with subprocess.Popen(
        [sys.executable, entry, f"storyworld:{documents}", store], stdout=subprocess.PIPE, text=True
    ) as process:
        began = time.monotonic()
        while process.poll() is None:
            done = len(list(store.glob("*.arrow"))) if store.is_dir() else 0
            looks.append((time.monotonic() - began, done, mebibytes(process.pid)))
            time.sleep(SAMPLE)
        print((process.stdout.read() if process.stdout else "").strip())
        if process.returncode:
            raise SystemExit(f"encode.py ended with {process.returncode}")
    first = next(at for at, (_, done, _) in enumerate(looks) if done)
    print(f"planning, until the first shard is there: {looks[first][0]:.0f} s, {max(size for *_, size in looks[:first]):.0f} MiB")
    tenths = np.array_split(np.arange(first, len(looks)), 10)
    for number, tenth in enumerate(tenths, 1):
        (start, shards, _), (end, later, _) = looks[tenth[0]], looks[tenth[-1]]
        size = max(looks[at][2] for at in tenth)
        print(f"tenth {number:2}: {(later - shards) / max(end - start, 1e-9) * 60:6.1f} shards a minute, at most {size:.0f} MiB")


def opening(store: Path) -> None:
    code = (
        "import time; from sonarkit.store.reader import Store; began = time.perf_counter(); "
        f"store = Store({str(store)!r}); n = len(store); opened = time.perf_counter() - began; store[n - 1]; "
        "print(f'{n} documents opened in {opened:.3f} s, the last one read by {time.perf_counter() - began:.3f} s')"
    )
    print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def telling(count: int) -> None:
    model = SonarLLM.from_pretrained("mini")
    prompts = [story.sentences["eng_Latn"][0] for story in stories(count, seed=5)]
    sizes, began, sentences = [], time.monotonic(), 0
    for start in range(0, count, BATCH):
        with highest() as size:
            sentences += sum(len(story.sentences) for story in model.generate(prompts[start : start + BATCH]))
        gc.collect()
        sizes.append(size[0])
    seconds = time.monotonic() - began
    print(
        f"{count} stories ({sentences} sentences) in batches of {BATCH}: {count / seconds:.1f} stories/s; "
        f"at most {sizes[0]:.0f} MiB in the first batch, {max(sizes):.0f} in any, {sizes[-1]:.0f} in the last"
    )


@contextmanager
def highest() -> Iterator[list[float]]:
    """The most memory that this process had while the block ran, in MiB."""
    size, stop = [mebibytes()], threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            size[0] = max(size[0], mebibytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield size
    finally:
        stop.set()
        watcher.join()


def run_again(name: str) -> None:
    """All cells of a notebook in one kernel, again and again: every run should end with the same tensors."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    sizes, tensors = [], []
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}})
        with client.setup_kernel():
            cells = [(at, cell) for at, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
            for _ in range(RUNS):
                for at, cell in cells:
                    client.kc.session.metadata["cellId"] = cell.id  # as JupyterLab says it: widgets go by it
                    client.execute_cell(cell, at)
                probe = nbformat.v4.new_code_cell(PROBE)
                client.execute_cell(probe, 0)
                pid, held = map(int, probe.outputs[0].text.split())
                sizes.append(f"{mebibytes(pid):.0f}")
                tensors.append(f"{held / 2**20:.1f}")
    print(f"{name}: {', '.join(sizes)} MiB after each run in one kernel, of which tensors {', '.join(tensors)}")


def mebibytes(pid: int | None = None) -> float:
    """Memory of a process that is in use now (Linux; elsewhere the most that this one ever had)."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
