"""`encode.py` and `train.py` as users start them: as files, under torchrun, from elsewhere, and killed on the way.

The codec has random weights and a width of 32; what is tested is the machinery, on stories that ship and on real ones.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import PACKAGE, Finished, assert_refused, run, start, torchrun

from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.store.reader import Store
from sonarkit.training.metrics import read_metrics

TINY = ["--hidden", 32, "--ffn", 64, "--layers", 1, "--heads", 2, "--head-dim", 16, "--precision", "float32"]


def encode(*arguments: Any) -> list[Any]:
    return [PACKAGE / "encode.py", *arguments]


def training(store: Path, valid: Path, codec: Path, out: Path, **options: Any) -> list[Any]:
    """The arguments of a tiny SONAR-LLM run that logs every step."""
    options = {"steps": 6, "documents_per_step": 8, "lr": 1e-2, "warmup_steps": 2, "log_every": 1, **options}
    flags = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), value)]
    return ["sonar-llm", "--size", "mini", *TINY, "--data", store, "--valid", valid, "--codec", codec, "--out", out, *flags]


def losses(out: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every training record."""
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [(record["step"], record["loss_nats_per_token"], record["grad_norm"]) for record in records]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until `condition` holds; the process must still be at work then."""
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it took longer than a minute"
        time.sleep(0.002)


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill the process with all its children, and wait."""
    os.killpg(process.pid, signal.SIGKILL)
    return process.communicate(timeout=60)


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in (line.split() for line in listing.splitlines()) if int(parent) == pid]


def contents(store: Path) -> dict[str, bytes]:
    """The files of a store, without what a killed writer left half written."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.suffix != ".tmp"}


@pytest.fixture(scope="module")
def stories(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A store of 40 StoryWorld stories and one of 4, made by one process."""
    folder = tmp_path_factory.mktemp("stores")
    for name, corpus in (("train", "storyworld:40"), ("valid", "storyworld:4@1")):
        made = run(encode(corpus, folder / name, "--codec", codec, "--documents-per-shard", 4))
        assert made.returncode == 0, made.stderr
    return folder / "train", folder / "valid"


# ---------------------------------------------------------------------- encoding


