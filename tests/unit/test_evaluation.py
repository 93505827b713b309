"""BLEU over a codec, the sets, noise, alarms, the report and its command, and the counts about stories, on cases worked out
by hand."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sacrebleu
import torch

from sonarkit import cli
from sonarkit.codec.pipeline import Sonar
from sonarkit.evaluation import report
from sonarkit.evaluation.codec import codec_report, distinct_rows, space_alarms, space_report
from sonarkit.evaluation.fragility import fragility_curve
from sonarkit.evaluation.sets import rows_of, spoken
from sonarkit.evaluation.stories import story_report
from sonarkit.evaluation.translation import FLORES_200, corpus_bleu, flores_tokenizer, scores, tokenizer_for
from sonarkit.evaluation.xsim import xsim_error
from sonarkit.models.rollout import Step, Story
from sonarkit.text.bitext import held_out
from sonarkit.text.tokenizer import Tokenizer


def write_jsonl(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_xsim_of_identical_and_of_permuted_vectors() -> None:
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    assert xsim_error(x, x) == 0
    swapped = x.clone()
    swapped[[0, 1]] = x[[1, 0]]
    assert xsim_error(x, swapped) == 2 / 50
    assert xsim_error(x, 3 * x + 0.01, chunk=7) == 0  # margins do not depend on length, nor on the chunk


def test_xsim_uses_the_margin_not_the_cosine() -> None:
    """A translation shrunk towards a common direction loses by cosine to hubs, and wins by its margin over the neighbourhood."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=noise)
    y = x + 0.8 * torch.randn(200, 12, generator=noise) + torch.rand(200, 1, generator=noise) * 3
    cosine = torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(y, dim=1).T
    by_cosine = (cosine.argmax(1) != torch.arange(200)).float().mean().item()
    near_x, near_y = cosine.topk(4, 1).values.mean(1), cosine.T.topk(4, 1).values.mean(1)
    by_margin = ((2 * cosine / (near_x[:, None] + near_y)).argmax(1) != torch.arange(200)).float().mean().item()
    assert xsim_error(x, y) == pytest.approx(by_margin)
    assert by_margin < by_cosine


def test_xsim_refuses_what_is_not_aligned() -> None:
    with pytest.raises(ValueError, match="one shape"):
        xsim_error(torch.zeros(3, 2), torch.zeros(4, 2))


def test_bleu_is_sacrebleus() -> None:
    assert corpus_bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)
    assert 0 < corpus_bleu(["the cat sat on a mat"], ["the cat sat on the mat"]) < 100
    one, other = ["小狐狸在森林里找到一只红色的风筝。"], ["小狐狸在花园里找到一只红色的风筝。"]
    assert corpus_bleu(one, other) < 1 and corpus_bleu(one, other, "zho_Hans") > 50  # no spaces between words


class Points:
    """A codec that encodes every sentence to the point it is told."""

    def __init__(self, vectors: dict[str, torch.Tensor]) -> None:
        self.vectors = vectors

    def encode(self, texts: list[str], lang: str) -> torch.Tensor:
        return self.vectors[lang][[int(text) for text in texts]]


def test_the_space_report_knows_one_space_two_and_none() -> None:
    x, y, z = torch.randn(3, 400, 8, generator=torch.Generator().manual_seed(0))
    rows = [{"eng_Latn": str(i), "fra_Latn": str(i)} for i in range(400)]
    one = space_report(Points({"eng_Latn": x, "fra_Latn": x}), rows)  # type: ignore[arg-type]
    assert one["language_gap"] == 0
    assert one["spread"] == pytest.approx(8**0.5, rel=0.05) and one["effective_dimension"] == pytest.approx(8, rel=0.05)
    assert space_report(Points({"eng_Latn": x, "fra_Latn": y}), rows)["language_gap"] == pytest.approx(1, abs=0.06)  # type: ignore[arg-type]
    near = space_report(Points({"eng_Latn": x, "fra_Latn": x + 0.1 * z}), rows)  # type: ignore[arg-type]
    assert near["language_gap"] == pytest.approx(0.01 / 2, rel=0.1)
    line = space_report(Points({"eng_Latn": 0.01 * x[:, :1] * torch.ones(8), "fra_Latn": y * 0}), rows)  # type: ignore[arg-type]
    assert line["effective_dimension"] == pytest.approx(1) and line["spread"] < 0.05


