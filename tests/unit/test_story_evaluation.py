"""A model of any family from its folder, bits per byte against the losses, and stories as one report."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_mse_lcm import SHAPE, documents, normalizer_of  # type: ignore[import-not-found]

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.checkpoint import write_safetensors
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.evaluation import story_evaluation
from sonarkit.evaluation.bits_per_byte import bits_per_byte, text_bits
from sonarkit.evaluation.story_evaluation import StoryEvaluation, StoryPrompts, evaluate_stories, prompts_for
from sonarkit.models import concept_model
from sonarkit.models.diffusion_lcm import DiffusionLCM, DiffusionLCMConfig, NoiseSchedule, SamplingConfig
from sonarkit.models.family import MODELS, Model, family_name, load_model, trained_parameters
from sonarkit.models.mse_lcm import MseLCM, MseLCMConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.models.token_llm import CodecTokens, TokenLLM
from sonarkit.store.reader import Store

STORIES = [
    ["The fox ran home.", "Mia slept.", "Tom sang a song."],
    ["Tom found a map.", "It was old.", "He gave it to a friend.", "They laughed."],
    ["Once upon a time there was a bear.", "The bear was kind.", "They all laughed."],
]
PROMPTS = StoryPrompts([story[:2] for story in STORIES], [story[2:] for story in STORIES], "eng_Latn", "three")


def tiny(family: str, sonar: Sonar, codec: str = "tiny") -> Model:
    torch.manual_seed(0)
    of_codec = (32, codec, sonar.fingerprint())
    match family:
        case "sonar-llm":
            return SonarLLM(SonarLLMConfig(SHAPE, *of_codec), sonar).eval()
        case "mse-lcm":
            return MseLCM(MseLCMConfig(SHAPE, *of_codec), sonar, normalizer_of(documents())).eval()
        case "diffusion-lcm":
            config = DiffusionLCMConfig(SHAPE, 2, *of_codec, NoiseSchedule(timesteps=40))
            return DiffusionLCM(config, sonar, normalizer_of(documents())).eval()
    return TokenLLM.new(SHAPE, CodecTokens(sonar.tokenizer)).eval()


@pytest.fixture(autouse=True)
def long_sentences_are_expected() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a random codec's sentences are long
        yield


@pytest.fixture
def store(sonar: Sonar, tmp_path: Path) -> Store:
    (tmp_path / "three.txt").write_text("\n\n".join(" ".join(story) for story in STORIES), encoding="utf-8")
    sonar.name = "tiny"
    encode_into(str(tmp_path / "three.txt"), tmp_path / "store", sonar, World(0, 1, 0, torch.device("cpu")))
    return Store(tmp_path / "store")


# ---------------------------------------------------------------------- any family


@pytest.mark.parametrize("family", MODELS)
def test_a_folder_tells_its_family(family: str, sonar: Sonar, tmp_path: Path) -> None:
    sonar.save_pretrained(tmp_path / "codec", torch.float32)
    saved = tiny(family, Sonar.from_pretrained(tmp_path / "codec"), str(tmp_path / "codec"))
    saved.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is MODELS[family] and family_name(loaded) == family
    assert trained_parameters(loaded) == trained_parameters(saved)


@pytest.mark.parametrize("family", MODELS)
def test_what_ships_is_found_by_its_name_and_what_does_not_is_told_how_to_train(
    family: str, sonar: Sonar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concept_model, "asset", lambda name: tmp_path / name)
    for load in (MODELS[family].from_pretrained, lambda _: load_model(f"mini-{family}")):
        with pytest.raises(FileNotFoundError, match=rf"(?i)no {family} ships .*train one \(.*train.py {family} --size mini"):
            load("mini")
    sonar.save_pretrained(tmp_path / "codec", torch.float32)
    saved = tiny(family, Sonar.from_pretrained(tmp_path / "codec"), str(tmp_path / "codec"))
    saved.save_pretrained(tmp_path / "mini" / family)
    assert type(load_model(f"mini-{family}")) is type(MODELS[family].from_pretrained("mini")) is MODELS[family]


def test_mini_is_the_shipped_sonar_llm_and_what_is_no_model_is_refused(sonar: Sonar, tmp_path: Path) -> None:
    assert isinstance(load_model("mini"), SonarLLM) and isinstance(load_model("mini-sonar-llm"), SonarLLM)
    with pytest.raises(FileNotFoundError, match="expected mini, mini-FAMILY, or a folder"):
        load_model(tmp_path / "none")
    sonar.save_pretrained(tmp_path / "codec")
    with pytest.raises(ValueError, match="weights of sonarkit-codec-1; expected those of sonar-llm, mse-lcm"):
        load_model(tmp_path / "codec")
    (tmp_path / "bare").mkdir()
    write_safetensors(tmp_path / "bare" / "model.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="without a format that sonarkit wrote"):
        load_model(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_model(tmp_path / "bare")


def test_the_embedding_is_counted_apart(sonar: Sonar) -> None:
    model = tiny("token-llm", sonar)
    backbone = sum(p.numel() for p in model.backbone.parameters())
    assert trained_parameters(model) == (backbone, sonar.tokenizer.size * SHAPE.hidden)
    ends = 32 * SHAPE.hidden * 2 + SHAPE.hidden + 32  # the projections and their biases
    assert trained_parameters(tiny("sonar-llm", sonar)) == (backbone + ends, 0)


# ---------------------------------------------------------------------- bits per byte


def test_bits_are_those_of_sonar_llm_s_own_loss(sonar: Sonar, store: Store) -> None:
    model = tiny("sonar-llm", sonar)
    tokenizer = sonar.tokenizer
    batch = [store.document(i, tokenizer.language_id("eng_Latn"), tokenizer.eos_id) for i in range(3)]
    bits, text_bytes = model.loss(batch).parts["bits_per_byte"]  # type: ignore[union-attr]
    assert bits_per_byte(model, store).value == pytest.approx(float(bits) / text_bytes, rel=1e-5)
    assert text_bytes == sum(len(s.encode()) for story in STORIES for s in story[1:]) + 3 * len("End of sequence.")


def test_bits_of_a_vector_are_the_decoder_s(sonar: Sonar, store: Store) -> None:
    """Sentence by sentence, by `predict_next` and `token_loss`."""
    model = tiny("mse-lcm", sonar)
    assert isinstance(model, MseLCM)
    nats = text_bytes = 0.0
    for story in STORIES:
        texts = [*story, "End of sequence."]
        z = sonar.encode(texts)
        for i in range(1, len(texts)):
            nats += float(sonar.token_loss(model.predict_next(z[None, :i]), [texts[i]]).total)
            text_bytes += len(texts[i].encode())
    assert bits_per_byte(model, store).value == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-3)  # stored in float16
    rows_N2 = text_bits(model, STORIES, "eng_Latn")
    assert rows_N2[:, 0].sum() / rows_N2[:, 1].sum() == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)


def test_bits_of_a_token_model_are_its_loss(sonar: Sonar, store: Store) -> None:
    model = tiny("token-llm", sonar)
    assert isinstance(model, TokenLLM)
    bits, text_bytes = model.loss([model.document(story, len(b"End of sequence.")) for story in STORIES]).parts["bits_per_byte"]
    found = bits_per_byte(model, store, limit=10)
    assert found.value == pytest.approx(float(bits) / text_bytes, rel=1e-5) and found.count == 3


def test_a_diffusion_draws_for_each_story_whatever_its_batch(sonar: Sonar) -> None:
    model = tiny("diffusion-lcm", sonar)
    together, alone = text_bits(model, STORIES, "eng_Latn"), text_bits(model, STORIES[1:2], "eng_Latn", seed=1)
    np.testing.assert_allclose(together[1], alone[0], rtol=1e-4)
    z = sonar.encode(STORIES[1][:1])
    assert isinstance(model, DiffusionLCM)
    first, other = (model.predict_next(z[None], SamplingConfig(), seed) for seed in (1, 2))
    assert not torch.allclose(first, other)


def test_what_cannot_be_counted_is_refused(sonar: Sonar, store: Store) -> None:
    model = tiny("sonar-llm", sonar)
    with pytest.raises(ValueError, match="at least one story"):
        text_bits(model, [], "eng_Latn")
    store.manifest["codec_fingerprint"] = "another"
    with pytest.raises(ValueError, match="their vectors mean different things"):
        bits_per_byte(model, store)


# ---------------------------------------------------------------------- the report


@pytest.mark.parametrize("family", MODELS)
def test_every_family_is_told_alike(family: str, sonar: Sonar) -> None:
    model = tiny(family, sonar)
    options: dict[str, Any] = {"max_sentences": 4, "resamples": 20, "max_tokens": 24}
    found = evaluate_stories(model, PROMPTS, family, **options)
    again = evaluate_stories(tiny(family, sonar), PROMPTS, family, **options)
    assert json.dumps(found.to_dict()) == json.dumps(again.to_dict())
    assert found.family == family and found.settings["beam_size"] == (1 if family == "token-llm" else 5)
    assert {"grammar", "plot", "ended", "looped", "bits_per_byte", "bleu_first", "chrf", "rouge_l"} <= set(found.scores)
    assert [story["prompt"] for story in found.stories] == [" ".join(beginning) for beginning in PROMPTS.beginnings]
    assert all(len(found.rows[name]) == 3 for name in story_evaluation.COMPARED)
    back = StoryEvaluation.from_dict(json.loads(json.dumps(found.to_dict())))
    assert back.to_dict() == found.to_dict() and story_evaluation.table([back]) == story_evaluation.table([found])


def told(name: str, shift: float, looped: bool = False, count: int = 12) -> StoryEvaluation:
    """What might have been found of a model: every score `shift` above that of another."""
    base = np.arange(count) % 5 + shift
    rows = dict.fromkeys((*story_evaluation.story_judge.SCORES, "rouge_l"), base)
    rows |= {"ended": np.full(count, 100.0 * (not looped)), "looped": np.full(count, 100.0 * looped)}
    rows["bits_per_byte"] = np.stack([30.0 + base, np.full(count, 40.0)], 1)
    scores = {key: story_evaluation.score_of(key, values) for key, values in rows.items()}
    scores["bleu"] = story_evaluation.Interval(10 + shift, 8, 12, count)
    settings = {"on": "s", "lang": "eng_Latn", "beam_size": 5, "max_sentences": 32, "seed": 0, "novelty_against": 0}
    stories = [{"prompt": f"A fox {i}.", "told": ["It ran."], "stopped_by": "end"} for i in range(count)]
    counts = {"parameters": 1_500_000.0, "embedding_parameters": 2_000_000.0 if looped else 0.0}
    return StoryEvaluation(name, "mse-lcm", scores, rows, {}, counts, settings, stories)


def test_models_are_tested_against_the_first_story_by_story() -> None:
    first, better, same = told("one", 0.0), told("two", 2.0, looped=True), told("three", 0.0)
    found = story_evaluation.comparisons(first, better)
    assert found["plot"].difference.value == pytest.approx(2.0) and found["plot"].p_value < 0.01
    assert found["bits_per_byte"].difference.value == pytest.approx(2 / 40) and found["looped"].difference.value == 100
    assert story_evaluation.comparisons(first, same)["plot"].p_value == 1.0
    lines = story_evaluation.comparison_table([first, better, same]).splitlines()
    assert len(lines) == 4 and "| **+2.00** (p 0.00" in lines[2] and "| +0.00 (p 1.000)" in lines[3]
    assert story_evaluation.comparison_table([first]) == ""
    with pytest.raises(ValueError, match="different prompts"):
        story_evaluation.comparisons(first, replace(better, stories=first.stories[:-1]))


def test_the_table_has_a_row_for_each_model() -> None:
    one, two = told("one", 0.0), told("two", 1.0, looped=True)
    lines = story_evaluation.table([one, two]).splitlines()
    assert len(lines) == 4 and lines[0].startswith("| model | parameters | grammar | consistency | plot |")
    grammar = one.scores["grammar"]
    assert lines[2].startswith(f"| one | 1.50M | {grammar.value:.2f} ± {(grammar.high - grammar.low) / 2:.2f} |")
    assert lines[3].startswith("| two | 1.50M + 2.00M embedding |") and lines[3].endswith("| 11.0 | 2.8 |")


def test_seeds_are_pooled_story_by_story() -> None:
    pooled = story_evaluation.pooled([told("one", 0.0), told("one", 1.0)])
    assert pooled.scores["plot"].value == pytest.approx(told("one", 0.5).scores["plot"].value)
    assert pooled.scores["bleu"].value == 10.5 and math.isnan(pooled.scores["bleu"].low)
    assert pooled.scores["bits_per_byte"].value == pytest.approx(told("one", 0.5).scores["bits_per_byte"].value)
    drawn = [replace(told("one", 0.0), settings={"options": {"sampling": {"guidance": g}, "stop_on": "x"}}) for g in (1.0, 3.0)]
    assert story_evaluation.pooled(drawn).settings["options"] == {"stop_on": "x"}
    lone = told("one", 0.0)
    assert story_evaluation.pooled([lone]) is lone


def test_the_report_is_read_back_by_the_llm_judge(tmp_path: Path) -> None:
    file = tmp_path / "stories.json"
    file.write_text(json.dumps(story_evaluation.report_of([told("one", 0.0), told("two", 1.0)])))
    stories = story_evaluation.told_in(file)
    assert list(stories) == ["one", "two"] and (stories["one"][3].prompt, stories["one"][3].told) == ("A fox 3.", "It ran.")
    file.write_text("[]")
    with pytest.raises(ValueError, match="expected what sonarkit evaluate stories --out wrote"):
        story_evaluation.told_in(file)


def test_prompts_are_the_first_two_sentences() -> None:
    prompts = prompts_for("storyworld:test", 4, "fra_Latn")
    assert len(prompts.beginnings) == len(prompts.references) == 4
    assert all(len(beginning) == 2 for beginning in prompts.beginnings) and prompts.lang == "fra_Latn"
    with pytest.raises(ValueError, match="no stories in ita_Latn; its languages are deu_Latn, eng_Latn"):
        prompts_for("storyworld:test", 4, "ita_Latn")
    with pytest.raises(ValueError, match="at least 1; got 0"):
        prompts_for("storyworld:test", 0)


def test_a_sentence_that_is_cut_is_divided_by_what_is_told_of_it(sonar: Sonar, tmp_path: Path) -> None:
    """62 pieces at most: twice as many words are as many bits, and as many bytes; in a store, too."""
    model = tiny("sonar-llm", sonar)
    stories = [["A fox.", " ".join(["the fox ran"] * times)] for times in (60, 120)]
    rows_N2 = text_bits(model, stories, "eng_Latn")
    kept = len(sonar.tokenizer.decode(sonar.target_ids([stories[0][1]], "eng_Latn")[0]).encode())
    assert rows_N2[0].tolist() == rows_N2[1].tolist()
    assert rows_N2[0, 1] == kept + len("End of sequence.") < len(stories[0][1])
    lines = "\n".join(json.dumps({"text": f"A fox. {story[1].capitalize()}."}) for story in stories)
    (tmp_path / "long.jsonl").write_text(lines, encoding="utf-8")
    sonar.name = "tiny"
    encode_into(str(tmp_path / "long.jsonl"), tmp_path / "long", sonar, World(0, 1, 0, torch.device("cpu")))
    store = Store(tmp_path / "long")
    assert len(store[0].texts) == 2 and len(store[1].texts[1]) > 1000
    assert bits_per_byte(model, store).value == pytest.approx(float(rows_N2[:, 0].sum() / rows_N2[:, 1].sum()), rel=0.05)


def test_a_model_lies_where_its_codec_does(sonar: Sonar, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sonar.save_pretrained(tmp_path / "codec")
    tiny("sonar-llm", sonar, str(tmp_path / "codec")).save_pretrained(tmp_path)
    known = sonar.fingerprint()
    sonar = sonar.to("meta")  # any device but the CPU
    monkeypatch.setattr(Sonar, "fingerprint", lambda self: known)
    assert SonarLLM.from_pretrained(tmp_path, sonar=sonar).device.type == sonar.device.type == "meta"
    assert SonarLLM.from_pretrained(tmp_path).device.type == "cpu"
