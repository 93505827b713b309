"""A codec with more languages and more pieces, to be trained on: `extended`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.text.tokenizer import DATA_TAGS, Tokenizer

BPE, NORMAL = 2, 1  # of SentencePiece's trainer_spec.model_type and pieces' type


def extended(sonar: Sonar, languages: Sequence[str], texts: Iterable[str] = (), pieces: int = 0) -> Sonar:
    """A copy of `sonar` that has `languages` beside its own, and `pieces` more SentencePiece pieces, trained on `texts`.

    The new languages stand behind the known ones, before the data tags. Rows of the embeddings move to their new ids
    unchanged, so that vectors in known languages stay the same to the last bit, but of texts that new pieces cut differently
    (and the decoder shares its probabilities with the new tokens). A new language's row is the mean of the known
    languages', a new piece's the mean of those that spelt it before. Vectors in a new language mean little until it was
    trained: by teacher-student (`CodecTask` with `sonar` as the teacher), which is how SONAR's speech encoders learnt theirs
    (arXiv 2308.11466, section 3.2; for text arXiv 2004.09813).

    Raises ValueError for nothing to add, for languages that are known, named twice or no codes such as tyv_Cyrl, and for texts
    with fewer new pieces in them; ImportError, for new pieces, without protobuf.
    """
    old = sonar.tokenizer
    if not languages and not pieces:
        raise ValueError("nothing to add: name languages, or a number of pieces with texts to train them on")
    if isinstance(languages, str):
        raise ValueError(f"expected a list of codes, got one string; pass [{languages!r}]")
    for code in languages:
        if not re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", code):
            raise ValueError(f"{code!r} is no code of a language and its script, such as tyv_Cyrl")
        if code in old.languages:
            raise ValueError(f"{code} is one of the codec's languages already; leave it out")
    if pieces < 0:
        raise ValueError(f"pieces must not be negative, got {pieces}")
    model, spelt = _with_pieces(old, list(texts), pieces) if pieces else (old.model, [])
    new = Tokenizer(model, (*old.languages, *languages))
    with torch.device("meta"):
        copy = Sonar(replace(sonar.config, languages=new.languages, vocab_size=new.size), new)
    state = {key: value.detach().clone() for key, value in sonar.state_dict().items()}
    for side in ("encoder", "decoder"):
        state[f"{side}.embedding.weight"] = _rows(state[f"{side}.embedding.weight"], old, len(languages), spelt)
    copy.load_state_dict(state, assign=True)
    return copy.train(sonar.training)


def _rows(table_VH: Tensor, old: Tokenizer, languages: int, spelt: list[list[int]]) -> Tensor:
    """The embedding table of the new ids: pieces, new pieces, known languages, new languages, data tags."""
    pieces, known, tags = table_VH.split([old.size - len(old.languages) - len(DATA_TAGS), len(old.languages), len(DATA_TAGS)])
    mean = known.mean(0, keepdim=True).expand(languages, -1)
    made = [pieces[ids].mean(0, keepdim=True) for ids in spelt]
    return torch.cat([pieces, *made, known, mean, tags])


def _with_pieces(old: Tokenizer, texts: Sequence[str], count: int) -> tuple[bytes, list[list[int]]]:
    """SentencePiece's model with `count` pieces of `texts` behind its own, and how each of them was spelt before, as ids.

    A model of the same kind is trained on the texts, as the old one normalises them. From it come, in its order, the
    characters that were unknown, then the other new pieces. In a unigram model they keep their log-probability there,
    but none is below the old ones: the price of an unknown character hangs on the least. In BPE they merge after all others.
    """
    proto = _proto(old.model)
    there = {piece.piece for piece in proto.pieces}
    is_bpe = proto.trainer_spec.model_type == BPE
    trained = _trained(old, texts, 2 * count + 1000, is_bpe)
    new = [piece for piece in trained.pieces if piece.type == NORMAL and piece.piece not in there]
    new = sorted(new, key=lambda piece: len(piece.piece) > 1)[:count]  # stable
    if len(new) < count:
        raise ValueError(f"the texts give {len(new)} new pieces, not {count}; give more text, or ask for fewer pieces")
    spelling = sentencepiece.SentencePieceProcessor(model_proto=_literal(proto))
    least = min(piece.score for piece in proto.pieces if piece.type == NORMAL)
    for place, piece in enumerate(new, 1):
        score = least - place if is_bpe else max(piece.score, least)
        proto.pieces.add(piece=piece.piece, score=score, type=NORMAL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString(), [[i + 1 for i in spelling.encode(piece.piece.replace("\u2581", " "))] for piece in new]


def _trained(old: Tokenizer, texts: Sequence[str], size: int, is_bpe: bool) -> Any:
    normalizer = sentencepiece.SentencePieceProcessor(model_proto=old.model)
    lines = [normalizer.normalize(text).replace("\u2581", " ").strip() for text in texts]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for line in lines if line),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,  # fewer where the texts have no more
            model_type="bpe" if is_bpe else "unigram",
            normalization_rule_name="identity",
            character_coverage=1.0,
            num_threads=1,
            max_sentence_length=16_384,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"no pieces can be trained on these {len(texts)} texts: {error}") from error
    return _proto(model.getvalue())


def _proto(model: bytes) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise ImportError(f'new pieces are written with protobuf ({error}): pip install "protobuf"') from error
    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when it is imported
    proto.ParseFromString(model)
    return proto


def _literal(proto: Any) -> bytes:
    """The same model, taking spaces as they come: for spelling a piece that need not begin a word."""
    literal = type(proto)()
    literal.CopyFrom(proto)
    literal.normalizer_spec.add_dummy_prefix = literal.normalizer_spec.remove_extra_whitespaces = False
    return literal.SerializeToString()
