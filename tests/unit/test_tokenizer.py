"""The tokenizer: SONAR's layout, text that survives, files that are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonarkit.text.tokenizer import Tokenizer, train_tokenizer

LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")
SENTENCES = [
    f"{name} {verb} {place}."
    for name in ("Mia", "Tom", "The fox", "Le renard", "Der Fuchs", "El zorro", "Ein Mädchen")
    for verb in ("ran to", "saw", "est allé à", "ging über", "volvió a", "finds")
    for place in ("the river", "a forest", "la forêt", "die Brücke", "el árbol", "home", "¿dónde")
]
PIECES = 314


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SENTENCES, PIECES, LANGUAGES)


def test_specials_are_dropped_and_unknown_is_shown(tokenizer: Tokenizer):
    pieces = tokenizer.pieces("Mia ran.")
    assert tokenizer.decode([tokenizer.eos_id, tokenizer.language_id("eng_Latn"), *pieces, tokenizer.eos_id]) == "Mia ran."
    assert tokenizer.decode([*pieces, tokenizer.unk_id]) == "Mia ran. \u2047 "


def test_sonars_layout(tokenizer: Tokenizer):
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert [tokenizer.piece(i) for i in range(5)] == ["<pad>", "<unk>", "<s>", "</s>", "<0x00>"]
    # SentencePiece has unk, bos and eos itself; `<pad>` before them moves its ids up by one.
    assert [tokenizer.language_id(code) for code in LANGUAGES] == [PIECES + 1, PIECES + 2, PIECES + 3, PIECES + 4]
    assert [tokenizer.piece(i) for i in range(PIECES + 1, tokenizer.size)] == [
        "__eng_Latn__", "__fra_Latn__", "__deu_Latn__", "__spa_Latn__", "<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>",
    ]  # fmt: skip
    assert tokenizer.size == PIECES + 1 + 4 + 3
    assert set(tokenizer.special_ids) == {0, 1, 2, 3, *range(PIECES + 1, tokenizer.size)}


def test_source_and_target_sides(tokenizer: Tokenizer):
    pieces = tokenizer.pieces("The fox ran home.")
    lang = tokenizer.language_id("deu_Latn")
    assert all(4 <= piece <= PIECES for piece in pieces)
    assert tokenizer.source("The fox ran home.", "deu_Latn") == [lang, *pieces, 3]
    assert tokenizer.target("The fox ran home.", "deu_Latn") == [3, lang, *pieces, 3]
    assert tokenizer.decode(tokenizer.target("The fox ran home.", "deu_Latn")) == "The fox ran home."


@pytest.mark.parametrize(
    "text",
    [
        "The fox ran home.", "Ein Mädchen ging über die Brücke.", "", "👩‍👩‍👧 🦊!", "مرحبا بالعالم", "你好世界", "שלום", "नमस्ते",
        "Xylophone Qwerty #@~^", "<pad> </s> __eng_Latn__ <0x41>", "a\x00b", "e\u2581f g", "zero\u200bwidth \u202eright to left",
    ],
)  # fmt: skip
def test_round_trip(tokenizer: Tokenizer, text: str):
    expected = {"e\u2581f g": "e f g", "zero\u200bwidth \u202eright to left": "zero width \u202eright to left"}.get(text, text)
    assert tokenizer.decode(tokenizer.pieces(text)) == expected
    assert tokenizer.unk_id not in tokenizer.pieces(text)
    assert not set(tokenizer.pieces(text)) & set(tokenizer.special_ids)  # text cannot forge a special token


def test_white_space_is_folded_and_control_characters_go(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.pieces("  The  fox\tran\nhome. ")) == "The fox ran home."
    assert tokenizer.decode(tokenizer.pieces("The\x07 fox\x1b")) == "The fox"
    assert tokenizer.pieces(" \n ") == []


def test_broken_unicode_never_raises(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.pieces("fox \ud83d ran")) == "fox ? ran"
    fox = tokenizer.pieces("🦊")
    assert [tokenizer.piece(i) for i in fox[-4:]] == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
    assert set(tokenizer.decode(fox[:-1])) == {"\ufffd"}  # cut within a character
    assert tokenizer.decode([0, 2, 3, tokenizer.size - 1]) == ""


def test_batches_equal_single_texts(tokenizer: Tokenizer):
    texts = [*SENTENCES[:50], "", "🦊 \ud83d"]
    assert tokenizer.pieces_batch(texts) == [tokenizer.pieces(text) for text in texts]
    assert tokenizer.pieces_batch([]) == []


def test_ten_thousand_words(tokenizer: Tokenizer):
    text = " ".join(["fox"] * 10_000)
    assert tokenizer.decode(tokenizer.pieces(text)) == text


def test_saved_and_loaded(tokenizer: Tokenizer, tmp_path: Path):
    tokenizer.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer.spm"]
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.fingerprint, loaded.size, loaded.languages) == (tokenizer.fingerprint, tokenizer.size, LANGUAGES)
    assert loaded.source("Le renard", "fra_Latn") == tokenizer.source("Le renard", "fra_Latn")
    assert Tokenizer(tmp_path / "tokenizer.spm", LANGUAGES).fingerprint == tokenizer.fingerprint


def test_fingerprint_tells_languages_and_models_apart(tokenizer: Tokenizer):
    assert len(tokenizer.fingerprint) == 12
    assert Tokenizer(tokenizer.model, LANGUAGES[::-1]).fingerprint != tokenizer.fingerprint
    assert train_tokenizer(SENTENCES, PIECES - 1, LANGUAGES).fingerprint != tokenizer.fingerprint


def test_training_is_deterministic(tokenizer: Tokenizer):
    assert train_tokenizer(iter(SENTENCES), PIECES, LANGUAGES).model == tokenizer.model
    sampled = [train_tokenizer(SENTENCES, 306, LANGUAGES, seed_sentences=100) for _ in range(2)]
    assert sampled[0].model == sampled[1].model


def test_every_sentence_has_its_chance_when_there_are_too_many():
    late = [*["the fox ran"] * 2000, *["zebra quagga"] * 2000]
    sampled = train_tokenizer(late, 276, LANGUAGES, seed_sentences=200)
    assert len(sampled.pieces("zebra quagga")) < 12  # not spelt in bytes: the second half was seen


@pytest.mark.parametrize(("sentences", "size"), [([], 300), (SENTENCES, 100_000), (SENTENCES, 20)])
def test_impossible_training(sentences: list[str], size: int):
    with pytest.raises(ValueError, match=f"no tokenizer of {size} pieces"):
        train_tokenizer(sentences, size, LANGUAGES)


def test_missing_and_broken_files(tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="tokenizer.spm is missing"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"languages"')
    with pytest.raises(ValueError, match="tokenizer.json is no JSON"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.spm").write_bytes(tokenizer.model[: len(tokenizer.model) // 2])
    with pytest.raises(ValueError, match="tokenizer.spm is no whole SentencePiece model"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="these bytes are no whole"):
        Tokenizer(b"junk", LANGUAGES)
    with pytest.raises(ValueError, match="once"):
        Tokenizer(tokenizer.model, ("eng_Latn", "eng_Latn"))


def test_full_disk_keeps_the_old_file(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer.save(tmp_path)

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(tmp_path)
    monkeypatch.undo()
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert len(list(tmp_path.iterdir())) == 2
