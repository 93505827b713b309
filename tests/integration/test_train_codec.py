"""A codec's life on the command line: from scratch, its decoder tuned, a language added, a smaller student; and the study."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sonarkit import recipes, study, train
from sonarkit.codec.pipeline import Sonar
from sonarkit.store.reader import Store
from sonarkit.text import storyworld
from sonarkit.training.metrics import read_metrics

TINY = {
    "steps": 4, "log_every": 1, "stories": 12, "pieces": 400, "width": 32, "encoder_layers": 2, "decoder_layers": 1, "heads": 2,
    "ffn": 64, "pairs_per_step": 8, "micro_pairs": 4, "precision": "float32", "threads": 1, "judged": False,
}  # fmt: skip


def arguments(size: str, out: Path, *more: Any, **options: Any) -> list[str]:
    given = {**TINY, "out": out, **options}
    flags = [f"--{key}" if value else f"--no-{key}" for key, value in given.items() if isinstance(value, bool)]
    words = [word for k, v in given.items() if not isinstance(v, bool) for word in (f"--{k.replace('_', '-')}", v)]
    return ["codec", "--size", size, *map(str, [*flags, *words, *more])]


@pytest.fixture(scope="module")
def bitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of StoryWorld in English and German, as TSV, and one language that no codec here has."""
    file = tmp_path_factory.mktemp("bitext") / "pairs.tsv"
    rows = [row for story in storyworld.stories(30, split="valid") for row in storyworld.aligned(story.sentences)]
    lines = ["eng_Latn\tdeu_Latn\tces_Latn"] + [f"{r['eng_Latn']}\t{r['deu_Latn']}\t{r['spa_Latn']}" for r in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(bitext: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codec")
    train.main(arguments("mini", out, "--bitext", bitext, bitext_share=0.5, judged=True))
    return out


def test_from_scratch_on_stories_and_bitext(trained: Path, bitext: Path) -> None:
    records = read_metrics(trained / "metrics.jsonl")
    judged = next(record for record in records if record["kind"] == "eval")
    assert {"bleu_eng_Latn", "language_gap", "pairs_bleu_deu_Latn", "pairs_relative_spread"} <= judged.keys()
    assert any(record.get("loss_dae") for record in records)
    sonar = Sonar.from_pretrained(trained / "final")
    assert sonar.languages == ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")


def test_what_a_codec_cannot_read_is_counted(bitext: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(arguments("mini", tmp_path, "--bitext", bitext, steps=1))
    printed = capsys.readouterr().out
    assert "sides in ces_Latn, which the codec does not have" in printed and "rows of storyworld (85%)" in printed


def test_tuning_the_decoder_leaves_the_encoder_as_it_is(trained: Path, tmp_path: Path) -> None:
    train.main(arguments("mini-decoder", tmp_path, init=trained / "final", vector_noise=0.1))
    before, after = Sonar.from_pretrained(trained / "final"), Sonar.from_pretrained(tmp_path / "final")
    assert before.fingerprint() == after.fingerprint()
    for name, weight in before.encoder.state_dict().items():
        assert torch.equal(weight, after.encoder.state_dict()[name]), name
    assert not torch.equal(before.decoder.embedding.weight, after.decoder.embedding.weight)


def test_noise_may_be_scaled_by_a_store(trained: Path, tmp_path: Path) -> None:
    from sonarkit import encode

    encode.main(["storyworld:4", str(tmp_path / "store"), "--codec", str(trained / "final")])
    assert len(Store(tmp_path / "store")) == 4
    run = train.parse(arguments("mini-decoder", tmp_path / "run", init=trained / "final", spread=tmp_path / "store"))
    sonar = Sonar.from_pretrained(trained / "final")
    vectors_ND = torch.cat([torch.from_numpy(Store(tmp_path / "store")[i].vectors_SD.astype("float32")) for i in range(4)])
    torch.testing.assert_close(train._spread(run, sonar, []).sort().values, vectors_ND.std(0).sort().values)


def test_a_language_is_added_by_its_teacher(trained: Path, bitext: Path, tmp_path: Path) -> None:
    base = trained / "final"
    train.main(
        arguments("mini-language", tmp_path, "--bitext", bitext, init=base, teacher=base, stories=0, new_pieces=50, judged=True)
    )
    sonar = Sonar.from_pretrained(tmp_path / "final")
    assert sonar.languages[-1] == "ces_Latn" and sonar.config.vocab_size == 50 + 1 + Sonar.from_pretrained(base).config.vocab_size
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert all(record["loss_distill"] > 0 for record in records if record["kind"] == "train")
    assert "bleu_ces_Latn" in next(record for record in records if record["kind"] == "eval")


def test_a_student_keeps_its_teachers_decoder(trained: Path, tmp_path: Path) -> None:
    teacher = Sonar.from_pretrained(trained / "final")
    train.main(arguments("mini-student", tmp_path, teacher=trained / "final", encoder_layers=1))
    student = Sonar.from_pretrained(tmp_path / "final")
    assert len(student.encoder.layers) == 1 and student.tokenizer.fingerprint == teacher.tokenizer.fingerprint
    for name, weight in teacher.decoder.state_dict().items():
        assert torch.equal(weight, student.decoder.state_dict()[name]), name


def test_a_corpus_may_keep_its_vectors_while_another_is_learnt(
    trained: Path, bitext: Path, tmp_path: Path, refused: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    base = trained / "final"
    kept = ["--bitext", bitext, "--taught"]
    train.main(arguments("mini-everyday", tmp_path / "kept", "--bitext", bitext, init=base, teacher=base))
    record = next(record for record in read_metrics(tmp_path / "kept" / "metrics.jsonl") if record["kind"] == "train")
    assert record["loss_distill"] >= 0 and record["loss_mt"] > 0
    capsys.readouterr()  # what it told so far
    refused(
        train.main,
        arguments("mini-everyday", tmp_path / "none", *kept, "stories", init=base, teacher=base),
        f"taught names stories, but the corpora are storyworld, {bitext}",
    )
    with pytest.raises(ValueError, match="to follow a teacher, but there is none; give one"):
        replace(recipes.codec_mini_everyday(), teacher="")


def test_two_files_of_one_name_are_judged_apart(trained: Path) -> None:
    rows = [{"eng_Latn": "a", "deu_Latn": "b"}, {"eng_Latn": "c", "deu_Latn": "d"}]
    run = train.parse(arguments("mini", trained))
    sets = train._judged(run, {"one/pairs.tsv": rows, "two/pairs.tsv.gz": rows[::-1], "storyworld.tmx": rows})
    assert list(sets) == ["storyworld", "pairs", "two_pairs_tsv.gz", "storyworld_tmx"]


def test_bitext_that_cannot_be_used_is_refused(bitext: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(train.main, arguments("mini", tmp_path, "--bitext", bitext, "--languages", "fra_Latn", "spa_Latn"), "no row has two")
    refused(train.main, arguments("mini", tmp_path, "--bitext", f"{bitext}@minded"), "SPEC@mined", "got the ending @minded")
    refused(train.main, arguments("mini", tmp_path, "--bitext", tmp_path / "none.tsv"), "no bitext at")
    refused(train.main, arguments("mini-language", tmp_path, init="mini", teacher="mini"), "bitext.tsv")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_study_trains_every_row_once_and_draws_the_table(
    bitext: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = ["MT", study.SONAR, study.TUNED, "attention pooling"]
    options = ["--bitext", str(bitext), "--test", "storyworld:test", "--out", str(tmp_path), "--seeds", "0", "--stories", "20"]
    options += ["--steps", "2", "--tuning-steps", "2", "--width", "32", "--layers", "1", "--pieces", "400", "--test-every", "400"]
    study.main(["objectives", *options, "--rows", *table, "--jobs", "1"])
    printed = capfd.readouterr().out
    assert list(json.loads((tmp_path / "rows.json").read_text())["rows"]) == table
    assert "| MT |" in printed and "hold" in printed
    tuned = Sonar.from_pretrained(tmp_path / "tuned_decoder-0" / "final")
    assert tuned.fingerprint() == Sonar.from_pretrained(tmp_path / "MT-0.1_MSE-0.01_DAE-0" / "final").fingerprint()
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("report.json")}
    assert len(times) == 4
    study.main(["objectives", *options, "--rows", *table, "--jobs", "1"])
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("report.json")}, "what is there is not done again"
    with pytest.raises(SystemExit):
        study.main(["objectives", *options, "--rows", "MT", "--pairs-per-step", "9"])
    told = capfd.readouterr().err
    assert "is of another study" in told and "pairs_per_step" in told


def test_a_study_of_rows_that_there_are_not_is_refused(refused: Callable[..., None], bitext: Path, tmp_path: Path) -> None:
    options = ["objectives", "--bitext", bitext, "--test", "storyworld:test", "--out", tmp_path, "--rows"]
    refused(study.main, [*options, "MTT"], "no row MTT", "MT + AE")
    refused(study.main, [*options, study.TUNED], "must be among the rows")
