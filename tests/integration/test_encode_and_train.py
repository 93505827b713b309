"""`encode.py` and `train.py` as users start them: as files, under torchrun, from elsewhere, and killed on the way.

The codec has random weights and a width of 32; what is tested is the machinery, on stories that ship and on real ones.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import PACKAGE, PATIENCE, children, run, started, torchrun, wait_for

from sonarkit import encode, train
from sonarkit.models.sonar_llm import SonarLLM
from sonarkit.store.reader import Store
from sonarkit.training.metrics import read_metrics

TINY = ["--hidden", 32, "--ffn", 64, "--layers", 1, "--heads", 2, "--head-dim", 16, "--precision", "float32"]
Stores = tuple[Path, Path]


def contents(store: Path) -> dict[str, bytes]:
    """The files of a store, without what a killed writer left half written."""
    return {path.name: path.read_bytes() for path in store.iterdir() if path.suffix != ".tmp"}


@pytest.fixture(scope="module")
def stores(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """A store of 40 StoryWorld stories and one of 4, made by one process."""
    folder = tmp_path_factory.mktemp("stores")
    for name, corpus in (("train", "storyworld:40"), ("valid", "storyworld:4@1")):
        encode.main([corpus, str(folder / name), "--codec", str(codec), "--documents-per-shard", "4"])
    return folder / "train", folder / "valid"


# ---------------------------------------------------------------------- encoding


def test_two_ranks_build_the_store_of_one(stores: Stores, codec: Path, tmp_path: Path) -> None:
    for library in ("datasets", "encode", "store", "text", "training"):  # what a careless sys.path would find first
        (tmp_path / f"{library}.py").write_text("raise ImportError('the wrong module')\n")
    made = run(torchrun(2, "encode.py", "storyworld:40", "two", "--codec", codec, "--documents-per-shard", 4), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("two: 40 documents, ") and "dropped: none" in made.stdout
    assert contents(tmp_path / "two") == contents(stores[0])


def test_encoding_goes_on_after_a_rank_was_killed(codec: Path, tmp_path: Path) -> None:
    store = tmp_path / "killed"
    command = torchrun(2, "encode.py", "storyworld:1000", store, "--codec", codec, "--documents-per-shard", 10)
    with started(command) as process:
        wait_for(lambda: len(list(store.glob("*.arrow"))) > 3, process)
        os.kill(children(process)[-1], signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
    with pytest.raises(FileNotFoundError, match="unfinished store; run the same encode command again"):
        Store(store)
    finished = {path: path.stat().st_mtime_ns for path in store.glob("*.json")}

    again = run(command)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not made twice
    whole = tmp_path / "whole"
    encode.main(["storyworld:1000", str(whole), "--codec", str(codec), "--documents-per-shard", "10"])
    assert contents(store) == contents(whole)
    assert len(Store(store, verify=True)) == 1000


def test_what_is_dropped_and_cut_is_told(codec: Path, tmp_path: Path) -> None:
    stories = ["A fox ran home. He slept.", "", None, "A bear. " * 3, "The fox ran and ran " * 9 + "home."]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"story": story}) + "\n" for story in stories))
    made = run([PACKAGE / "encode.py", "mine.jsonl", "store", "--codec", codec, "--column", "story"], cwd=tmp_path)
    assert made.returncode == 0 and made.stdout.startswith("store: 3 documents, 6 sentences")
    assert "documents dropped: 1 empty, 1 not a text" in made.stdout
    assert made.stderr == "sonarkit: note: 1 of 6 sentences were longer than 46 tokens and were cut\n"
    assert [len(ids) for ids in Store(tmp_path / "store")[2].tokens] == [46]


def test_a_corpus_that_cannot_be_read_is_refused(codec: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    mine, latin1 = tmp_path / "mine.jsonl", tmp_path / "latin1.jsonl"
    mine.write_text('{"story": "A fox."}\n')
    latin1.write_bytes(b'{"text": "A fox."}\n{"text": "L\xf6we"}\n')
    options = [tmp_path / "store", "--codec", codec]
    refused(encode.main, [mine, *options], "no column 'text'", "the columns are story")
    refused(encode.main, [mine, *options, "--lang", "englsh"], "did you mean eng_Latn (English)?")
    refused(encode.main, [latin1, tmp_path / "other", "--codec", codec], "latin1.jsonl:2: not valid UTF-8 (byte 0xf6")
    refused(encode.main, [tmp_path / "none.txt", *options], "no corpus at", "storyworld:COUNT")
    refused(encode.main, ["storyworld:4", tmp_path, "--codec", codec], "is not empty and holds no embedding store")
    refused(encode.main, ["storyworld:4", tmp_path / "new", "--codec", tmp_path], "no codec at")


# ---------------------------------------------------------------------- training


def training(stores: Stores, codec: Path, out: Path, **options: Any) -> list[Any]:
    """The arguments of a tiny SONAR-LLM run of 60 steps that logs every one."""
    options = {
        "steps": 60,
        "documents_per_step": 8,
        "micro_tokens": 1400,
        "warmup_steps": 2,
        "log_every": 1,
        "save_every": 10,
        **options,
    }
    options |= {"data": stores[0], "valid": stores[1], "codec": codec, "out": out}
    flags = [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), value)]
    return ["sonar-llm", "--size", "mini", *TINY, *flags]


def losses(out: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every training record."""
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [(record["step"], record["loss_nats_per_token"], record["grad_norm"]) for record in records]


