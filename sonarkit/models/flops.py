"""How many floating-point operations SONAR-LLM takes, in training and in telling, from shapes and lengths alone.

Matrix products only, 2 for each multiply-add: norms, softmax, activations, rotations, look-ups and the optimizer are left
out (under 1 % at the published sizes). Attention counts whole squares, as its products are laid out; a fused kernel skips
most of what the causal mask hides, and recomputes scores in its backward pass, neither of which is counted.

The backward pass of a product of weights has two more, one for the input's gradient, one for the weights'. A frozen layer
lacks the latter, and what reads data, which carry no gradient, the former. tests/unit/test_flops.py holds all counts against
torch's FlopCounterMode, to the last product.

Lengths count a sentence's target, `</s> __lang__ pieces </s>`: three more than its pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonarkit.codec.config import CodecConfig, PoolerConfig, StackConfig
from sonarkit.models.backbone import BackboneConfig

if TYPE_CHECKING:
    from sonarkit.models.sonar_llm import SonarLLM
    from sonarkit.models.token_llm import TokenDocument, TokenLLM
    from sonarkit.store.reader import Document

TRAINED = 3  # forward, gradient of the input, gradient of the weights
FROZEN = 2
CORE = 3  # scores and values have two inputs and no weights: as if trained
LLAMA_VOCABULARY = 128_256  # of the token-level model in arXiv 2508.05305


# ---------------------------------------------------------------------- forward, part by part


def backbone_position(config: BackboneConfig) -> int:
    """The backbone's weight matrices for one position."""
    inner = config.heads * config.head_dim
    return 2 * config.layers * (4 * config.hidden * inner + 3 * config.hidden * config.ffn)


def backbone_attention(config: BackboneConfig) -> int:
    """Scores and values of one position looking at one other, in all layers."""
    return 4 * config.layers * config.heads * config.head_dim


def projection(config: BackboneConfig, embedding: int) -> int:
    """`forward_proj` or `reverse_proj` for one position."""
    return 2 * embedding * config.hidden


def attention_token(config: StackConfig) -> int:
    """The self-attention's weight matrices for one token in one layer of the codec."""
    return 2 * 4 * config.width**2


def attention_pair(config: StackConfig) -> int:
    """Scores and values of one token looking at one other, in one layer."""
    return 4 * config.width


def ffn_token(config: StackConfig) -> int:
    """The feed-forward network for one token in one layer."""
    return 2 * 2 * config.width * config.ffn


def sentence_terms(codec: CodecConfig) -> int:
    """All decoder layers' cross-attention to one sentence vector: `W_o(W_v z)`, no query and no key."""
    width = codec.decoder.width
    return 2 * codec.decoder.layers * (width * codec.width + width**2)


def vocabulary_token(codec: CodecConfig) -> int:
    """The output projection for one token."""
    return 2 * codec.decoder.width * codec.vocab_size


def encoding(codec: CodecConfig, lengths: Iterable[int]) -> int:
    """Reading sentences back: `lengths` are those of `__lang__ pieces </s>`."""
    config, lengths = codec.encoder, list(lengths)
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    layer = tokens * (attention_token(config) + ffn_token(config)) + squares * attention_pair(config)
    pooled = _pooling(config.pooler, config.width, len(lengths), tokens) if config.pooler else 0
    return config.layers * layer + pooled


def _pooling(config: PoolerConfig, memory: int, sentences: int, tokens: int) -> int:
    """Attention pooling: one query a sentence; keys and values of every token."""
    query = 2 * 4 * config.width**2 + ffn_token(config)  # self: values, output; cross: query, output
    token = 2 * memory * 2 * config.width + attention_pair(config)
    return config.layers * (sentences * query + tokens * token) + sentences * 2 * config.width**2


# ---------------------------------------------------------------------- training


