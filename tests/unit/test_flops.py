"""The FLOPs model against torch's own counter, on tiny models that run what it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from sonarkit.codec.config import CodecConfig, DecoderConfig, EncoderConfig, PoolerConfig
from sonarkit.codec.decoder import Decoder
from sonarkit.codec.encoder import Encoder
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig, beam_search
from sonarkit.core.packing import pack
from sonarkit.models import flops
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.flops import Load, crossover, encoding, sentence_flops, training_flops, training_parts
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.models.token_llm import CodecTokens, TokenDocument, TokenLLM
from sonarkit.store.reader import Document

BACKBONE = BackboneConfig(hidden=24, ffn=48, layers=2, heads=3, head_dim=8)
PUBLISHED_600M = BackboneConfig(hidden=1280, ffn=5120, layers=16, heads=26, head_dim=64)
STORIES = [
    ["The fox ran home.", "Mia slept.", "End of sequence."],
    ["Tom found a map in the forest.", "End of sequence."],
    ["One.", "Two or three.", "Four.", "Five.", "End of sequence."],
]


def _cpu_sdpa(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def counted(run: Callable[[], object]) -> int:
    """FLOPs by torch's counter, which does not know the fused attention of a CPU by itself."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={fused: _cpu_sdpa}) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def model(sonar: Sonar) -> SonarLLM:
    return SonarLLM(SonarLLMConfig(BACKBONE, 32, "tiny", sonar.fingerprint()), sonar)


@pytest.fixture
def documents(sonar: Sonar) -> list[Document]:
    return [Document(sonar.encode(s), sonar.target_ids(s, "eng_Latn"), [len(t) for t in s]) for s in STORIES]


def test_a_training_step_is_counted_to_the_last_product(model: SonarLLM, documents: list[Document]) -> None:
    predicted = training_flops(model, documents)
    assert predicted == counted(lambda: model.loss(documents).total.backward())
    assert training_flops(model, documents[:1]) < predicted


def test_a_trained_decoder_costs_the_gradient_of_its_weights_too(model: SonarLLM, documents: list[Document]) -> None:
    frozen = training_flops(model, documents)
    model.sonar.decoder.requires_grad_(True)
    trained = training_flops(model, documents)
    assert trained == counted(lambda: model.loss(documents).total.backward())
    assert trained > 1.2 * frozen


def test_the_forward_pass_is_counted_part_by_part(model: SonarLLM, documents: list[Document]) -> None:
    lengths = [[len(target) for target in d.targets] for d in documents]
    load, codec = Load.of(lengths), model.sonar.config
    layer = load.tokens * (flops.attention_token(codec.decoder) + flops.ffn_token(codec.decoder))
    layer += load.token_squares * flops.attention_pair(codec.decoder)
    predicted = load.positions * (flops.backbone_position(BACKBONE) + 2 * flops.projection(BACKBONE, codec.width))
    predicted += load.position_squares * flops.backbone_attention(BACKBONE)
    predicted += codec.decoder.layers * layer + load.sentences * flops.sentence_terms(codec)
    predicted += load.counted * flops.vocabulary_token(codec)
    with torch.no_grad():
        assert predicted == counted(lambda: model.loss(documents))


def test_recomputing_adds_one_forward_pass_of_the_layers(model: SonarLLM, documents: list[Document]) -> None:
    load, codec = Load.of([[len(target) for target in d.targets] for d in documents]), model.sonar.config
    plain, again = (training_parts(BACKBONE, codec, load, recomputed=recomputed) for recomputed in (False, True))
    forward = load.positions * flops.backbone_position(BACKBONE) + load.position_squares * flops.backbone_attention(BACKBONE)
    assert again["backbone"] - plain["backbone"] == forward
    assert again["vocabulary"] == plain["vocabulary"] and again["sentence_terms"] == plain["sentence_terms"]
    assert again["decoder"] > plain["decoder"]


@pytest.mark.parametrize("pooler", [None, PoolerConfig(48, 2, 4, 64)])
def test_encoding_is_counted_to_the_last_product(pooler: PoolerConfig | None) -> None:
    config = CodecConfig(
        ("eng_Latn",),
        50,
        48 if pooler else 32,
        EncoderConfig(32, 2, 4, 64, dropout=0.0, pooling="attention" if pooler else "mean", pooler=pooler),
        DecoderConfig(32, 2, 4, 64, dropout=0.0),
    )
    encoder = Encoder(config.encoder, config.vocab_size, config.max_tokens).eval()
    sentences = [[1, 2, 3], [4, 5, 6, 7, 8], [9, 10, 11]]
    with torch.no_grad():
        measured = counted(lambda: encoder(*pack(sentences)))
    assert encoding(config, map(len, sentences)) == measured


