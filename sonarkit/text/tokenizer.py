"""SentencePiece with SONAR's token layout.

0 `<pad>`, 1 `<unk>`, 2 `<s>`, 3 `</s>`, the pieces (SentencePiece's id + 1), one `__lang__` token per language
in the codec's order, then the three data tags of NLLB.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

DATA_TAGS = ("<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>")


class Tokenizer:
    """Text to token ids and back. `model` is a SentencePiece model with unk 0, bos 1, eos 2.

    SentencePiece normalises (NFKC) and folds white space, so a round trip keeps the words, not the spaces.
    """

    pad_id, unk_id, bos_id, eos_id = 0, 1, 2, 3

    def __init__(self, model: bytes, languages: Sequence[str]) -> None:
        self.model, self.languages = model, tuple(languages)
        try:
            self._spm = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model ({error})") from error
        if (self._spm.unk_id(), self._spm.bos_id(), self._spm.eos_id()) != (0, 1, 2):
            raise ValueError("the SentencePiece model must have unk 0, bos 1 and eos 2, as SONAR's has")
        first = self._spm.get_piece_size() + 1
        self._language_ids = {code: first + i for i, code in enumerate(self.languages)}
        self.size = first + len(self.languages) + len(DATA_TAGS)
        self.special_ids = (0, 1, 2, 3, *range(first, self.size))
        self.fingerprint = hashlib.sha256(model + "\n".join(self.languages).encode()).hexdigest()[:12]

    def language_id(self, lang: str) -> int:
        """The id of `__lang__`; KeyError for a language this tokenizer lacks (check with text.languages first)."""
        return self._language_ids[lang]

    def pieces(self, text: str) -> list[int]:
        """The pieces of a text, without special tokens."""
        return [i + 1 for i in self._spm.encode(text)]

    def pieces_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[i + 1 for i in ids] for ids in self._spm.encode(list(texts))]

    def source(self, text: str, lang: str) -> list[int]:
        """`__lang__ pieces </s>`, what the encoder reads."""
        return [self.language_id(lang), *self.pieces(text), self.eos_id]

    def target(self, text: str, lang: str) -> list[int]:
        """`</s> __lang__ pieces </s>`, what the decoder learns to say."""
        return [self.eos_id, self.language_id(lang), *self.pieces(text), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the pieces among `ids`; special tokens are dropped, broken UTF-8 from byte pieces is replaced."""
        last = self._spm.get_piece_size()
        return self._spm.decode([i - 1 for i in ids if 4 <= i <= last])

    def piece(self, token: int) -> str:
        """How a token is written, for display."""
        last = self._spm.get_piece_size()
        if token <= 3:
            return ("<pad>", "<unk>", "<s>", "</s>")[token]
        if token <= last:
            return self._spm.id_to_piece(token - 1)
        return [*(f"__{code}__" for code in self.languages), *DATA_TAGS][token - last - 1]

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.spm").write_bytes(self.model)
        (folder / "tokenizer.json").write_text(json.dumps({"languages": self.languages}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote; FileNotFoundError names a missing file."""
        for name in ("tokenizer.spm", "tokenizer.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; the tokenizer belongs to the model, copy both together")
        languages = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["languages"]
        return cls((folder / "tokenizer.spm").read_bytes(), languages)


def train_tokenizer(sentences: Iterable[str], vocab_size: int, languages: Sequence[str]) -> Tokenizer:
    """Train a unigram SentencePiece model of `vocab_size` pieces with byte fallback: any text survives.

    Deterministic for the same sentences in the same order.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, model_type="unigram", byte_fallback=True,
        character_coverage=0.9999, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, max_sentence_length=16_384,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue(), languages)
