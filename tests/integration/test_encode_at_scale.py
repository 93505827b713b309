"""`encode.py` as a cluster treats it: several ranks, a scheduler that stops it, a console that tells how long it takes.

The codec has random weights and a width of 32; what is tested is the machinery around it.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import PACKAGE, PATIENCE, assert_refused, children, run, started, torchrun, wait_for

from sonarkit import encode
from sonarkit.store.reader import Store
from sonarkit.text.corpora import open_corpus
from sonarkit.text.sentences import split_sentences

CORPUS = "storyworld:300"


def options(codec: Path, per_shard: int = 10) -> list[Any]:
    return ["--codec", codec, "--documents-per-shard", per_shard]


def contents(store: Path) -> dict[str, bytes]:
    """The files of a store; nothing of the plan or half written may be left."""
    return {path.name: path.read_bytes() for path in store.iterdir()}


@pytest.fixture(scope="module")
def whole(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that one process made without interruption."""
    store = tmp_path_factory.mktemp("whole") / "store"
    encode.main([CORPUS, str(store), *map(str, options(codec))])
    return store


def test_the_store_of_one_process_has_each_sentence_once(whole: Path) -> None:
    sentences = [sentence for story in open_corpus(CORPUS) for sentence in split_sentences(story.text, "eng_Latn")]
    store = Store(whole, verify=True)
    assert store.manifest["sentences"] == len(sentences) and store.manifest["distinct"] == len(set(sentences)) < len(sentences)
    assert sum(shard["distinct"] for shard in store.manifest["shards"]) == len(set(sentences))