@pytest.mark.parametrize("beam_size", [1, 3])
def test_telling_a_sentence_is_counted_to_the_last_product(model: SonarLLM, beam_size: int) -> None:
    sonar, pieces, room = model.sonar, 7, 9
    parts = sentence_flops(BACKBONE, sonar.config, pieces, context=room, beam_size=beam_size)
    vectors = torch.randn(1, 1, 32)
    context = model.start(1, room)
    assert counted(lambda: model.advance(vectors, context, torch.tensor([1]))) == parts["backbone"]
    search = SearchConfig(beam_size=beam_size, min_tokens=pieces, max_tokens=pieces)
    decoder, eos = sonar.decoder, sonar.tokenizer.eos_id
    language = sonar.tokenizer.language_id("eng_Latn")
    assert isinstance(decoder, Decoder)
    assert counted(lambda: beam_search(decoder, vectors[0], [language], search, eos_id=eos)) == parts["search"]
    with torch.no_grad():
        assert counted(lambda: sonar.encoder(*pack([list(range(pieces + 2))]))) == parts["reencoding"]


def test_a_token_level_model_costs_its_backbone_a_head_and_all_it_has_seen() -> None:
    position, pair = flops.backbone_position(BACKBONE), flops.backbone_attention(BACKBONE)
    assert position == 2 * 2 * (4 * 24 * 24 + 3 * 24 * 48)  # 2 layers, 2 FLOPs for a multiply-add
    one_by_one = sum(position + 2 * 24 * 100 + seen * pair for seen in range(1, 12))
    assert flops.token_llm_flops(BACKBONE, 11, 100) == one_by_one


@pytest.mark.parametrize("whole_text", [False, True])
def test_a_token_level_training_step_is_counted_to_the_last_product(
    sonar: Sonar, documents: list[Document], whole_text: bool
) -> None:
    model, read = TokenLLM.new(BACKBONE, CodecTokens(sonar.tokenizer)), [TokenDocument.of(each) for each in documents]
    predicted = flops.token_training_flops(model, read, whole_text=whole_text)
    assert predicted == counted(lambda: model.loss(read, whole_text).total.backward())


def test_telling_token_by_token_is_counted_within_2_percent(sonar: Sonar) -> None:
    """The cache is attended to whole, so pairs are counted apart: as many for each token as it has room for."""
    model = TokenLLM.new(BACKBONE, CodecTokens(sonar.tokenizer))
    tokens, context = 40, model.start(1, 40)

    def tell() -> None:
        for token in range(tokens):
            model.advance(torch.tensor([[token]]), context, torch.tensor([1]))

    pair = flops.backbone_attention(BACKBONE)
    predicted = flops.token_llm_flops(BACKBONE, tokens, sonar.tokenizer.size)
    predicted += (tokens**2 - tokens * (tokens + 1) // 2) * pair
    assert counted(tell) == pytest.approx(predicted, rel=0.02)


def test_the_published_crossover_needs_greedy_decoding_and_no_reading_back() -> None:
    """arXiv 2508.05305: near 4096 tokens for 600M. Its count is not given; between powers of two it is ours."""
    as_drawn = crossover(PUBLISHED_600M, beam_size=1, reencode=False, whole_squares=True)
    assert 2048 < as_drawn < 8192
    with_cache = crossover(PUBLISHED_600M, beam_size=1, reencode=False)
    assert 2048 < with_cache < 8192 and with_cache == pytest.approx(2 * as_drawn, rel=0.05)
    assert crossover(PUBLISHED_600M) > 15 * with_cache  # what the kit does: five hypotheses, and every sentence read back


def test_the_quadratic_term_is_divided_by_the_square_of_a_sentence() -> None:
    """Far out both costs are quadratic, and their ratio tends to 60^2."""
    codec, sentences = CodecConfig(("eng_Latn",)), 10**10
    ours = flops.story_flops(PUBLISHED_600M, codec, sentences, 60)
    assert flops.token_llm_flops(PUBLISHED_600M, 60 * sentences) / ours == pytest.approx(60**2, rel=0.02)


def test_where_there_is_no_crossing_the_error_says_so() -> None:
    with pytest.raises(ValueError, match="up to 6000 tokens; raise most"):
        crossover(PUBLISHED_600M, most=6000)


def test_the_first_sentence_and_the_language_token_are_not_judged() -> None:
    assert Load.of([[10] * 5] * 4) == Load(16, 64, 16, 144, 16 * 81, 128)