def test_two_ranks_build_the_store_of_one(stories: tuple[Path, Path], codec: Path, tmp_path: Path) -> None:
    """Started in a folder with modules named like libraries': the entry must not depend on where it is started."""
    made = run(torchrun(2, "encode.py", "storyworld:40", "two", "--codec", codec, "--documents-per-shard", 4), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("two: 40 documents, ") and "dropped: none" in made.stdout
    assert contents(tmp_path / "two") == contents(stories[0])


def test_encoding_goes_on_after_a_rank_was_killed(codec: Path, tmp_path: Path) -> None:
    options = ["storyworld:1500", "--codec", codec, "--documents-per-shard", 20]
    process = start(torchrun(2, "encode.py", options[0], "killed", *options[1:]), cwd=tmp_path)
    wait_for(lambda: len(list((tmp_path / "killed").glob("*.arrow"))) > 3, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (tmp_path / "killed" / "manifest.json").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.json")}
    with pytest.raises(FileNotFoundError, match="unfinished store; run the same encode command again"):
        Store(tmp_path / "killed")

    again = run(torchrun(2, "encode.py", options[0], "killed", *options[1:]), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {name: (tmp_path / "killed" / name).stat().st_mtime_ns for name in finished} == finished  # not made twice
    whole = run(encode(options[0], tmp_path / "whole", *options[1:]))
    assert whole.returncode == 0, whole.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(Store(tmp_path / "killed", verify=True)) == 1500


def test_bad_corpora_are_refused_and_what_is_dropped_is_told(codec: Path, tmp_path: Path) -> None:
    rows = ['{"story": "A fox ran home. He slept."}', '{"story": ""}', '{"story": null}', '{"story": "' + "A bear. " * 3 + '"}']
    rows.append('{"story": "' + "The fox ran and ran and ran " * 9 + 'home."}')
    (tmp_path / "mine.jsonl").write_text("\n".join(rows) + "\n")
    options = ["--codec", codec]
    assert_refused(run(encode("mine.jsonl", "store", *options), cwd=tmp_path), "no column 'text'", "the columns are story")
    (tmp_path / "store" / "stamp.json").unlink()
    made = run(encode("mine.jsonl", "store", *options, "--column", "story"), cwd=tmp_path)
    assert made.returncode == 0 and made.stdout.startswith("store: 3 documents, 6 sentences")
    assert "1 empty" in made.stdout and "1 not a text" in made.stdout
    assert made.stderr == "sonarkit: note: 1 of 6 sentences were longer than 46 tokens and were cut\n"
    assert max(len(ids) for ids in Store(tmp_path / "store")[2].tokens) == 46

    (tmp_path / "latin1.jsonl").write_bytes(b'{"text": "A fox."}\n{"text": "L\xf6we"}\n')
    assert_refused(run(encode("latin1.jsonl", "other", *options), cwd=tmp_path), "latin1.jsonl:2: not valid UTF-8")
    found = run(encode("mine.jsonl", "other", *options, "--lang", "en"), cwd=tmp_path)
    assert_refused(found, "did you mean eng_Latn?")


# ---------------------------------------------------------------------- training


def test_one_rank_and_two_take_the_same_steps(stories: tuple[Path, Path], codec: Path, tmp_path: Path) -> None:
    one = run([PACKAGE / "train.py", *training(*stories, codec, tmp_path / "one")], cwd=tmp_path)
    two = run(torchrun(2, "train.py", *training(*stories, codec, Path("two"), micro_tokens=700)), cwd=tmp_path)
    assert one.returncode == 0 and two.returncode == 0, one.stderr + two.stderr
    alone, together = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [step for step, _, _ in alone] == [1, 2, 3, 4, 5, 6]
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    judged = [read_metrics(tmp_path / name / "metrics.jsonl")[-1] for name in ("one", "two")]
    assert judged[0]["kind"] == judged[1]["kind"] == "eval"
    assert judged[1]["loss_nats_per_token"] == pytest.approx(judged[0]["loss_nats_per_token"], rel=1e-5)


def test_a_killed_run_goes_on_as_if_nothing_had_been(stories: tuple[Path, Path], codec: Path, tmp_path: Path) -> None:
    options = {"steps": 60, "save_every": 10, "micro_tokens": 700}

    def command(out: str, **changes: Any) -> list[Any]:
        return [PACKAGE / "train.py", *training(*stories, codec, tmp_path / out, **options | changes)]

    whole = run(command("whole"))
    assert whole.returncode == 0, whole.stderr
    process = start(command("killed"))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") > 24, process)
    end(process)
    before = losses(tmp_path / "killed")
    assert 24 < len(before) < 60 and not (tmp_path / "killed" / "final").exists()

    refused = run(command("killed", lr=2e-2))
    assert_refused(refused, "another configuration", "optimizer.lr: 0.01 -> 0.02")
    assert losses(tmp_path / "killed") == before  # nothing was lost by asking

    again = run(command("killed"))
    assert again.returncode == 0 and re.search(r"resumed .* from step \d0 of 60", again.stdout)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")  # bit for bit
    weights = "final/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_two_ranks_go_on_after_one_was_killed(stories: tuple[Path, Path], codec: Path, tmp_path: Path) -> None:
    def command(out: str) -> list[Any]:
        return torchrun(2, "train.py", *training(*stories, codec, tmp_path / out, steps=40, save_every=5))

    process = start(command("killed"))
    wait_for(lambda: (tmp_path / "killed" / "step-00000010").is_dir(), process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0 and not (tmp_path / "killed" / "final").exists()
    for out in ("killed", "whole"):
        found = run(command(out))
        assert found.returncode == 0, found.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_what_does_not_fit_is_refused(
    stories: tuple[Path, Path], codec: Path, make_codec: Callable[[int], Path], tmp_path: Path
) -> None:
    def train(**changes: Any) -> Finished[str]:
        fitting = {"store": stories[0], "valid": stories[1], "codec": codec, "out": tmp_path / "run"}
        return run([PACKAGE / "train.py", *training(**fitting | changes)])

    assert_refused(train(codec=make_codec(1)), "was made by codec", "Encode the corpus again")
    assert_refused(train(store=tmp_path / "none"), "no embedding store", "encode.py")
    assert_refused(run([PACKAGE / "train.py", "sonar-lm"]), "unknown model family 'sonar-lm'", "codec, sonar-llm")
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------- real stories


def test_real_stories_end_to_end(shared_data: Path, codec: Path, tmp_path: Path) -> None:
    """20 stories of TinyStories: a store, a SONAR-LLM on two ranks, a story from a real beginning."""
    sample = shared_data / "tinystories_sample.jsonl"
    made = run(torchrun(2, "encode.py", sample, "store", "--codec", codec, "--limit", 20, "--documents-per-shard", 5), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("store: 20 documents, ") and "sentences were longer than 46 tokens" in made.stderr

    options = training(Path("store"), Path("store"), codec, Path("run"), steps=30, documents_per_step=10)
    trained = run(torchrun(2, "train.py", *options), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    first, last = losses(tmp_path / "run")[0][1], losses(tmp_path / "run")[-1][1]
    assert last < 0.9 * first

    opening = " ".join(Store(tmp_path / "store")[0].texts[:2])
    assert json.loads(sample.read_text(encoding="utf-8").splitlines()[0])["text"].startswith(opening)
    story = SonarLLM.from_pretrained(tmp_path / "run" / "final").generate(opening, max_sentences=5, beam_size=1)
    assert story.text.startswith(opening) and story.stopped_by in ("end", "loop", "max_sentences")