class Parrot:
    """A codec that remembers its sentences perfectly: auto-encoding and translation must score 100 and xsim 0."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def encode(self, texts: list[str], lang: str) -> torch.Tensor:
        return torch.eye(len(self.rows))[[next(i for i, row in enumerate(self.rows) if row[lang] == text) for text in texts]]

    def decode(self, z: torch.Tensor, lang: str, beam_size: int) -> list[str]:
        return [self.rows[int(i)][lang] for i in z.argmax(1)]


class Perfect(Parrot):
    """Knows nothing of altered sentences: each lies by itself, a little off the one it was made from."""

    class config:
        width = 64

    name = "perfect"

    def __init__(self, rows: list[dict[str, str]]) -> None:
        super().__init__(rows)
        self.known = {text for row in rows for text in row.values()}

    def fingerprint(self) -> str:
        return "0"

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.rows[0])

    def encode(self, texts: list[str], lang: str) -> torch.Tensor:
        z = torch.zeros(len(texts), 64)
        for i, text in enumerate(texts):
            near = max(
                range(len(self.rows)),
                key=lambda j: (self.rows[j][lang] == text, len(set(text.split()) & set(self.rows[j][lang].split()))),
            )
            z[i, near] = 1
            if text not in self.known:
                z[i, 32 + hash_of(text)] = 0.5
        return z


def hash_of(text: str) -> int:
    return sum(text.encode()) % 32


def test_a_perfect_codec_has_a_perfect_report() -> None:
    rows = [
        {"eng_Latn": f"the {n} ran home last night", "deu_Latn": f"der {n} lief gestern nach Hause"}
        for n in ("fox", "bear", "owl", "cat", "hen")
    ]
    report = codec_report(Parrot(rows), rows)  # type: ignore[arg-type]
    assert report["bleu_eng_Latn"] == report["bleu_deu_Latn-eng_Latn"] == report["bleu_translation"] == pytest.approx(100)
    assert report["xsim_mean"] == 0
    for measure in (codec_report, space_report):
        with pytest.raises(ValueError, match="two languages or more, got eng_Latn"):
            measure(Parrot(rows), [{"eng_Latn": row["eng_Latn"]} for row in rows])  # type: ignore[arg-type]


def test_rows_that_repeat_a_sentence_do_not_count_in_xsim() -> None:
    rows = [{"a": "x", "b": "1"}, {"a": "y", "b": "1"}, {"a": "z", "b": "2"}, {"a": "x", "b": "3"}]
    assert distinct_rows(rows) == [0, 2]


def story(sentences: list[str], prompt: int, stopped: str, last: str = "") -> Story:
    step = Step(0, torch.zeros(1), last, torch.zeros(1), 0.0, 0.0, stopped)  # type: ignore[arg-type]
    return Story("", sentences, prompt, torch.zeros(len(sentences), 1), stopped, [step])  # type: ignore[arg-type]


def test_story_report_counts_ends_and_repetitions() -> None:
    report = story_report(
        [
            story(["a", "b", "c"], 1, "end", "End of sequence."),  # told b c
            story(["a", "b"], 1, "loop", "a"),  # told b, and a again
            story(["a", "b", "b", "d", "e"], 1, "max_sentences", "e"),  # told b b d e
        ]
    )
    assert report["stopped_end"] == report["stopped_loop"] == report["stopped_max_sentences"] == pytest.approx(1 / 3)
    assert report["repeated_sentences"] == pytest.approx(2 / 8)
    assert report["sentences_per_story"] == pytest.approx(8 / 3)
    of_tokens = replace(story(["a", "b"], 1, "loop", "a"), steps=[])  # a token-level model takes no steps
    assert story_report([of_tokens])["repeated_sentences"] == 0.5
    with pytest.raises(ValueError, match="at least one story"):
        story_report([])


# ---------------------------------------------------------------------- sets


def named(rows: list[dict[str, str]]) -> list[str]:
    return sorted(rows[0])


def test_the_sets_that_ship() -> None:
    rows = rows_of("storyworld:test", every=10)
    assert len(rows) == 547 and named(rows) == ["deu_Latn", "eng_Latn", "fra_Latn", "spa_Latn"]
    assert len(rows_of("handwritten")) == 196 and named(rows_of("handwritten", ["de", "English"])) == ["deu_Latn", "eng_Latn"]
    with pytest.raises(ValueError, match="storyworld:test"):
        rows_of("storyworld:train")
    with pytest.raises(FileNotFoundError, match=r"no evaluation set at nowhere\.jsonl"):
        rows_of("nowhere.jsonl")
    with pytest.raises(ValueError, match="every is at least 1"):
        rows_of("handwritten", every=0)
    with pytest.raises(ValueError, match="handwritten: unknown language 'ita_Latn'.*deu_Latn"):
        rows_of("handwritten", ["ita_Latn"])


def test_an_aligned_file_and_its_held_out_rows(tmp_path: Path) -> None:
    rows = [{"eng_Latn": f"Sentence {i}.", "deu_Latn": f"Satz {i}."} for i in range(500)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert rows_of(tmp_path / "pairs.jsonl") == [dict(sorted(row.items())) for row in rows]
    kept = rows_of(f"{tmp_path / 'pairs.jsonl'}@held-out")
    assert 0 < len(kept) < 30 and all(held_out(row["eng_Latn"]) for row in kept)
    with pytest.raises(ValueError, match="@held-out, or the file without @"):
        rows_of(f"{tmp_path / 'pairs.jsonl'}@test")


def test_rows_that_lack_a_language_are_counted(tmp_path: Path) -> None:
    full = {"eng_Latn": "One.", "deu_Latn": "Eins.", "fra_Latn": "Un."}
    write_jsonl(tmp_path / "three.jsonl", [full, {"eng_Latn": "Two.", "deu_Latn": "Zwei."}, {**full, "eng_Latn": "Three."}])
    with pytest.warns(UserWarning, match="1 of 3 rows lack one of deu_Latn, eng_Latn, fra_Latn"):
        assert len(rows_of(tmp_path / "three.jsonl")) == 2
    assert len(rows_of(tmp_path / "three.jsonl", ["eng_Latn", "deu_Latn"])) == 3
    write_jsonl(tmp_path / "apart.jsonl", [{"eng_Latn": "a", "deu_Latn": "b"}, {"fra_Latn": "c", "spa_Latn": "d"}])
    with pytest.raises(ValueError, match="no row with all of eng_Latn, fra_Latn"):
        rows_of(tmp_path / "apart.jsonl", ["eng_Latn", "fra_Latn"])


def test_flores_200_as_it_is_unpacked(tmp_path: Path) -> None:
    for split, count in (("dev", 3), ("devtest", 2)):
        (tmp_path / split).mkdir()
        for code in ("eng_Latn", "zho_Hans", "sat_Olck", "arb_Latn"):  # the last is not SONAR's
            text = "".join(f"{code} {split} {i}\n" for i in range(count))
            (tmp_path / split / f"{code}.{split}").write_text(text, encoding="utf-8")
    rows = rows_of(tmp_path)
    assert len(rows) == 2 and named(rows) == ["eng_Latn", "sat_Beng", "zho_Hans"] and rows[1]["sat_Beng"] == "sat_Olck devtest 1"
    assert rows_of(tmp_path / "devtest") == rows and len(rows_of(f"{tmp_path}@dev", ["en"])) == 3
    with pytest.raises(ValueError, match="expected @devtest or @dev"):
        rows_of(f"{tmp_path}@test")
    (tmp_path / "devtest" / "zho_Hans.devtest").write_text("one line\n", encoding="utf-8")
    with pytest.raises(ValueError, match="here 2, but zho_Hans has 1 lines"):
        rows_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no FLORES"):
        rows_of(tmp_path / "empty")


def flores_plus(code: str, variety: str = "") -> list[dict[str, object]]:
    language, script = code.split("_")
    texts = [f"{code}{variety} {i}" for i in range(3)]
    return [
        {"id": i, "iso_639_3": language, "iso_15924": script, "glottocode": variety or "x", "text": t}
        for i, t in enumerate(texts)
    ]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_flores_plus_in_files_by_language_and_in_one(tmp_path: Path, kind: str) -> None:
    def write(path: Path, rows: list[dict[str, object]]) -> None:
        path.parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path) if kind == "parquet" else write_jsonl(path, rows)

    languages = {"eng_Latn": "", "cmn_Hans": "", "cat_Latn": "", "cat_Latn_vale1252": "vale", "dar_Cyrl": ""}
    tables = {name: flores_plus(name[:8], variety) for name, variety in languages.items()}
    tables["cmn_Hans"].reverse()  # aligned by id, not by place
    for name, rows in tables.items():
        write(tmp_path / "devtest" / f"{name}.{kind}", rows)
    with pytest.warns(UserWarning, match="dar_Cyrl"):
        found = rows_of(tmp_path, ["eng_Latn", "zho_Hans", "cat_Latn"])
    assert [row["zho_Hans"][-1] + row["eng_Latn"][-1] for row in found] == ["00", "11", "22"]
    assert [row["cat_Latn"] for row in found] == ["cat_Latn 0", "cat_Latn 1", "cat_Latn 2"]  # not Valencian
    write(tmp_path / f"all.{kind}", [row for name in ("eng_Latn", "cmn_Hans", "cat_Latn") for row in tables[name]])
    assert rows_of(tmp_path / f"all.{kind}", ["eng_Latn", "zho_Hans", "cat_Latn"]) == found


def test_only_languages_that_the_codec_has() -> None:
    rows = [{"eng_Latn": "a", "zul_Latn": "b"}]
    with pytest.warns(UserWarning, match="1 languages of the set"):
        assert spoken(rows, ("eng_Latn", "fra_Latn")) == [{"eng_Latn": "a"}]
    with pytest.raises(ValueError, match="none of the set's languages, eng_Latn, zul_Latn; it has fra_Latn"):
        spoken(rows, ("fra_Latn",))


# ---------------------------------------------------------------------- scores


def test_scores_tell_how_they_were_counted() -> None:
    told, right = ["the cat sat on a mat", "it rains"], ["the cat sat on the mat", "it rains"]
    found = scores(told, right)
    assert found.bleu == pytest.approx(corpus_bleu(told, right)) and "tok:13a" in found.signatures["bleu"]
    assert (
        found.chrf == pytest.approx(sacrebleu.corpus_chrf(told, [right], word_order=2).score)
        and "nw:2" in found.signatures["chrf"]
    )
    chinese = scores(["他昨天回家了。"], ["他昨天回到家了。"], "zho_Hans", tokenizer=tokenizer_for("zho_Hans", False))
    assert "tok:zh" in chinese.signatures["bleu"] and chinese.bleu > corpus_bleu(["他昨天回家了。"], ["他昨天回到家了。"])
    assert tokenizer_for("zho_Hans", True) == "flores200" and tokenizer_for("tha_Thai", False) == "char"
    with pytest.raises(ValueError, match="got 1 texts and 2"):
        scores(["a"], ["a", "b"])


def test_spbleu_is_asked_for_once_and_nobody_waits_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sacrebleu.utils, "SACREBLEU_DIR", str(tmp_path))
    path = tmp_path / "models" / "flores200sacrebleuspm"

    def refused(url: str, to: Path) -> None:
        raise OSError("no route to host")

    assert flores_tokenizer(5, refused) == "no route to host"
    began = time.monotonic()
    assert flores_tokenizer(0.05, lambda url, to: time.sleep(30)) == "no answer within 0.05 s"
    assert time.monotonic() - began < 10
    monkeypatch.setenv("SONARKIT_OFFLINE", "1")
    assert "SONARKIT_OFFLINE is set" in flores_tokenizer(30)  # the real way asks nobody then

    def came(url: str, to: Path) -> None:
        to.parent.mkdir(parents=True)
        to.write_bytes(b"model")

    assert flores_tokenizer(5, came) == "" and path.is_file()
    assert flores_tokenizer(5.5, refused) == ""  # it is here now


def test_spbleu_counts_the_model_s_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """With another SentencePiece model in its place, since FLORES-200's is not at hand in tests."""
    from sacrebleu.tokenizers import tokenizer_spm

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / Path(FLORES_200).name).write_bytes(tokenizer.model)
    told, right = ["Mia fand einen roten Drachen im Wald."], ["Mia fand einen blauen Drachen im Wald."]
    found = scores(told, right, "deu_Latn", tokenizer=tokenizer_for("deu_Latn", True))
    assert "tok:flores200" in found.signatures["bleu"] and found.bleu != pytest.approx(corpus_bleu(told, right), abs=0.5)