@dataclass(frozen=True)
class Load:
    """What a batch makes the model do; means will do for a plan.

    `positions` of the backbone (a document's sentences but the last) and their squares summed over documents; `sentences`
    that are judged, `tokens` the decoder reads of them (`</s> __lang__ pieces`) and their squares; tokens `counted` in
    the loss.
    """

    positions: float
    position_squares: float
    sentences: float
    tokens: float
    token_squares: float
    counted: float

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]]) -> Load:
        """The load of documents, each a list of its sentences' target lengths; the first sentence is given, not judged."""
        positions = [len(lengths) - 1 for lengths in documents]
        inputs = [length - 1 for lengths in documents for length in lengths[1:]]
        return cls(
            sum(positions),
            sum(n * n for n in positions),
            len(inputs),
            sum(inputs),
            sum(n * n for n in inputs),
            sum(inputs) - len(inputs),
        )


def training_parts(
    backbone: BackboneConfig, codec: CodecConfig, load: Load, *, train_decoder: bool = False, recomputed: bool = False
) -> dict[str, float]:
    """FLOPs of a forward and a backward pass of `SonarLLM.loss`, by part.

    `backbone` with its projections; `sentence_terms`, once a sentence; `decoder`, once a token; `vocabulary`, once a token
    of the loss. With `recomputed` (activation checkpointing) the layers' forward passes are counted twice, which
    the utilisation of a GPU (MFU) by convention does not count.
    """
    config, again = codec.decoder, int(recomputed)
    weights = TRAINED if train_decoder else FROZEN
    core = load.positions * (TRAINED + again) * backbone_position(backbone)
    core += load.position_squares * (CORE + again) * backbone_attention(backbone)
    # The vectors read are data: no gradient leads back through forward_proj.
    core += load.positions * (TRAINED - 1 + TRAINED) * projection(backbone, codec.width)
    attention = load.tokens * (weights + again) * attention_token(config)
    attention += load.token_squares * (CORE + again) * attention_pair(config)
    # In a frozen decoder the first layer's self-attention sees token embeddings only: nothing to differentiate.
    first = load.tokens * attention_token(config) + load.token_squares * attention_pair(config)
    first = attention if train_decoder else (1 + again) * first
    ffn = load.tokens * (weights + again) * ffn_token(config)
    return {
        "backbone": core,
        "sentence_terms": load.sentences * weights * sentence_terms(codec),
        "decoder": first + (config.layers - 1) * attention + config.layers * ffn,
        "vocabulary": load.counted * weights * vocabulary_token(codec),
    }


def training_flops(model: SonarLLM, documents: Sequence[Document]) -> float:
    """FLOPs of a training step's forward and backward pass over these documents."""
    codec = model.sonar
    trained = any(parameter.requires_grad for parameter in codec.decoder.parameters())
    load = Load.of([[len(target) for target in document.targets] for document in documents])
    return sum(training_parts(model.config.backbone, codec.config, load, train_decoder=trained).values())


def token_training_flops(model: TokenLLM, documents: Sequence[TokenDocument], *, whole_text: bool = False) -> float:
    """FLOPs of a forward and a backward pass of `TokenLLM.loss` over these documents."""
    backbone = model.config.backbone
    lengths = [1 + sum(map(len, document.pieces)) for document in documents]
    counted = sum(lengths) - (0 if whole_text else sum(len(document.pieces[0]) for document in documents))
    parts = TRAINED * sum(lengths) * backbone_position(backbone)
    parts += CORE * sum(length**2 for length in lengths) * backbone_attention(backbone)
    return parts + TRAINED * counted * 2 * backbone.hidden * model.config.vocab_size


# ---------------------------------------------------------------------- telling


def search_flops(codec: CodecConfig, pieces: int, beam_size: int = 5) -> int:
    """Decoding one vector to `pieces` pieces, with the key-value cache; every hypothesis as long as the best.

    A beam of 0 decodes nothing.
    """
    if not beam_size:
        return 0
    config = codec.decoder
    token = config.layers * (attention_token(config) + ffn_token(config)) + vocabulary_token(codec)
    pair = config.layers * attention_pair(config)
    prefix = 2 * token + (1 + 2) * pair  # `</s> __lang__`, once for all hypotheses
    seen = sum(range(3, pieces + 3))  # tokens that each piece, fed back, looks at
    return sentence_terms(codec) + prefix + beam_size * (pieces * token + seen * pair)