@pytest.fixture(scope="module")
def two_ranks(stores: Stores, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by two ranks that nothing interrupted."""
    out = tmp_path_factory.mktemp("two")
    found = run(torchrun(2, "train.py", *training(stores, codec, out)), cwd=out)
    assert found.returncode == 0, found.stderr
    return out


def test_one_rank_and_two_take_the_same_steps(two_ranks: Path, stores: Stores, codec: Path, tmp_path: Path) -> None:
    train.main([str(part) for part in training(stores, codec, tmp_path)])
    one, two = losses(tmp_path), losses(two_ranks)
    assert [step for step, _, _ in one] == [step for step, _, _ in two] == list(range(1, 61))
    assert [loss for _, loss, _ in two] == pytest.approx([loss for _, loss, _ in one], rel=1e-5)
    judged = [read_metrics(out / "metrics.jsonl")[-1] for out in (tmp_path, two_ranks)]
    assert [record["kind"] for record in judged] == ["eval", "eval"]
    assert judged[1]["loss_nats_per_token"] == pytest.approx(judged[0]["loss_nats_per_token"], rel=1e-5)


def test_a_killed_run_goes_on_as_if_nothing_had_been(
    stores: Stores, codec: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    """With the recipe's optimizer, whose two parts both have a state to restore."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    command = [PACKAGE / "train.py", *training(stores, codec, out)]
    with started(command) as process:
        wait_for(lambda: (out / "step-00000020").is_dir(), process)
        process.kill()
        process.communicate(timeout=PATIENCE)
    before = losses(out)
    assert 20 <= len(before) < 60 and not (out / "final").exists()

    refused(train.main, training(stores, codec, out, lr=2e-2), "another configuration", "optimizer.lr: 0.001 -> 0.02")
    assert losses(out) == before  # nothing is lost by asking

    again = run(command)
    assert again.returncode == 0 and re.search(r"resumed .* from step \d0 of 60", again.stdout), again
    assert run([PACKAGE / "train.py", *training(stores, codec, whole)]).returncode == 0
    assert losses(out) == losses(whole)  # bit for bit
    weights = Path("final/model.safetensors")
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_two_ranks_go_on_after_one_was_killed(two_ranks: Path, stores: Stores, codec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = torchrun(2, "train.py", *training(stores, codec, out))
    with started(command) as process:
        wait_for(lambda: (out / "step-00000020").is_dir(), process)
        os.kill(children(process)[-1], signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert process.returncode != 0 and not (out / "final").exists()
    again = run(command)
    assert again.returncode == 0 and "resumed" in again.stdout, again
    assert losses(out) == losses(two_ranks)


def test_torchrun_starts_the_ranks_again_when_one_died(two_ranks: Path, stores: Stores, codec: Path, tmp_path: Path) -> None:
    """`--max-restarts`: nobody needs to give the command again."""
    out = tmp_path / "run"
    command = torchrun(2, "train.py", *training(stores, codec, out))
    command[2:2] = ["--max-restarts", 1]
    with started(command) as process:
        wait_for(lambda: (out / "step-00000020").is_dir(), process)
        os.kill(children(process)[-1], signal.SIGKILL)
        printed, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert re.search(r"resumed .* from step \d0 of 60", printed) and "finished after" in printed
    assert losses(out) == losses(two_ranks)


def test_a_scheduler_that_stops_the_run_loses_nothing(two_ranks: Path, stores: Stores, codec: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun reaches the ranks, which finish the step, save and say so."""
    out = tmp_path / "run"
    command = torchrun(2, "train.py", *training(stores, codec, out, save_every=0))
    with started(command) as process:
        wait_for(lambda: (out / "metrics.jsonl").is_file() and len(losses(out)) > 5, process)
        process.terminate()
        printed, _ = process.communicate(timeout=PATIENCE)
    assert re.search(r"stopped after step \d+ of 60; the same command goes on from there", printed)
    assert run(command).returncode == 0
    assert losses(out) == losses(two_ranks)


def test_a_run_goes_on_from_a_trained_model(two_ranks: Path, stores: Stores, codec: Path, tmp_path: Path) -> None:
    """With `--init`, not from its checkpoints: a new schedule and another corpus are allowed."""
    assert run([PACKAGE / "train.py", *training(stores, codec, tmp_path, init=two_ranks / "final", steps=2)]).returncode == 0
    first, last = losses(tmp_path)[0][1], losses(two_ranks)[-1][1]
    assert first < (losses(two_ranks)[0][1] + last) / 2, "it begins near where the other ended"


def test_a_plan_says_what_a_run_would_take(
    stores: Stores, codec: Path, tmp_path: Path, refused: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a published size without codec or store, and of a run on a store that is there."""
    train.main(["sonar-llm", "--size", "900M", "--plan", "--gpus", "8", "--gpu", "A100"])
    printed = capsys.readouterr().out
    assert "698M parameters trained" in printed and "TinyStories: 2.12M documents" in printed
    assert {line.split()[1] for line in printed.splitlines() if line.strip().startswith("8 ")} == {"ddp", "fsdp"}
    train.main([str(part) for part in [*training(stores, codec, tmp_path / "run"), "--plan", "--gpus", 1]])
    assert "storyworld:40" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    refused(train.main, ["sonar-llm", "--size", "900M", "--plan", "--gpu", "A1"], "unknown device 'A1'", "H100")
    refused(train.main, ["codec", "--size", "mini", "--plan", "--gpus", "99"], "40 pairs a step cannot be shared by")


def test_what_does_not_fit_is_refused(
    stores: Stores, codec: Path, make_codec: Callable[[int], Path], tmp_path: Path, refused: Callable[..., None]
) -> None:
    out = tmp_path / "run"
    refused(train.main, training(stores, make_codec(1), out), "was made by codec", "Encode the corpus again")
    refused(train.main, training((tmp_path, stores[1]), codec, out), "no embedding store", "encode.py")
    refused(train.main, training(stores, codec, out, init="mini"), "reads vectors of width 256, the codec makes 32")
    refused(train.main, ["sonar-lm"], "unknown model family 'sonar-lm'", "codec, sonar-llm")
    refused(train.main, ["sonar-llm", "--size", "900"], "unknown size '900'", "mini")
    refused(train.main, ["sonar-llm", "--size", "900M", "--steps", "9", "--epochs", "1"], "--steps and --epochs both")
    assert not out.exists()


# ---------------------------------------------------------------------- real stories


def test_real_stories_end_to_end(shared_data: Path, codec: Path, tmp_path: Path) -> None:
    """20 stories of TinyStories: a store, a SONAR-LLM on two ranks, a story from a real beginning."""
    sample = shared_data / "tinystories_sample.jsonl"
    options = ["--codec", codec, "--limit", 20, "--documents-per-shard", 5]
    made = run(torchrun(2, "encode.py", sample, "store", *options), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("store: 20 documents, ") and "sentences were longer than 46 tokens" in made.stderr

    stores = Path("store"), Path("store")
    trained = run(torchrun(2, "train.py", *training(stores, codec, Path("run"), steps=30, lr=1e-2), "--no-muon"), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    seen = losses(tmp_path / "run")
    assert len(seen) == 30 and seen[-1][1] < 0.9 * seen[0][1]

    opening = " ".join(Store(tmp_path / "store")[0].texts[:2])
    assert json.loads(sample.read_text(encoding="utf-8").splitlines()[0])["text"].startswith(opening)
    story = SonarLLM.from_pretrained(tmp_path / "run" / "final").generate(opening, max_sentences=5, beam_size=1)
    assert story.text.startswith(opening) and story.stopped_by in ("end", "loop", "max_sentences")