# ---------------------------------------------------------------------- noise


class Words:
    """A codec of sentences of ten words: each is one coordinate of z, decoded by rounding; noise of 0.5 begins to confuse it."""

    def encode(self, texts: list[str], lang: str) -> torch.Tensor:
        return torch.tensor([[2.0 * len(word) - 7 for word in text.split()] for text in texts])

    def decode(self, z: torch.Tensor, lang: str, beam_size: int) -> list[str]:
        return [" ".join("x" * int(n) for n in ((row + 7) / 2).round().clamp(1, 6)) for row in z]


def test_the_fragility_curve_falls_and_is_the_same_each_time() -> None:
    draw = torch.Generator().manual_seed(0)
    texts = [" ".join("x" * int(n) for n in torch.randint(1, 7, (10,), generator=draw)) for _ in range(40)]
    curve = fragility_curve(Words(), texts, noise=(0, 0.05, 0.3, 1, 3))  # type: ignore[arg-type]
    assert curve.bleu_L[0] == curve.bleu_L[1] == pytest.approx(100) and curve.chrf_LN[0] == pytest.approx(np.full(40, 100))
    assert curve.cosine_LN[0] == pytest.approx(np.ones(40), abs=1e-5)
    assert all(np.diff(curve.bleu_L[1:]) < 0) and all(np.diff(curve.cosine_LN.mean(1)[1:]) < 0)
    half = curve.half()
    assert half is not None and 0.3 < half < 1 and curve.bleu_L[2] > 50 > curve.bleu_L[3]
    again = fragility_curve(Words(), texts, noise=(0, 1))  # type: ignore[arg-type]
    assert again.texts[1] == curve.texts[3]  # the same directions at every level, whatever the others
    assert fragility_curve(Words(), texts, noise=(0, 1), seed=1).texts[1] != again.texts[1]  # type: ignore[arg-type]
    assert fragility_curve(Words(), texts, noise=(0, 0.05)).half() is None  # type: ignore[arg-type]
    lengths = fragility_curve(Words(), texts, noise=(0, 1), judge=lambda told: torch.tensor([[len(t), 1.0] for t in told]))  # type: ignore[arg-type]
    assert lengths.cosine_LN[1].min() > 0.999 > again.cosine_LN[1].mean() and lengths.table()[1]["bleu"] == again.bleu_L[1]