def sentence_flops(
    backbone: BackboneConfig, codec: CodecConfig, pieces: int, *, context: int, beam_size: int = 5, reencode: bool = True
) -> dict[str, int]:
    """Telling one sentence of a story, by part: the backbone's step, the search, reading the sentence back.

    `context` is how many sentences the step looks at: those so far with itself, or what the cache has room for, since
    `Backbone.extend` masks what is empty but multiplies by it (`max_sentences`, 32 by default).
    """
    step = backbone_position(backbone) + context * backbone_attention(backbone) + 2 * projection(backbone, codec.width)
    parts = {"backbone": step, "search": search_flops(codec, pieces, beam_size)}
    return {**parts, "reencoding": encoding(codec, [pieces + 2])} if reencode else parts


def story_flops(
    backbone: BackboneConfig,
    codec: CodecConfig,
    sentences: int,
    pieces: int,
    *,
    beam_size: int = 5,
    reencode: bool = True,
    whole_squares: bool = False,
) -> int:
    """Telling `sentences` sentences of `pieces` pieces each, none given; the cache grows with the story."""
    one = sum(sentence_flops(backbone, codec, pieces, context=0, beam_size=beam_size, reencode=reencode).values())
    return sentences * one + _pairs(sentences, whole_squares) * backbone_attention(backbone)


def token_llm_flops(
    backbone: BackboneConfig, tokens: int, vocab_size: int = LLAMA_VOCABULARY, *, whole_squares: bool = False
) -> int:
    """The same text told by a token-level LLM of the same backbone, token by token with its cache."""
    token = backbone_position(backbone) + 2 * backbone.hidden * vocab_size
    return tokens * token + _pairs(tokens, whole_squares) * backbone_attention(backbone)


def _pairs(count: int, whole_squares: bool) -> int:
    return count**2 if whole_squares else count * (count + 1) // 2


def crossover(
    backbone: BackboneConfig,
    codec: CodecConfig = CodecConfig(("eng_Latn",)),
    *,
    pieces: int = 60,
    beam_size: int = 5,
    reencode: bool = True,
    whole_squares: bool = False,
    vocab_size: int = LLAMA_VOCABULARY,
    most: int = 10**8,
) -> int:
    """From how many tokens of text on SONAR-LLM takes fewer FLOPs than a token-level LLM of the same backbone.

    Both cost a n + b n^2 for n tokens; SONAR-LLM's b is `pieces` squared times smaller, its a larger by what decoding and
    re-encoding take. `whole_squares` counts n^2 pairs in attention, as one pass over a whole text does, instead of those
    that a cache has seen. ValueError when there is no crossing up to `most` tokens.

    arXiv 2508.05305 draws it near 4096 for 600M, 60 tokens a sentence, without giving its count. Greedy decoding, predicted
    vectors as context (`beam_size=1, reencode=False`) and whole squares come to 3 540 here, a cache to 7 020. What
    the kit does by default, a beam of 5 and sentences read back, crosses at 141 960 only; greedy and read back at 26 700.
    """

    def cheaper(sentences: int) -> bool:
        ours = story_flops(
            backbone, codec, sentences, pieces, beam_size=beam_size, reencode=reencode, whole_squares=whole_squares
        )
        return ours <= token_llm_flops(backbone, sentences * pieces, vocab_size, whole_squares=whole_squares)

    counts = range(1, most // pieces + 1)
    place = bisect_left(counts, True, key=cheaper)  # the difference changes its sign once
    if place == len(counts):
        raise ValueError(f"SONAR-LLM takes more FLOPs than the token-level LLM up to {most} tokens; raise most")
    return counts[place] * pieces
