"""The command line, as a user meets it: help, texts from everywhere, pipes, and what it says to bad input."""

from __future__ import annotations

import dataclasses
import gzip
import inspect
import json
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PATIENCE, assert_refused, run, started

from sonarkit import cli
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.core.errors import printable
from sonarkit.encode import encode_into
from sonarkit.evaluation.llm_judge import CRITERIA, JudgeConfig, Told, Verdict, verdict_key
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.token_llm import CodecTokens, TokenLLM

CLI = ["-m", "sonarkit.cli"]
FOX = "Once upon a time there was a little fox named Mia."


# ---------------------------------------------------------------------- help


def test_the_help_teaches_by_example(sonarkit) -> None:
    overview = sonarkit("--help").stdout
    assert sonarkit().stdout == overview
    for command in ("story", "encode", "decode", "translate", "lab"):
        found = sonarkit(command, "--help")
        assert found.returncode == 0 and f"  sonarkit {command}" in overview
        examples = [line for line in found.stdout.splitlines() if line.startswith("    sonarkit ")]
        assert len(examples) >= 2, found.stdout  # a line each
        assert "Args:" not in found.stdout


def test_the_examples_in_the_help_are_understood() -> None:
    lines = [line.strip() for line in cli.EXAMPLES.splitlines() if line.startswith("  ")]
    commands = {name: getattr(cli, name) for name in ("story", "encode", "decode", "translate", "convert", "lab")}
    commands |= {f"evaluate {what}": command for what, command in cli.EVALUATIONS.items()}
    for command in commands.values():
        lines += [line.strip() for line in inspect.getdoc(command).splitlines() if line.strip().startswith("sonarkit ")]
    for line in lines:
        for part in (p.strip() for p in line.split("|") if "sonarkit" in p):
            name, *arguments = shlex.split(part.split(" <")[0])[1:]
            if name == "evaluate":
                name = f"evaluate {arguments.pop(0)}"
            with pytest.raises(SystemExit) as ending:  # --help last: everything before it was parsed
                cli._run(commands[name], name, [*arguments, "--help"])
            assert ending.value.code == 0, part


def test_evaluate_names_what_it_can_evaluate(sonarkit) -> None:
    found = sonarkit("evaluate", "--help")
    assert found.returncode == 0 and not found.stderr
    assert all(f"\n  {what} " in found.stdout for what in cli.EVALUATIONS)


def test_wrong_arguments_are_told_shortly(sonarkit) -> None:
    assert_refused(sonarkit("stroy", FOX), "unknown command 'stroy'", "story, encode")
    found = sonarkit("story", "--beam-siz", "3", FOX)
    assert found.returncode == 2 and "--beam-size" in found.stderr and len(found.stderr.splitlines()) < 12
    assert "Traceback" not in found.stderr


# ---------------------------------------------------------------------- the real thing, in processes of its own