def test_noise_is_relative_to_each_vector() -> None:
    """Vectors a hundred times as long, and a decoder that divides by it, give the same curve."""

    class Long(Words):
        def encode(self, texts: list[str], lang: str) -> torch.Tensor:
            return 100 * super().encode(texts, lang)

        def decode(self, z: torch.Tensor, lang: str, beam_size: int) -> list[str]:
            return super().decode(z / 100, lang, beam_size)

    texts = ["x xx xxx xxxx xxxxx xxxxxx", "xxx xxx x x xx xxxxx"]
    short, long = (fragility_curve(codec, texts, noise=(0, 0.5)) for codec in (Words(), Long()))  # type: ignore[arg-type]
    assert short.texts == long.texts


def test_noise_levels_that_make_no_curve() -> None:
    for levels in ((), (0.1, 0.2), (0, 0.5, 0.2)):
        with pytest.raises(ValueError, match="begin with 0 and rise"):
            fragility_curve(Words(), ["x"], noise=levels)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one sentence"):
        fragility_curve(Words(), [])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- alarms


def test_alarms_ring_for_what_is_broken_only() -> None:
    x, y = torch.randn(2, 300, 64, generator=torch.Generator().manual_seed(0))
    rows = [{"eng_Latn": str(i), "fra_Latn": str(i)} for i in range(300)]

    def alarms(english: torch.Tensor, french: torch.Tensor) -> list[str]:
        return space_alarms(space_report(Points({"eng_Latn": english, "fra_Latn": french}), rows), 300, 64)  # type: ignore[arg-type]

    assert alarms(x, x + 0.3 * y) == []
    assert alarms(x + 0.5, x + 0.5) == []  # off the origin, but not collapsed
    [line] = alarms(x + 3, x + 3)
    assert line.startswith("collapse: relative spread 0.3") and "MT or DAE" in line
    [line] = alarms(x, y)
    assert line.startswith("languages apart: language gap 1.0")
    [line] = alarms(x @ torch.diag(torch.tensor([1.0] * 3 + [0.01] * 61)), x @ torch.diag(torch.tensor([1.0] * 3 + [0.01] * 61)))
    assert line.startswith("few directions: effective dimension 3.0 < 8.0 of 64")
    for point in (torch.zeros(300, 64), torch.full((300, 64), float("nan"))):
        [line] = alarms(point, point)
        assert line.startswith("not finite")