def test_a_store_in_bfloat16_says_so_and_is_not_gone_on_with_in_float32(whole: Path, codec: Path, tmp_path: Path) -> None:
    words = ["storyworld:20", str(tmp_path / "store"), *map(str, options(codec))]
    encode.main([*words, "--dtype", "bfloat16"])
    half, exact = Store(tmp_path / "store"), Store(whole)
    assert half.manifest["corpus"].endswith(" bfloat16")
    assert half.manifest["codec_fingerprint"] == exact.manifest["codec_fingerprint"]
    made, wanted = (torch.from_numpy(np.array(store[3].vectors_SD, dtype=np.float32)) for store in (half, exact))
    assert not torch.equal(made, wanted) and torch.cosine_similarity(made, wanted).min() > 0.999
    with pytest.raises(SystemExit):
        encode.main(words)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_make_the_store_of_one(ranks: int, whole: Path, codec: Path, tmp_path: Path) -> None:
    made = run(torchrun(ranks, "encode.py", CORPUS, "store", *options(codec)), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    manifest = Store(whole).manifest
    assert f"{manifest['sentences']} sentences ({manifest['distinct']} distinct)" in made.stdout
    assert contents(tmp_path / "store") == contents(whole)


def test_more_ranks_than_shards_are_no_harm(codec: Path, tmp_path: Path) -> None:
    made = run(torchrun(3, "encode.py", "storyworld:9", "store", *options(codec)), cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert len(Store(tmp_path / "store", verify=True)) == 9


@pytest.mark.parametrize("pattern", ["*.hashes", "shard*.arrow"])  # while it reads, and while it encodes
def test_sigterm_ends_well_and_the_next_run_goes_on(pattern: str, whole: Path, codec: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [PACKAGE / "encode.py", CORPUS, store, *options(codec)]
    with started(command) as process:
        wait_for(lambda: len(list(store.glob(pattern))) > 3, process)
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and err == ""
    assert out == f"{store}: stopped as asked; what was finished is kept, and the same command goes on from there\n"
    with pytest.raises(FileNotFoundError, match="unfinished store"):
        Store(store)
    notes = {path: path.stat().st_mtime_ns for path in store.glob("shard*.json")}
    again = run(command)
    assert again.returncode == 0 and {path: path.stat().st_mtime_ns for path in notes} == notes, again
    assert contents(store) == contents(whole)


def test_sigterm_to_torchrun_ends_all_ranks_and_another_number_goes_on(whole: Path, codec: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with started(torchrun(2, "encode.py", CORPUS, store, *options(codec))) as process:
        wait_for(lambda: len(list(store.glob("shard*.arrow"))) > 3, process)
        ranks = children(process)
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE)
    assert ranks and not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert out.endswith("stopped as asked; what was finished is kept, and the same command goes on from there\n")
    assert run([PACKAGE / "encode.py", CORPUS, store, *options(codec)]).returncode == 0
    assert contents(store) == contents(whole)


def is_rank(pid: int, rank: int) -> bool:
    """Whether the process, if it is still at work, is this rank of torchrun's."""
    try:
        return f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return False


def test_a_rank_that_waits_for_another_hears_a_signal(codec: Path, tmp_path: Path) -> None:
    """Rank 1 is stopped, rank 0 through with its share of the reading: it ends at once, not when rank 1 comes."""
    store = tmp_path / "store"
    with started(torchrun(2, "encode.py", "storyworld:1000", store, *options(codec))) as process:
        wait_for(lambda: len(list(store.glob("*.hashes"))) > 3, process)
        first, second = (next(pid for pid in children(process) if is_rank(pid, rank)) for rank in range(2))
        os.kill(second, signal.SIGSTOP)
        wait_for(lambda: len(list(store.glob("*[02468].hashes"))) == 50, process)
        assert not (store / "plan.npz").exists(), "rank 1 was through before it was stopped"
        os.kill(first, signal.SIGTERM)
        wait_for(lambda: not is_rank(first, 0), process)
        os.kill(second, signal.SIGTERM)
        os.kill(second, signal.SIGCONT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "stopped as asked" in out and "Traceback" not in err, (out, err)


def test_a_terminal_shows_one_bar_with_the_remaining_time(codec: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    with started([PACKAGE / "encode.py", CORPUS, tmp_path / "store", *options(codec)], stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
        out, _ = process.communicate(timeout=PATIENCE)
    os.close(ours)
    assert process.returncode == 0 and out.startswith(f"{tmp_path / 'store'}: 300 documents, ")
    distinct = Store(tmp_path / "store").manifest["distinct"]
    last = [part for part in re.split(r"[\r\n]+", shown.decode()) if part.startswith("encode:")][-1]
    assert "100%" in last and f"{distinct}/{distinct}" in last and re.search(r"\[\d+:\d+<\d+:\d+, .*sentences/s\]", last), last


def test_a_url_on_the_command_line(codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsspec cannot reach is one line; what it can is written there."""
    found = run([PACKAGE / "encode.py", "storyworld:2", "nowhere://bucket/store", *options(codec)])
    assert_refused(found, "nowhere://bucket/store is no place that fsspec knows")
    encode.main(["storyworld:2", f"file://{tmp_path}/store", *map(str, options(codec))])
    encode.main(["storyworld:2", "memory://at-scale/store", *map(str, options(codec))])
    monkeypatch.setenv("SONARKIT_CACHE", str(tmp_path / "cache"))
    here, there = Store(tmp_path / "store"), Store("memory://at-scale/store")
    assert there.manifest == here.manifest and [there[i].texts for i in range(2)] == [here[i].texts for i in range(2)]


def test_an_object_store(
    codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An S3 of this machine: two ranks write a store there, it is mended, and read through the cache."""
    s3fs = pytest.importorskip("s3fs", reason="pip install s3fs")
    server = pytest.importorskip("moto.server", reason='pip install "moto[server]"').ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (("ENDPOINT_URL", f"http://{host}:{port}"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("SONARKIT_CACHE", str(tmp_path / "cache"))
    try:
        files, url = s3fs.S3FileSystem(), "s3://bucket/some/store"
        files.mkdir("bucket")
        made = run(torchrun(2, "encode.py", "storyworld:40", url, *options(codec)))
        assert made.returncode == 0, made.stderr
        encode.main(["storyworld:40", str(tmp_path / "local"), *map(str, options(codec))])
        wanted = contents(tmp_path / "local")

        def there() -> dict[str, bytes]:
            return {path.rsplit("/", 1)[-1]: files.cat_file(path) for path in files.ls("bucket/some/store", refresh=True)}

        assert there() == wanted
        files.rm("bucket/some/store/shard-00002.json")
        encode.main(["storyworld:40", url, *map(str, options(codec))])
        assert there() == wanted
        here, store = Store(tmp_path / "local"), Store(url)
        assert [store[i].texts for i in range(40)] == [here[i].texts for i in range(40)]
        assert len(list((tmp_path / "cache" / "stores").iterdir())) == 4
        with pytest.raises(SystemExit):
            encode.main(["storyworld:2", "s3://buckett/store", *map(str, options(codec))])
        assert "could not write s3://buckett/store/stamp.json" in capsys.readouterr().err
        assert not files.exists("buckett")
    finally:
        server.stop()


def test_real_stories_are_stored_once(
    shared_data: Path, codec: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_codec: Callable[[int], Path]
) -> None:
    """TinyStories, where the same sentences begin and end many stories; another codec may not go on with the store."""
    sample, store = shared_data / "tinystories_sample.jsonl", tmp_path / "store"
    encode.main([str(sample), str(store), *map(str, options(codec, 40))])
    manifest = Store(store).manifest
    stories = [split_sentences(story.text, "eng_Latn") for story in open_corpus(sample)]
    assert manifest["sentences"] == sum(map(len, stories))
    assert manifest["distinct"] == len({sentence for story in stories for sentence in story}) < manifest["sentences"]
    with pytest.raises(SystemExit):
        encode.main([str(sample), str(store), *map(str, options(make_codec(2), 40))])
    assert "holds a store made otherwise" in capsys.readouterr().err
