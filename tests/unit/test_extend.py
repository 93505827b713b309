"""More languages and pieces: nothing that was known changes, and what is new can be taught."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch

from sonarkit.codec.extend import extended
from sonarkit.codec.objectives import ObjectiveConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.text.tokenizer import DATA_TAGS, Tokenizer
from sonarkit.training.codec_task import CodecTask, Source
from sonarkit.training.loop import TrainConfig, train
from sonarkit.training.optimizer import OptimizerConfig

KNOWN = ["The little fox ran home.", "Mia found a red kite.", "Der kleine Fuchs lief nach Hause.", "Le petit renard."]
CODES = ["eng_Latn", "eng_Latn", "deu_Latn", "fra_Latn"]
ITALIAN = ["La piccola volpe corse a casa.", "Mia trovò un aquilone rosso nella foresta.", "Tutti risero e ballarono."]
CYRILLIC = ["тыва дыл", "тыва кижи", "бистиң тыва дылывыс", "дыл чок болза чон чок", "тыва чон"] * 10


def test_vectors_and_texts_in_known_languages_stay_the_same(sonar: Sonar) -> None:
    wider = extended(sonar, ["ita_Latn", "tyv_Cyrl"])
    assert wider.languages == (*sonar.languages, "ita_Latn", "tyv_Cyrl")
    assert torch.equal(wider.encode(KNOWN, CODES), sonar.encode(KNOWN, CODES))
    z = sonar.encode(KNOWN, CODES)
    assert wider.decode(z, CODES, max_tokens=12) == sonar.decode(z, CODES, max_tokens=12)
    assert wider.encode(ITALIAN, "ita_Latn").isfinite().all()
    assert not wider.training and all(p.requires_grad for p in wider.parameters())


def test_every_row_is_where_its_token_went(sonar: Sonar) -> None:
    wider = extended(sonar, ["tyv_Cyrl"], CYRILLIC, pieces=9)
    old, new = sonar.tokenizer, wider.tokenizer
    ids = {new.piece(i): i for i in range(new.size)}
    assert new.size == old.size + 1 + 9 == len(ids)
    assert [new.piece(i) for i in range(new.size - 4, new.size)] == ["__tyv_Cyrl__", *DATA_TAGS]
    fresh = set(ids) - {old.piece(i) for i in range(old.size)}
    assert len(fresh) == 10
    for before, after in ((sonar.encoder, wider.encoder), (sonar.decoder, wider.decoder)):
        table, wanted = after.embedding.weight, before.embedding.weight
        assert torch.equal(table[[ids[old.piece(i)] for i in range(old.size)]], wanted)
        known = wanted[[old.language_id(code) for code in old.languages]]
        torch.testing.assert_close(table[ids["__tyv_Cyrl__"]], known.mean(0))
        for piece in fresh - {"__tyv_Cyrl__"}:
            spelt = old.pieces(piece.replace("\u2581", " ").strip())
            if not piece.startswith("\u2581"):  # alone, the old tokenizer puts a block before it
                assert old.piece(spelt[0]) == "\u2581"
                spelt = spelt[1:]
            torch.testing.assert_close(table[ids[piece]], wanted[spelt].mean(0))


def test_new_pieces_shorten_their_texts_and_leave_others_alone(sonar: Sonar) -> None:
    wider = extended(sonar, ["tyv_Cyrl"], CYRILLIC, pieces=20)
    assert wider.tokenizer.pieces_batch(KNOWN) == sonar.tokenizer.pieces_batch(KNOWN)
    assert torch.equal(wider.encode(KNOWN, CODES), sonar.encode(KNOWN, CODES))
    letters = sum(len(text) for text in CYRILLIC)
    before, after = (sum(map(len, codec.tokenizer.pieces_batch(CYRILLIC))) for codec in (sonar, wider))
    assert before > 1.5 * letters, "two bytes a letter"
    assert after <= letters, "no letter in bytes any more"
    assert wider.tokenizer.decode(wider.tokenizer.pieces(CYRILLIC[2])) == CYRILLIC[2]


def test_pieces_are_added_to_a_bpe_model_and_used(sonar: Sonar) -> None:
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(KNOWN * 5),
        model_writer=made,
        vocab_size=60,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer(made.getvalue(), sonar.languages)
    codec = Sonar(replace(sonar.config, vocab_size=tokenizer.size), tokenizer).eval()
    wider = extended(codec, ["tyv_Cyrl"], CYRILLIC, pieces=24)
    assert tokenizer.unk_id in tokenizer.pieces(CYRILLIC[0])
    assert wider.tokenizer.decode(wider.tokenizer.pieces(CYRILLIC[0])) == CYRILLIC[0]
    assert len(wider.tokenizer.pieces(CYRILLIC[0])) < len(CYRILLIC[0]) / 1.5, "merges, not letters"
    assert torch.equal(wider.encode(KNOWN, CODES), codec.encode(KNOWN, CODES))


def test_an_extended_codec_is_saved_and_extended_again(sonar: Sonar, tmp_path: Path) -> None:
    wider = extended(sonar, ["tyv_Cyrl"], CYRILLIC, pieces=5)
    wider.save_pretrained(tmp_path, dtype=torch.float32)
    again = extended(Sonar.from_pretrained(tmp_path), ["ita_Latn"], CYRILLIC, pieces=3)
    assert again.languages[-2:] == ("tyv_Cyrl", "ita_Latn") and again.tokenizer.size == sonar.tokenizer.size + 5 + 3 + 2
    assert torch.equal(again.encode(KNOWN, CODES), sonar.encode(KNOWN, CODES))


def test_the_copy_is_a_copy(sonar: Sonar) -> None:
    before = sonar.encode(KNOWN, CODES)
    wider = extended(sonar, ["ita_Latn"])
    with torch.no_grad():
        for parameter in wider.parameters():
            parameter.add_(1.0)
    assert torch.equal(sonar.encode(KNOWN, CODES), before)


def test_what_cannot_be_added_is_refused(sonar: Sonar) -> None:
    with pytest.raises(ValueError, match="nothing to add"):
        extended(sonar, [])
    with pytest.raises(ValueError, match="eng_Latn is one of the codec's languages already"):
        extended(sonar, ["eng_Latn"])
    with pytest.raises(ValueError, match="'Italian' is no code"):
        extended(sonar, ["Italian"])
    with pytest.raises(ValueError, match=r"expected a list of codes, got one string; pass \['ita_Latn'\]"):
        extended(sonar, "ita_Latn")
    with pytest.raises(ValueError, match=r"the texts give \d+ new pieces, not 5000"):
        extended(sonar, [], CYRILLIC, pieces=5000)
    with pytest.raises(ValueError, match="no pieces can be trained on these 0 texts"):
        extended(sonar, ["ita_Latn"], pieces=5)


@pytest.mark.parametrize("pieces", [0, 9])
def test_a_teacher_teaches_a_new_language(sonar: Sonar, tmp_path: Path, pieces: int) -> None:
    """Teacher-student on bitext: the new language comes to the teacher's vectors, the anchors stay near them."""
    english = ["The little fox ran home.", "Mia found a red kite in the forest.", "They all laughed and danced."]
    rows = [{"eng_Latn": here, "ita_Latn": there} for here, there in zip(english, ITALIAN)]
    student = extended(sonar, ["ita_Latn"], ITALIAN * 10, pieces)
    wanted, decoder = sonar.encode(english, "eng_Latn"), {k: v.clone() for k, v in student.decoder.state_dict().items()}

    def distance(lang: str, texts: list[str]) -> float:
        return float((student.eval().encode(texts, lang) - wanted).square().mean())

    before = distance("ita_Latn", ITALIAN)
    task = CodecTask(
        student,
        [Source("pairs", rows, 1.0)],
        ObjectiveConfig(0.0, 0.0, 0.0, distill_weight=1.0),
        pairs_per_step=6,
        micro_pairs=6,
        seed=0,
        evaluate=lambda _: {},
        teacher=sonar,
    )
    settings = TrainConfig(tmp_path / "run", steps=40, tensorboard=False, optimizer=OptimizerConfig(lr=5e-3, weight_decay=0.1))
    train(task, settings, World(0, 1, 0, torch.device("cpu")))
    assert distance("ita_Latn", ITALIAN) < 0.2 * before
    assert distance("eng_Latn", english) < 0.2 * before
    assert all(torch.equal(value, decoder[key]) for key, value in student.decoder.state_dict().items()), "it has nothing to learn"
    assert torch.equal(sonar.encode(english, "eng_Latn"), wanted), "the teacher is frozen"