# ---------------------------------------------------------------------- the report


def test_the_report_of_a_perfect_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "flores_tokenizer", lambda: "there is no network")
    rows = [
        {
            "eng_Latn": f"the {n} ran home last night and Tom was happy",
            "deu_Latn": f"der {n} lief gestern nach Hause",
            "fra_Latn": f"un {n} rentra",
        }
        for n in ("fox", "bear", "owl", "cat", "hen")
    ]
    codec = Perfect(rows)
    found = report.evaluate_codec(codec, [*rows, rows[0]], noise=(0,))  # type: ignore[arg-type]
    assert found["sentences"] == 6 and found["distinct"] == 5 and found["negatives"]["causality"] >= 5
    for code in ("deu_Latn", "fra_Latn"):
        row = found["languages"][code]
        assert [row[key] for key in ("bleu_to_pivot", "chrf_from_pivot", "accuracy")] == pytest.approx([100] * 3)
        assert row["xsim"] == row["xsim_back"] == 0
    assert "xsim" not in found["languages"]["eng_Latn"] and found["mean"]["xsim"] == 0
    assert found["alarms"] == [] or all("dimension" in alarm for alarm in found["alarms"])
    assert (
        any("no spBLEU" in note and "no network" in note for note in found["notes"]) and "1 of 6 rows repeat" in found["notes"][1]
    )
    assert "tok:13a" in found["signatures"]["deu_Latn"]["bleu"] and found["fragility"]["levels"][0]["bleu"] == pytest.approx(100)
    assert json.loads(json.dumps(found)) == found
    lines = report.table_of(found).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["deu_Latn", "eng_Latn", "fra_Latn", "mean"]
    assert len({len(line) for line in (lines[1], lines[2], lines[4], lines[5])}) == 1  # columns line up
    assert lines[2].split()[1:] == ["100.0"] * 6 + ["0.0", f"{found['languages']['deu_Latn']['xsim_plus_plus']:.1f}", "100.0"]


