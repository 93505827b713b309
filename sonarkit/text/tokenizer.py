"""SentencePiece with SONAR's token layout.

0 `<pad>`, 1 `<unk>`, 2 `<s>`, 3 `</s>`, the pieces (SentencePiece's id + 1), one `__lang__` token per language
in the codec's order, then the three data tags of NLLB.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from sonarkit.core.foreign import read_json

DATA_TAGS = ("<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>")


class Tokenizer:
    """Text to token ids and back. `model` is a SentencePiece model with unk 0, bos 1, eos 2, its bytes or its file.

    SentencePiece normalises (NFKC), folds white space (double spaces, tabs and line ends become one space) and drops
    most control characters, so a round trip keeps the words, not the spaces. What no piece spells survives as bytes
    if the model was trained with byte fallback, as ours is; SONAR's 256 000 pieces give `<unk>` instead.
    `size` counts all tokens, V; `special_ids` are those of them that are no pieces; `fingerprint` is 12 hex digits of model and
    languages. Raises ValueError for bytes that are no such model and for a language named twice, OSError for a file that
    cannot be read.
    """

    pad_id, unk_id, bos_id, eos_id = 0, 1, 2, 3

    def __init__(self, model: bytes | Path, languages: Sequence[str]) -> None:
        name = f"{model} is" if isinstance(model, Path) else "these bytes are"
        self.model, self.languages = model.read_bytes() if isinstance(model, Path) else model, tuple(languages)
        try:
            self._spm = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise ValueError(f"{name} no whole SentencePiece model ({error}); copy it again") from error
        if len(set(self.languages)) < len(self.languages):
            raise ValueError(f"each language must be named once, got {', '.join(self.languages)}")
        if (self._spm.unk_id(), self._spm.bos_id(), self._spm.eos_id()) != (0, 1, 2):
            raise ValueError("the SentencePiece model must have unk 0, bos 1 and eos 2, as SONAR's has")
        first = self._spm.get_piece_size() + 1
        self._language_ids = {code: first + i for i, code in enumerate(self.languages)}
        self.size = first + len(self.languages) + len(DATA_TAGS)
        self.special_ids = (0, 1, 2, 3, *range(first, self.size))
        self.fingerprint = hashlib.sha256(self.model + "\n".join(self.languages).encode()).hexdigest()[:12]

    def language_id(self, lang: str) -> int:
        """The id of `__lang__`; KeyError for a language this tokenizer lacks (check with text.languages first)."""
        return self._language_ids[lang]

    def pieces(self, text: str) -> list[int]:
        """The pieces of a text, without special tokens."""
        return [i + 1 for i in self._spm.encode(_encodable(text))]

    def pieces_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`pieces` of each text, in SentencePiece's own threads."""
        return [[i + 1 for i in ids] for ids in self._spm.encode([_encodable(text) for text in texts])]

    def source(self, text: str, lang: str) -> list[int]:
        """`__lang__ pieces </s>`, what the encoder reads."""
        return [self.language_id(lang), *self.pieces(text), self.eos_id]

    def target(self, text: str, lang: str) -> list[int]:
        """`</s> __lang__ pieces </s>`, what the decoder learns to say."""
        return [self.eos_id, self.language_id(lang), *self.pieces(text), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the pieces among `ids`; broken UTF-8 from byte pieces is replaced, special tokens are dropped.

        `<unk>` is written as " \u2047 ", SentencePiece's sign for a character without a piece, as in Meta's package.
        """
        last = self._spm.get_piece_size()
        return self._spm.decode([i - 1 for i in ids if i == self.unk_id or 4 <= i <= last])

    def piece(self, token: int) -> str:
        """How a token is written, for display."""
        last = self._spm.get_piece_size()
        if token <= 3:
            return ("<pad>", "<unk>", "<s>", "</s>")[token]
        if token <= last:
            return self._spm.id_to_piece(token - 1)
        return [*(f"__{code}__" for code in self.languages), *DATA_TAGS][token - last - 1]

    def save(self, folder: Path) -> None:
        """Write `tokenizer.spm` and `tokenizer.json`, each under another name first, so that no half file stays."""
        listing = json.dumps({"languages": self.languages}, indent=1) + "\n"
        for name, data in (("tokenizer.spm", self.model), ("tokenizer.json", listing.encode())):
            temporary = folder / f"{name}.{os.getpid()}.tmp"
            try:
                temporary.write_bytes(data)
                os.replace(temporary, folder / name)
            finally:
                temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote; FileNotFoundError or ValueError name the file that is missing or broken."""
        for name in ("tokenizer.spm", "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; the tokenizer belongs to the model, copy both together")
        listing = folder / "tokenizer.json"
        languages = read_json(listing).get("languages")
        if not isinstance(languages, list) or not all(isinstance(code, str) and code.isascii() for code in languages):
            raise ValueError(f'{listing}: expected {{"languages": [codes]}}, got {str(languages)[:60]}; copy it again')
        return cls(folder / "tokenizer.spm", languages)


def _encodable(text: str) -> str:
    """Half a surrogate pair, as broken JSON escapes leave it, has no UTF-8: it becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def train_tokenizer(
    sentences: Iterable[str], vocab_size: int, languages: Sequence[str], seed_sentences: int = 1_000_000
) -> Tokenizer:
    """Train a unigram SentencePiece model of `vocab_size` pieces with byte fallback: any text survives.

    Of more than `seed_sentences` sentences it sees that many, drawn evenly. Every character gets a piece but the
    rarest, one occurrence in 100 000 together, which are spelt in bytes. Deterministic for the same sentences in the
    same order. Raises ValueError when the text is too little or too varied for `vocab_size`.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_drawn(sentences, seed_sentences)),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            byte_fallback=True,
            character_coverage=0.99999,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            max_sentence_length=16_384,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"no tokenizer of {vocab_size} pieces can be trained on this text: {error}") from error
    return Tokenizer(model.getvalue(), languages)


def _drawn(sentences: Iterable[str], count: int) -> list[str]:
    """`count` of the sentences, each with the same chance (reservoir sampling), or all when they are fewer."""
    rng = random.Random(0)
    drawn: list[str] = []
    for seen, sentence in enumerate(sentences):
        if seen < count:
            drawn.append(sentence)
        elif (place := rng.randrange(seen + 1)) < count:
            drawn[place] = sentence
    return drawn
