"""The weights that ship: their size, and floors under what the model cards report, on a few sentences of the test sets."""

from __future__ import annotations

import re

import pytest

import sonarkit as sk
from sonarkit.core.paths import asset, data_folder
from sonarkit.evaluation.codec import codec_report
from sonarkit.evaluation.sets import rows_of, stories_of
from sonarkit.evaluation.speech import evaluate_speech, speech_set
from sonarkit.evaluation.stories import story_report

FLOOR_AUTOENCODING, FLOOR_TRANSLATION = (
    93,
    87,
)  # BLEU, greedy, on some 40 sentences: below the cards' numbers, above a broken codec


@pytest.fixture(scope="module")
def model() -> sk.SonarLLM:
    return sk.SonarLLM.from_pretrained("mini")


def test_the_weights_are_small_and_have_their_cards() -> None:
    sizes = {part.name: sum(file.stat().st_size for file in part.iterdir()) for part in asset("mini").iterdir()}
    assert sizes["speech"] <= 12e6 and sum(sizes.values()) - sizes["speech"] <= 40e6
    for part in ("sonar", "sonar-llm", "speech"):
        card = (asset("mini") / part / "README.md").read_text(encoding="utf-8")
        for heading in ("Data", "Recipe", "Numbers", "Licence"):
            assert re.search(rf"^## {heading}", card, re.M), f"the card of {part} lacks {heading}"


def test_the_codec_says_and_translates_the_sentences_of_unseen_stories(model: sk.SonarLLM) -> None:
    rows = rows_of("storyworld:test", every=140)
    report = codec_report(model.sonar, rows, beam_size=1, all_pairs=False)
    assert len(rows) >= 30
    assert min(report[f"bleu_{code}"] for code in rows[0]) >= FLOOR_AUTOENCODING
    assert report["bleu_translation"] >= FLOOR_TRANSLATION
    assert report["xsim_mean"] <= 2


def test_voices_never_heard_are_understood() -> None:
    pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
    spoken = speech_set("synthetic:24@test-unheard", synthetic=data_folder() / "speech")
    sonar = sk.Sonar.from_pretrained("mini", speech="mini")
    report = evaluate_speech(sonar, spoken.utterances, spoken.translations, into=["eng_Latn"], beam_size=1)["mean"]
    assert report["bleu"] >= 60 and report["bleu_translation"] >= 50
    assert report["cosine"] >= 0.8 and report["xsim"] <= 5


def test_stories_go_on_and_end(model: sk.SonarLLM) -> None:
    prompts = [" ".join(story["eng_Latn"][:2]) for story in stories_of("storyworld:test")[:16]]
    report = story_report(model.generate(prompts, beam_size=1))
    assert report["stopped_end"] + report["stopped_loop"] >= 0.8
    assert report["repeated_sentences"] <= 0.1
    assert 2 <= report["sentences_per_story"] <= 20


def test_words_never_seen_survive_as_text(model: sk.SonarLLM) -> None:
    """Byte fallback: whatever the codec makes of them, the tokenizer neither loses nor alters them."""
    tokenizer = model.sonar.tokenizer
    for text in ("Zxqwv brrgh 🦊", "Привет, мир!", "你好", "naïve façade œuvre"):
        assert tokenizer.decode(tokenizer.pieces(text)) == text
        assert tokenizer.unk_id not in tokenizer.pieces(text)


def test_a_prompt_in_any_language_and_a_story_in_another(model: sk.SonarLLM) -> None:
    story = model.generate("Es war einmal ein kleiner Fuchs namens Mia.", "deu_Latn", output_lang="spa_Latn", beam_size=1)
    assert story.prompt_sentences == 1 and len(story.sentences) == len(story.embeddings) > 1
    assert story.sentences[0] != "Es war einmal ein kleiner Fuchs namens Mia."