def test_the_report_shows_a_codec_that_hears_no_negation() -> None:
    rows = [
        {"eng_Latn": f"the {n} was happy with 12 eggs", "deu_Latn": f"der {n} freute sich über 12 Eier"}
        for n in ("fox", "bear", "owl", "cat")
    ]

    class Deaf(Perfect):
        """Takes German for the negated English."""

        def encode(self, texts: list[str], lang: str) -> torch.Tensor:
            z = super().encode(texts, lang)
            if lang == "deu_Latn":
                negated = [f"the {text.split()[1]} was not happy with 12 eggs" for text in texts]
                z[range(len(z)), [32 + hash_of(text) for text in negated]] = 0.5
            return z

    found = report.evaluate_codec(Deaf(rows), rows, spbleu=False)  # type: ignore[arg-type]
    kinds = found["languages"]["deu_Latn"]["xsim_plus_plus_by_kind"]
    assert kinds == {"causality": 100, "entity": 0, "number": 0, "other sentence": 0}
    assert found["mean"]["xsim_plus_plus"] == 100 and found["mean"]["xsim"] == 0 and found["notes"] == []
    without = report.evaluate_codec(Deaf(rows), rows, pivot="deu_Latn", spbleu=False)  # type: ignore[arg-type]
    assert "xsim_plus_plus" not in without["mean"] and without["negatives"] == {}