def test_a_story_is_told_sentence_by_sentence(llm: Path) -> None:
    with started([*CLI, "story", FOX, "--model", llm, "--max-sentences", 4, "--sample"]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == FOX + "\n"  # while the rest is not yet known
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and len(out.splitlines()) == 3 and not err


def test_encode_and_decode_are_one_pipe(codec: Path, llm: Path, tmp_path: Path) -> None:
    lines = ["A fox ran home.", "Le renard rentra.", "السلام عليكم 🦊"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    piped = run([*CLI, "encode", "--json", "--model", codec], stdin="\n".join(lines))
    assert piped.returncode == 0 and not piped.stderr
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [row["text"] for row in rows] == lines
    filed = run([*CLI, "encode", "lines.txt", "--out", "vectors.npy", "--model", codec], cwd=tmp_path)
    assert filed.stderr == "vectors.npy: 3 vectors of width 32\n" and not filed.stdout
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [row["embedding"] for row in rows], atol=1e-6)
    from_pipe = run([*CLI, "decode", "--model", codec, "--lang", "fra_Latn", "--json"], stdin=piped.stdout)
    from_file = run([*CLI, "decode", "vectors.npy", "--model", codec, "--lang", "fra_Latn"], cwd=tmp_path)
    decoded = [json.loads(line) for line in from_pipe.stdout.splitlines()]
    assert [row["text"] for row in decoded] == from_file.stdout.removesuffix("\n").split("\n") and len(decoded) == 3
    assert all(row["log_prob"] < 0 for row in decoded)


def test_a_reader_that_goes_away_is_no_error(codec: Path) -> None:
    with started([*CLI, "encode", "--json", "--model", codec, *["A fox ran home."] * 500]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_a_file_is_written_whole_though_the_reader_goes_away(codec: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("The fox slept.\n" * 20_000)
    words = [*CLI, "encode", "many.txt", "--json", "--out", "v.npy", "--model", codec]
    with started(words, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(PATIENCE) == 0 and "20000 vectors" in told and "Traceback" not in told
    assert len(np.load(tmp_path / "v.npy")) == 20_000


def test_the_place_for_the_vectors_is_looked_at_first(sonarkit, codec: Path, tmp_path: Path) -> None:
    assert_refused(sonarkit("encode", FOX, "--model", "nowhere", "--out", tmp_path), str(tmp_path), "--out names a file")


def test_a_full_disk_under_standard_output_is_told(codec: Path) -> None:
    for options in ([], ["--json"]):  # buffered till the end, and flushed line by line
        with open("/dev/full", "wb") as full:
            found = run([*CLI, "translate", FOX, "--model", codec, *options], stdout=full)
        assert_refused(found, "No space left on device")


def test_a_full_disk_keeps_the_file_that_was_there(codec: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails half way, in the operating system."""
    out = tmp_path / "vectors.npy"
    out.write_bytes(b"precious")
    arguments = [*CLI, "encode", "--model", codec, "--out", out, *["A fox ran home."] * 40]
    found = run(arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048)))
    assert_refused(found, "could not write", "the old file is kept")
    assert out.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [out]


# ---------------------------------------------------------------------- in this process


def test_a_story_as_json_holds_what_the_text_says(sonarkit, llm: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(f"{FOX}\nShe lived\nin a forest.\n", encoding="utf-8-sig")
    options = ("--model", llm, "--max-sentences", 5, "--sample", "--seed", 3)
    found = sonarkit("story", tmp_path / "prompt.txt", *options, "--json")
    told = json.loads(found.stdout)
    assert found.returncode == 0 and told["prompt_sentences"] == 2 and told["stopped_by"] == "max_sentences"
    assert told["sentences"][:2] == [FOX, "She lived in a forest."] and len(told["sentences"]) == 5
    assert told["text"] == " ".join(told["sentences"]) and len(told["steps"]) == 3
    plain = sonarkit("story", *options, stdin=f"{FOX} She lived in a forest.".encode())
    assert plain.stdout.split() == printable(told["text"]).split()


def test_options_that_would_do_nothing_are_refused(sonarkit, llm: Path) -> None:
    for option in (("--temperature", 0.7), ("--top-k", 5), ("--top-p", 0.9)):
        assert_refused(sonarkit("story", FOX, "--model", llm, *option), "are of --sample", "add --sample")
    if not torch.cuda.is_available():
        assert_refused(sonarkit("story", FOX, "--model", llm, "--device", "cuda"), "cuda")


def test_a_story_in_another_language_has_its_beginning_translated(sonarkit, llm: Path) -> None:
    options = ("--model", llm, "--max-sentences", 2, "--beam-size", 1, "--output-lang", "deu_Latn")
    found = sonarkit("story", FOX, *options)
    assert found.returncode == 0 and FOX not in found.stdout
    told = json.loads(sonarkit("story", FOX, *options, "--json").stdout)
    assert told["output_lang"] == "deu_Latn" and told["prompt"] == FOX


def test_a_file_of_any_length_is_encoded_as_it_is_read(sonarkit, codec: Path, tmp_path: Path) -> None:
    """Several blocks of 8192 lines; a file that is not UTF-8 further down leaves nothing behind."""
    lines = tmp_path / "lines.txt"
    lines.write_text("A fox.\nMia.\n" * 5000, encoding="utf-8")
    assert sonarkit("encode", lines, "--model", codec, "--out", tmp_path / "v.npy").returncode == 0
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (10_000, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[[0, 1] * 5000], vectors, rtol=0, atol=1e-5)
    lines.write_bytes(b"A fox.\n" * 9000 + b"L\xf6we\n")
    found = sonarkit("encode", lines, "--model", codec, "--out", tmp_path / "w.npy")
    assert_refused(found, f"{lines}:9001: not valid UTF-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "v.npy"]


def test_a_compressed_file_is_read_and_a_folder_is_not_a_text(sonarkit, codec: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt.gz").write_bytes(gzip.compress(b"The fox slept.\nThe moon rose.\n"))
    found = sonarkit("encode", "--json", tmp_path / "some.txt.gz", "--model", codec)
    assert [json.loads(line)["text"] for line in found.stdout.splitlines()] == ["The fox slept.", "The moon rose."]
    assert_refused(sonarkit("encode", "--json", tmp_path / "none.txt.gz", "--model", codec), "no file", "none.txt.gz")
    assert_refused(sonarkit("encode", "--json", tmp_path, "--model", codec), "is a folder; name the files in it")


def test_bfloat16_and_devices_on_the_command_line(sonarkit, codec: Path) -> None:
    exact, half = (
        np.array(json.loads(sonarkit("encode", "--json", FOX, "--model", codec, "--dtype", dtype).stdout)["embedding"])
        for dtype in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, half) and exact @ half > 0.999 * np.linalg.norm(exact) * np.linalg.norm(half)
    assert_refused(sonarkit("encode", "--json", FOX, "--model", codec, "--device", "cuda:99"), "device cuda:99 is not there")


def test_blank_lines_are_left_out_aloud(sonarkit, codec: Path) -> None:
    found = sonarkit("encode", "--json", "--model", codec, stdin=b"A fox.\r\n\r\n  \r\nA bear.\r\n")
    assert [json.loads(line)["text"] for line in found.stdout.splitlines()] == ["A fox.", "A bear."]
    assert found.stderr == "sonarkit: note: 2 blank lines were left out\n"


def test_copying_notebooks_keeps_those_that_were_edited(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "figures").mkdir(parents=True)
    for name in ("00.ipynb", "01.ipynb", "notes.txt", "figures/map.png"):
        (source / name).write_text("shipped")
    assert cli.copy_notebooks(source, target) == 2
    (target / "00.ipynb").write_text("edited")
    (target / "01.ipynb").unlink()
    assert cli.copy_notebooks(source, target) == 1
    found = {path.name: path.read_text() for path in target.rglob("*.*")}
    assert found == {"00.ipynb": "edited", "01.ipynb": "shipped", "map.png": "shipped"}


ASK_FOR_THE_KERNEL = """
from jupyter_client.kernelspec import KernelSpecManager
print(KernelSpecManager().get_kernel_spec("python3").argv[0])
"""


def test_the_kernel_of_the_lab_is_the_python_that_has_sonarkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another Python has left a kernel of the same name in the user's folder, where Jupyter looks first."""
    user = tmp_path / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3"
    user.mkdir(parents=True)
    (user / "kernel.json").write_text('{"argv": ["/other/python"], "display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    ask = [sys.executable, "-c", ASK_FOR_THE_KERNEL]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "/other/python\n"

    def instead_of_jupyterlab(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        assert command[:3] == [sys.executable, "-m", "jupyterlab"]
        with open(tmp_path / "answer", "wb") as answer:
            return popen(ask, env=env, stdout=answer)

    popen = subprocess.Popen
    monkeypatch.setattr(cli.subprocess, "Popen", instead_of_jupyterlab)
    with pytest.raises(SystemExit) as ending:
        cli.lab(tmp_path / "copy", no_browser=True)
    assert ending.value.code == 0 and (tmp_path / "answer").read_text() == f"{sys.executable}\n"


# ---------------------------------------------------------------------- evaluation


@pytest.fixture(scope="module")
def token_llm(codec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = BackboneConfig(hidden=16, ffn=16, layers=1, heads=1, head_dim=16)
    folder = tmp_path_factory.mktemp("token-llm")
    TokenLLM.new(backbone, CodecTokens(Sonar.from_pretrained(codec).tokenizer)).save_pretrained(folder)
    return folder


def test_models_of_two_families_in_one_table(sonarkit, llm: Path, token_llm: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "stories.json"
    options = ("evaluate", "stories", llm, token_llm, "--count", 2, "--max-sentences", 3, "--beam-size", 1)
    found = sonarkit(*options, "--show", 1, "--out", out)
    lines = [line for line in found.stdout.splitlines() if line.startswith("| ")]
    assert found.returncode == 0 and [line.split(" | ")[0] for line in lines] == [
        "| model", f"| {llm}", f"| {token_llm}", f"| less {llm}", f"| {token_llm}",
    ]  # fmt: skip
    assert found.stdout.count(" ||") == 2 and "2 stories of storyworld:test (eng_Latn) after 2 sentences" in found.stdout
    told = json.loads(out.read_text())
    assert [one["family"] for one in told["models"]] == ["sonar-llm", "token-llm"]
    assert all(one["scores"]["bits_per_byte"]["value"] > 0 and len(one["stories"]) == 2 for one in told["models"])
    again = sonarkit(*options, "--json")
    assert json.loads(again.stdout) == told  # the same numbers, and no other line

    told["models"][0]["stories"] = [{"prompt": "A fox.", "told": ["It ran.", "It slept."]}, {"prompt": "A fox.", "told": []}]
    out.write_text(json.dumps(told))
    verdicts = tmp_path / "verdicts.jsonl"
    config = JudgeConfig("http://127.0.0.1:9/v1", "judge-1", "")  # nobody listens there: all verdicts are found
    verdict = Verdict(verdict_key(Told("A fox.", "It ran. It slept."), config), dict.fromkeys(CRITERIA, 6.0))
    others = [
        Verdict(verdict_key(Told(story["prompt"], " ".join(story["told"])), config), dict.fromkeys(CRITERIA, 4.0))
        for story in told["models"][1]["stories"]
    ]
    verdicts.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in [verdict, *others]))
    asked = ("--endpoint", config.base_url, "--judge", "judge-1", "--key-variable", "", "--verdicts", verdicts)
    judged = sonarkit("evaluate", "judge", out, *asked)
    assert judged.returncode == 0 and judged.stdout.startswith(f"{llm}\njudge judge-1: 1 of 2 stories judged")
    report = json.loads(sonarkit("evaluate", "judge", out, *asked, "--json").stdout)
    assert list(report) == [str(llm), str(token_llm)] and report[str(llm)]["failures"] == {"empty story": 1}
    assert report[str(llm)]["scores"]["plot"]["value"] == 6


def test_concepts_and_summaries_of_a_model(sonarkit, llm: Path, token_llm: Path, codec: Path, tmp_path: Path) -> None:
    stories = tmp_path / "stories.txt"
    stories.write_text("The fox ran home. Mia slept.\n\nTom found a map. It was old.\n\nA bear came. Mia ran.\n")
    store = tmp_path / "store"
    encode_into(str(stories), store, Sonar.from_pretrained(codec), World(0, 1, 0, torch.device("cpu")))
    out = tmp_path / "made" / "concepts.json"
    found = sonarkit("evaluate", "concepts", llm, "--store", store, "--beam-size", 1, "--out", out)
    assert found.returncode == 0 and "mrr" in found.stdout and found.stdout.splitlines()[-1].startswith("bits per byte ")
    told = json.loads(out.read_text())
    assert told["counts"]["documents"] == 3 and told["bits_per_byte"]["count"] == 3
    plain = json.loads(sonarkit("evaluate", "concepts", llm, "--store", store, "--no-decode", "--json").stdout)
    assert "round_trip_l2" not in plain["scores"] and plain["scores"]["l2"] == told["scores"]["l2"]
    assert_refused(
        sonarkit("evaluate", "concepts", token_llm, "--store", store), "a token-level model, which predicts no vectors"
    )
    assert_refused(sonarkit("evaluate", "concepts", llm, "--store", tmp_path), "no embedding store")

    pairs = tmp_path / "pairs.jsonl"
    rows = [{"document": "The fox ran home. Mia slept.", "summary": "A fox ran."}, {"document": " ", "summary": "Nothing."}]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("evaluate", "summaries", llm, "--on", pairs, "--summary-sentences", 2, "--beam-size", 1)
    found = sonarkit(*options)
    assert found.returncode == 0 and "lead_rouge_l" in found.stdout and "rows left out: 1 empty" in found.stderr
    told = json.loads(sonarkit(*options, "--json").stdout)
    assert told["dropped"] == {"empty": 1} and [one["source"] for one in told["summaries"]] == ["pairs.jsonl:1"]
    assert_refused(sonarkit("evaluate", "summaries", llm, "--on", pairs, "--document", "text"), "no column 'text'")


def test_what_cannot_be_evaluated_is_told(sonarkit, llm: Path, codec: Path, tmp_path: Path) -> None:
    assert_refused(sonarkit("evaluate"), "evaluate what? codec, ", "stories, judge, concepts, summaries")
    assert_refused(
        sonarkit("evaluate", "stories", codec, "--count", 1), "weights of sonarkit-codec-1; expected those of sonar-llm"
    )
    assert_refused(sonarkit("evaluate", "stories", tmp_path / "no"), "no model at", "mini, mini-FAMILY, or a folder")
    assert_refused(sonarkit("evaluate", "stories", llm, "--on", "tinystories"), "no set 'tinystories'")
    assert_refused(sonarkit("evaluate", "stories", llm, llm, "--count", 1), "compared on two stories at least, got one")
    assert_refused(sonarkit("evaluate", "stories", llm, "--lang", "ita_Latn"), "no stories in ita_Latn")
    assert_refused(sonarkit("evaluate", "judge", tmp_path / "no.json", "--key-variable", ""), "no.json: No such file")


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize("prompt", ["", "  \n\n "])
def test_an_empty_prompt(sonarkit, llm: Path, codec: Path, prompt: str) -> None:
    assert_refused(sonarkit("story", prompt, "--model", llm), "the prompt holds no sentence")
    assert_refused(sonarkit("story", "--model", llm, stdin=prompt.encode()), "the prompt holds no sentence")
    for command in (["encode", "--json"], ["translate"]):
        assert_refused(sonarkit(*command, prompt, "--model", codec), "every line is blank")


def test_a_prompt_of_ten_thousand_words(sonarkit, llm: Path) -> None:
    options = ("--model", llm, "--beam-size", 1, "--json")
    found = sonarkit("story", "The fox ran home. " * 2500, *options)
    assert found.returncode == 0 and len(found.stderr.splitlines()) == 1
    assert "note: the prompt has 2500 sentences; the model reads the last 31" in found.stderr
    found = sonarkit("story", "fox " * 10_000, "--max-sentences", 2, *options)  # one sentence
    assert found.returncode == 0
    assert "note: 1 of 1 texts were longer than 46 tokens and were cut" in found.stderr


@pytest.mark.parametrize("prompt", ["🦊🏡 🦊!", "השועל רץ הביתה.", "ركض الثعلب إلى البيت.", "A\x00 \u202efox\u200d."])
def test_emoji_and_right_to_left_text(sonarkit, llm: Path, prompt: str) -> None:
    found = sonarkit("story", "--model", llm, "--max-sentences", 3, "--beam-size", 1, stdin=prompt.encode())
    assert found.returncode == 0 and not found.stderr
    assert found.stdout.split("\n")[0] == printable(prompt)


def test_invalid_utf8_names_file_and_line(sonarkit, llm: Path, codec: Path, tmp_path: Path) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes("A fox.\nDer Löwe.\n".encode("latin-1"))
    assert_refused(sonarkit("story", path, "--model", llm), f"{path}:2: not valid UTF-8 (byte 0xf6)", "iconv")
    assert_refused(sonarkit("encode", path, "--json", "--model", codec), f"{path}:2: not valid UTF-8")
    found = sonarkit("translate", "--model", codec, stdin=path.read_bytes())
    assert_refused(found, "standard input:2: not valid UTF-8")
    assert_refused(sonarkit("translate", "--model", codec, "L\udcf6we"), "argument:1: not valid UTF-8")


def test_an_unknown_language_names_the_nearest(sonarkit, llm: Path, codec: Path) -> None:
    found = sonarkit("story", FOX, "--model", llm, "--lang", "englsh")
    assert_refused(found, "unknown language 'englsh'", "did you mean eng_Latn (English)?")
    assert not found.stdout
    assert_refused(sonarkit("story", FOX, "--model", llm, "--output-lang", "Fench"), "did you mean fra_Latn (French)?")
    assert_refused(sonarkit("translate", FOX, "--model", codec, "--target-lang", "deu_Lat"), "did you mean deu_Latn (German)?")


def test_languages_may_be_typed_as_people_type_them(sonarkit, llm: Path) -> None:
    options = ["story", FOX, "--model", llm, "--max-sentences", "2", "--json"]
    typed = sonarkit(*options, "--lang", "English", "--output-lang", "fr")
    assert typed.returncode == 0 and json.loads(typed.stdout)["output_lang"] == "fra_Latn"
    assert typed.stdout == sonarkit(*options, "--output-lang", "fra_Latn").stdout


def test_a_missing_file_is_not_taken_for_a_text(sonarkit, codec: Path) -> None:
    assert_refused(sonarkit("translate", "sentences.txt", "--model", codec), "no file 'sentences.txt' here")
    assert_refused(sonarkit("decode", "vectors.npy", "--model", codec), "vectors.npy: No such file or directory")
    assert_refused(sonarkit("encode", FOX, "--model", codec), "--out vectors.npy", "--json")


def test_vectors_that_are_none(sonarkit, codec: Path, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.zeros((4, 32), np.float32))
    whole = path.read_bytes()
    for data in (b"", b"no array", whole[:-7], whole[:20]):
        path.write_bytes(data)
        assert_refused(sonarkit("decode", path, "--model", codec), "is no whole .npy file")
    for array, complaint in (
        (np.zeros(32), "expected numbers of shape (n, D), got shape (32,)"),
        (np.zeros((2, 7)), "(n, 32) for this codec, got (2, 7)"),
        (np.full((1, 32), np.nan), "NaN"),
        (np.array([["a"]]), "type <U1"),
    ):
        np.save(path, array)
        assert_refused(sonarkit("decode", path, "--model", codec), complaint)
    for line in ("no json", "[1, 2]", '{"text": "A fox."}', '{"embedding": [1]}\n{"embedding": [1, 2]}'):
        assert_refused(sonarkit("decode", "--model", codec, stdin=line.encode()), 'JSON lines with an "embedding"')


def test_weights_that_are_missing_or_truncated(sonarkit, llm: Path, codec: Path, tmp_path: Path) -> None:
    assert_refused(sonarkit("story", FOX, "--model", tmp_path / "none"), "no SONAR-LLM at", "expected one of mini or a folder")
    for model, arguments in ((llm, ["story", FOX]), (codec, ["translate", FOX])):
        copy = tmp_path / model.name
        shutil.copytree(model, copy)
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        assert_refused(sonarkit(*arguments, "--model", copy), f"{weights} is damaged or cut short", "again")
        weights.unlink()
        assert_refused(sonarkit(*arguments, "--model", copy), f"{weights} is missing")
        (copy / "config.json").write_text("{")
        assert_refused(sonarkit(*arguments, "--model", copy), f"{copy / 'config.json'}")


# ---------------------------------------------------------------------- the shipped weights


def test_the_shipped_model_tells_a_story_in_four_languages(sonarkit) -> None:
    for lang in ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn"):
        told = json.loads(sonarkit("story", FOX, "--output-lang", lang, "--json").stdout)
        assert told["stopped_by"] in ("end", "loop") and 4 <= len(told["sentences"]) < 32
        assert all(sentence[-1] in ".!?…\"”»'" for sentence in told["sentences"]), told["text"]


def test_the_shipped_codec_gives_back_what_it_was_given(sonarkit, tmp_path: Path) -> None:
    sentences = ["Tom was happy.", "The little fox ran home."]
    assert sonarkit("encode", *sentences, "--out", tmp_path / "v.npy").returncode == 0
    decoded = sonarkit("decode", tmp_path / "v.npy").stdout.splitlines()
    assert len(decoded) == 2 and decoded[0] == sentences[0]
    assert "Tom" in sonarkit("translate", sentences[0], "--target-lang", "fra_Latn").stdout
