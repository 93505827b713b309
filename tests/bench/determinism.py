"""What is the same to the last bit when it is done again, and by how much the rest differs.

    python tests/bench/determinism.py      # five minutes on two cores

Encodes, decodes, builds a store, trains a SONAR-LLM for some steps, tells stories and draws a map with the shipped weights: twice
with the same seed and number of threads, once with half the threads, once on two ranks; each in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from sonarkit import encode, train
from sonarkit.codec.pipeline import Sonar
from sonarkit.explore import figures, geometry
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.text.storyworld import stories
from sonarkit.training.metrics import loss_key, read_metrics

STEPS = 20
ENTRIES = Path(train.__file__).parent


def main(
    threads: int = 2, keep: Path | None = None, work: Annotated[Path | None, tyro.conf.arg(help="One of the processes.")] = None
) -> None:
    """The table as Markdown; `keep` is a folder to leave everything in."""
    if work:
        do_everything(work, threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = keep or Path(folder)
        for name, count in (("once", threads), ("again", threads), ("fewer", max(1, threads // 2))):
            run([__file__, "--work", root / name, "--threads", count])
        two_ranks(root / "ranks", max(1, threads // 2))
        print("| | done again | half the threads |\n|---|---|---|")
        for what, same, other in rows(root):
            print(f"| {what} | {same} | {other} |")
        print(f"\n{told_of_ranks(root)}\n{told_of_batches()}")


def do_everything(out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    out.mkdir(parents=True)
    sonar, texts = Sonar.from_pretrained("mini"), sentences()
    vectors_ND = sonar.encode(texts)
    np.save(out / "vectors.npy", vectors_ND.numpy())
    write(out / "decoded.json", sonar.decode(vectors_ND[:64], "fra_Latn", beam_size=5))
    encode.main(["storyworld:60", str(out / "store")])
    train.main([*training(out / "store", out / "run", threads)])
    told = SonarLLM.from_pretrained("mini").generate(prompts(), noise=0.2, seed=1)
    write(out / "stories.json", [story.sentences for story in told])
    plane_N2 = geometry.umap_map(vectors_ND.numpy())
    (out / "map.json").write_text(figures.sentence_map(plane_N2, texts, ["eng_Latn"] * len(texts)).to_json())


def two_ranks(out: Path, threads: int) -> None:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"]
    run([*launch, ENTRIES / "encode.py", "storyworld:60", out / "store"])
    run([*launch, ENTRIES / "train.py", *training(out / "store", out / "run", threads)])


def training(store: Path, out: Path, threads: int) -> list[str]:
    given = {"data": store, "valid": store, "steps": STEPS, "log-every": 1, "precision": "float32", "threads": threads}
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    return ["sonar-llm", "--size", "mini", *words, "--out", str(out), "--no-tensorboard"]


def sentences() -> list[str]:
    return [text for story in stories(40, seed=3) for text in story.sentences["eng_Latn"]]


def prompts() -> list[str]:
    return [" ".join(story.sentences["eng_Latn"][:2]) for story in stories(8, seed=4)]


def run(arguments: list[object]) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# ---------------------------------------------------------------------- what came out


def rows(root: Path) -> list[tuple[str, str, str]]:
    once, again, fewer = (root / name for name in ("once", "again", "fewer"))
    found = []
    for what, part, difference in (
        ("vectors of some hundred sentences", "vectors.npy", largest),
        ("64 of them said in French, beam 5", "decoded.json", unlike),
        ("a store", "store", store_difference),
        (f"losses of {STEPS} training steps, float32", "run/metrics.jsonl", loss_difference),
        ("the trained weights", "run/final/model.safetensors", None),
        ("8 stories, noise 0.2", "stories.json", unlike),
        ("their map by UMAP, as a figure", "map.json", None),
    ):
        cells = []
        for other in (again, fewer):
            if difference is loss_difference:
                same = losses(once / part) == losses(other / part)
            else:
                same = contents(once / part) == contents(other / part)
            cells.append("bitwise" if same else difference(once / part, other / part) if difference else "another")
        found.append((what, *cells))
    return found


def contents(place: Path) -> dict[str, bytes]:
    files = [file for file in place.rglob("*") if file.is_file()] if place.is_dir() else [place]
    return {file.name: file.read_bytes() for file in files}


def largest(one: Path, other: Path) -> str:
    return f"up to {np.abs(np.load(one) - np.load(other)).max():.0e}"


def unlike(one: Path, other: Path) -> str:
    pairs = list(zip(json.loads(one.read_text("utf-8")), json.loads(other.read_text("utf-8")), strict=True))
    return f"{sum(a != b for a, b in pairs)} of {len(pairs)} differ"


def store_difference(one: Path, other: Path) -> str:
    a, b = contents(one), contents(other)
    return f"{sum(a[name] != b.get(name) for name in a)} of {len(a)} files differ"


def losses(file: Path) -> list[float]:
    return [record[loss_key(record)] for record in read_metrics(file) if record["kind"] == "train"]


def loss_difference(one: Path, other: Path) -> str:
    apart = max(abs(a - b) / a for a, b in zip(losses(one), losses(other), strict=True))
    return f"up to {apart:.0e} of the loss"


def told_of_ranks(root: Path) -> str:
    one, two = root / "fewer", root / "ranks"
    same = contents(one / "store") == contents(two / "store")
    store = "the store is the same to the last bit" if same else store_difference(one / "store", two / "store")
    return f"Two ranks and one, with as many threads each: {store}; losses {loss_difference(*metrics(one, two))}."


def metrics(one: Path, two: Path) -> tuple[Path, Path]:
    return one / "run/metrics.jsonl", two / "run/metrics.jsonl"


def told_of_batches() -> str:
    sonar, texts = Sonar.from_pretrained("mini"), sentences()[:64]
    together = sonar.encode(texts)
    alone = torch.cat([sonar.encode([text]) for text in texts])
    rounded = sonar.bfloat16().encode(texts).float()
    cosine = torch.cosine_similarity(rounded, together).min()
    apart = (alone - together).abs().max()
    return f"A sentence alone and among 64: up to {apart:.0e}. In bfloat16: a cosine of {cosine:.5f} to float32, or more."


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