def test_the_report_refuses_what_cannot_be_measured(sonar: Sonar) -> None:
    row = {"eng_Latn": "One.", "fra_Latn": "Un."}
    with pytest.raises(ValueError, match="at least two rows.*got 1"):
        report.evaluate_codec(sonar, [row])
    with pytest.raises(ValueError, match="two different rows, got 3 times the same"):
        report.evaluate_codec(sonar, [row] * 3)
    with pytest.raises(ValueError, match="pivot is not among.*deu_Latn"):
        report.evaluate_codec(sonar, [row, row], pivot="deu_Latn")
    with pytest.raises(ValueError, match="does not have every language.*ita_Latn"):
        report.evaluate_codec(sonar, [{**row, "ita_Latn": "Uno."}] * 2)


def test_one_language_alone_is_auto_encoding(sonar: Sonar) -> None:
    found = report.evaluate_codec(sonar, [{"eng_Latn": "A fox ran."}, {"eng_Latn": "A bear."}], beam_size=1, spbleu=False)
    assert set(found["mean"]) == {"bleu", "chrf"} and "space" not in found
    assert len(report.table_of(found).splitlines()[2].split()) == 3 and found["fingerprint"] == sonar.fingerprint()


# ---------------------------------------------------------------------- the command


def test_the_command_prints_a_table_and_writes_json(
    sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sonar.save_pretrained(tmp_path / "codec")
    write_jsonl(
        tmp_path / "pairs.jsonl", [{"eng_Latn": f"A fox ran {n}.", "fra_Latn": f"Un {n}."} for n in ("home", "away", "off")]
    )

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sonarkit", "evaluate", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as ending:
            status = int(ending.code or 0)
        return (status, *capsys.readouterr())

    fixed = ("codec", tmp_path / "codec", "--beam-size", 1, "--no-spbleu")
    out = tmp_path / "report.json"
    status, told, _ = command(*fixed, "--on", tmp_path / "pairs.jsonl", "--noise", 0, 0.5, "--out", out)
    lines = told.splitlines()
    assert status == 0 and "on 3 sentences of" in lines[0] and lines[3].startswith("eng_Latn") and lines[5].startswith("mean")
    found = json.loads(out.read_text())
    assert found["fingerprint"] == sonar.fingerprint() and found["on"].endswith("pairs.jsonl") and found["every"] == 1
    assert len(found["fragility"]["levels"]) == 2 and {"seconds", "signatures", "sentences", "space"} <= set(found)
    status, told, _ = command(*fixed, "--on", tmp_path / "pairs.jsonl", "--every-direction", "--out", out)
    found = json.loads(out.read_text())
    names = ("bleu_eng_Latn", "bleu_eng_Latn-fra_Latn", "bleu_fra_Latn-eng_Latn", "bleu_translation", "xsim_mean")
    assert status == 0 and {"fingerprint", "on", *names} <= set(found) and f"{'xsim_mean':32s} {found['xsim_mean']:8.3f}" in told
    for wrong, reason in (
        (("--on", tmp_path / "pairs.jsonl", "--langs", "en", "ita_Latn"), "ita_Latn"),
        (("--on", tmp_path / "no.jsonl"), "no evaluation set at"),
        (("--on", tmp_path / "pairs.jsonl", "--noise", 0.5), "must begin with 0"),
        (("--on", tmp_path / "pairs.jsonl", "--noise", 0, 1, "--every-direction"), "one after the other"),
        (("--on", tmp_path / "pairs.jsonl", "--pivot", "deu_Latn", "--every-direction"), "--pivot: of the table"),
        (("--on", tmp_path / "pairs.jsonl", "--every", 3), "at least two rows"),
        (("--on", tmp_path / "pairs.jsonl", "--pivot", "de"), "pivot"),
    ):
        status, told, err = command(*fixed, *wrong)
        assert status == 2 and reason in err and len(err.splitlines()) == 1 and "Traceback" not in err, wrong
    status, _, err = command("story")
    assert status == 2 and "sonarkit evaluate codec" in err
    status, told, _ = command("codec", "--help")
    assert status == 0 and told.count("  sonarkit evaluate codec") >= 3


def test_the_command_s_examples_are_understood() -> None:
    lines = [
        line.strip() for line in (inspect.getdoc(cli.evaluate_codec) or "").splitlines() if line.strip().startswith("sonarkit ")
    ]
    assert len(lines) >= 3
    for line in lines:
        with pytest.raises(SystemExit) as ending:
            cli._run(cli.evaluate_codec, "evaluate codec", [*shlex.split(line)[3:], "--help"])
        assert ending.value.code == 0, line
