"""Named runs: each function returns a whole configuration, every field of which the command line can change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.constructors import PrimitiveConstructorSpec

from sonarkit.codec.config import CodecConfig, PoolerConfig, Pooling, codec_config
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig
from sonarkit.codec.speech import BodyConfig, PiecesConfig, SpeechConfig
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.diffusion_lcm import NoiseSchedule
from sonarkit.training.codec_task import Balance
from sonarkit.training.concept_task import ConceptDataConfig
from sonarkit.training.loop import TrainConfig
from sonarkit.training.optimizer import OptimizerConfig
from sonarkit.training.speech_task import AugmentConfig

STORYWORLD_LANGUAGES = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")


@dataclass(frozen=True)
class CodecRun:
    """Train a SONAR codec on StoryWorld and on bitext.

    `stories` StoryWorld stories are made from the seed. `bitext` is what `text.bitext.read_bitext` reads (TSV, JSONL, Moses
    pairs, TMX, hf:NAME), filtered; of each, every 50th row by a hash of its English side is held out for good, and the
    codec is judged on it. A part may end in `@mined`, `@mmt-bt:LANGUAGE` or `@smt-bt:LANGUAGE`: NLLB's data tags, with the
    language that a machine wrote. `bitext_share` of the pairs come from bitext, of which each part is drawn from by its rows
    and `temperature` (1: in proportion; infinity: evenly); within a part `balance` "languages" draws any two languages
    equally often.

    `init` is a codec to go on from, weights and tokenizer, or `nllb:` and an NLLB of Hugging Face's; "" begins with random
    weights, and with `pieces` SentencePiece pieces trained on the same text. `new_languages` and `new_pieces` are added to it.
    A `teacher` is followed by `objective.distill_weight`; without `init` the student takes its tokenizer and decoder.
    `taught` names the corpora whose pairs follow it ("storyworld" and those that the console names), by default all: a codec
    that learns other text with itself as the teacher keeps the vectors of what it knew, so that models over those
    need little training more. `anchors` are the languages of one side of each pair, by default all.

    `tokens_per_step` and `micro_tokens` (target tokens in the mean) decide how many pairs a step and a micro-batch have;
    None leaves that to `pairs_per_step` and `micro_pairs`. The noise of a `DecoderObjective` is measured by a store's
    vectors (`spread`), or by sentences of the sources. `judged` says whether evaluations translate validation rows.

    `languages` are those of a codec that begins with random weights. Sides of bitext in languages that the codec does not
    have are left out, and counted on the console.
    """

    train: TrainConfig
    objective: ObjectiveConfig | DecoderObjective = field(default_factory=ObjectiveConfig)
    init: str = ""
    teacher: str = ""
    taught: tuple[str, ...] = ()
    bitext: tuple[str, ...] = ()
    bitext_share: float = 0.15
    temperature: float = 1.0
    balance: Balance = "rows"
    anchors: tuple[str, ...] = ()
    new_languages: tuple[str, ...] = ()
    new_pieces: int = 0
    spread: Path | None = None
    stories: int = 20_000
    pieces: int = 8000
    width: int = 256
    encoder_layers: int = 3
    decoder_layers: int = 3
    heads: int = 4
    ffn: int = 1024
    dropout: float = 0.0
    pooling: Pooling = "mean"
    pooler_layers: int = 1
    codec_max_tokens: int = 128
    pairs_per_step: int = 40
    micro_pairs: int = 256
    tokens_per_step: int | None = None
    micro_tokens: int | None = None
    judged: bool = True
    languages: tuple[str, ...] = STORYWORLD_LANGUAGES

    def __post_init__(self) -> None:
        if not 0 <= self.bitext_share <= 1:
            raise ValueError(f"bitext_share must be in [0, 1], got {self.bitext_share}")
        if not self.stories and not self.bitext:
            raise ValueError("there is nothing to learn from: stories is 0 and there is no bitext; give one of them")
        if self.new_languages and not self.init:
            raise ValueError("new_languages are added to a codec: name it as init")
        if self.taught and not self.teacher:
            raise ValueError(f"taught names {', '.join(self.taught)} to follow a teacher, but there is none; give one")

    @property
    def story_share(self) -> float:
        """The share of the pairs that come from StoryWorld."""
        if not self.bitext:
            return 1.0
        return 1 - self.bitext_share if self.stories else 0.0

    def codec_config(self, vocab_size: int) -> CodecConfig:
        """The shape of a codec that begins with random weights."""
        plain = codec_config(
            self.languages,
            vocab_size,
            self.width,
            self.encoder_layers,
            self.decoder_layers,
            self.heads,
            self.ffn,
            self.dropout,
            self.codec_max_tokens,
        )
        pooler = None
        if self.pooling == "attention":
            pooler = PoolerConfig(self.width, self.pooler_layers, self.heads, self.ffn, dropout=self.dropout)
        return replace(plain, encoder=replace(plain.encoder, pooling=self.pooling, pooler=pooler))


@dataclass(frozen=True)
class BitextPart:
    """A specification that `load_bitext` reads, and the data tag that its end gave it."""

    spec: str
    tag: str = ""
    synthetic: tuple[str, ...] = ()


def bitext_part(word: str) -> BitextPart:
    """`web.tsv@mined` or `back.tsv@mmt-bt:deu_Latn` -> its parts. ValueError for a tag that there is not."""
    spec, at, told = word.rpartition("@")
    if not at or "/" in told:
        return BitextPart(word)
    name, colon, language = told.partition(":")
    tag = {"mined": "<MINED_DATA>", "mmt-bt": "<MMT_BT_DATA>", "smt-bt": "<SMT_BT_DATA>"}.get(name)
    if tag is None and word.startswith("hf:"):
        return BitextPart(word)  # its split
    if tag is None or bool(colon and language) != (name != "mined"):
        raise ValueError(
            f"{word}: expected SPEC, SPEC@mined, SPEC@mmt-bt:LANGUAGE or SPEC@smt-bt:LANGUAGE (what a machine wrote), "
            f"got the ending @{told}"
        )
    return BitextPart(spec, tag, (language,) if language else ())


@dataclass(frozen=True)
class MixturePart:
    """A store to learn from beside others. At weight 1 each of its documents is read as often as one of theirs, at 2 twice."""

    store: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"the weight of {self.store} in the mixture must be above 0, got {self.weight}")


def mixture_of(words: Sequence[str]) -> tuple[MixturePart, ...]:
    """`stores/xsum=2 stores/wikitext` -> the parts. ValueError for a weight that is no number above 0."""
    parts = []
    for word in words:
        store, equals, weight = word.partition("=")
        try:
            parts.append(MixturePart(Path(store), float(weight) if equals else 1.0))
        except ValueError as error:
            raise ValueError(f"expected STORE or STORE=WEIGHT, such as stores/xsum=2, got {word!r} ({error})") from error
    return tuple(parts)


Mixture = Annotated[
    tuple[MixturePart, ...],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="STORE[=WEIGHT] ...",
        instance_from_str=lambda words: mixture_of(words),
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(part, MixturePart) for part in value),
        str_from_instance=lambda parts: [f"{part.store}={part.weight:g}" for part in parts],
    ),
]


@dataclass(frozen=True)
class StoreRun:
    """Train on an embedding store: what all families that read documents have in common.

    `data` is the store to learn from, `valid` the one it is judged on; `codec` what made them. `mixture`, where given, takes
    the place of `data`: several stores, documents drawn in proportion to how many a store has, times its weight.
    `init` is a model of the same family, shape and codec to go on from, "mini" or a folder; "" begins with random weights. A
    SONAR-LLM may be one of another codec with vectors as wide: what it knows of stories is of use in another space. (It does
    not speak there at once, though the codec kept its vectors (`CodecRun.taught`): what it predicts are not vectors that an
    encoder gives, and another decoder says something else of them. Mini had 3.40 nats before its first step
    there, 1.12 after 100, in training.) LCMs may not, since their normalizer is that of one space.
    `epochs`, where given, decides how many steps there are; None leaves that to `train`. `frozen` "auto" holds the frozen
    codec in bfloat16 where products are in bfloat16, at half the memory.
    """

    data: Path
    valid: Path
    train: TrainConfig
    backbone: BackboneConfig
    init: str = ""
    codec: str = "mini"
    batches: ConceptDataConfig = field(default_factory=ConceptDataConfig)
    mixture: Mixture = ()
    epochs: float | None = None
    frozen: Literal["auto", "float32"] = "auto"

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The stores to learn from."""
        return self.mixture or (MixturePart(self.data),)

    def settings(self, documents: int) -> TrainConfig:
        """`train` with the steps that so many documents take."""
        if self.epochs is None:
            return self.train
        return replace(self.train, steps=steps_of(self.epochs, documents, self.batches.documents_per_step))

    def holds_bfloat16(self, half: bool) -> bool:
        """Whether the codec is held in bfloat16, given that products are in it or not."""
        return half and self.frozen == "auto"

    def __post_init__(self) -> None:
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs must be above 0, or None to take the number of steps; got {self.epochs}")


@dataclass(frozen=True)
class SonarLLMRun(StoreRun):
    """Train a SONAR-LLM on an embedding store.

    `as_published` and `context_noise` are those of `SonarLLM.loss`, `train_decoder` that of `SonarLLMConfig`,
    `activation_checkpointing` and `compile` those of `SonarLLM.use`. With `shard_decoder`, a frozen decoder lies in parts on
    the ranks, too, under FSDP. For the rest see `StoreRun`.
    """

    as_published: bool = False
    context_noise: float = 0.0
    train_decoder: bool = False
    activation_checkpointing: bool = False
    compile: bool = False
    shard_decoder: bool = False

    def holds_bfloat16(self, half: bool) -> bool:
        return super().holds_bfloat16(half) and not self.train_decoder  # what learns needs the last bits

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.context_noise >= 0:
            raise ValueError(f"context_noise must be at least 0, got {self.context_noise}")


@dataclass(frozen=True)
class MseLCMRun(StoreRun):
    """Train an MSE-LCM. Its normalizer is fitted on `normalizer_vectors` of the store.

    `activation_checkpointing` and `compile` are those of `MseLCM.use`. For the rest see `StoreRun`.
    """

    normalizer_vectors: int = 1_000_000
    activation_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True)
class DiffusionLCMRun(MseLCMRun):
    """Train a two-tower diffusion LCM with about as many weights as `backbone` has (see `diffusion_lcm.towers`).

    `noise` and `context_dropout` are those of `DiffusionLCMConfig`. For the rest see `MseLCMRun`.
    """

    noise: NoiseSchedule = field(default_factory=NoiseSchedule)
    context_dropout: float = 0.15


@dataclass(frozen=True)
class TokenLLMRun(StoreRun):
    """Train a token-level LLM, whose store is read for its texts and token ids.

    `tokenizer` is "" for the codec's, a SentencePiece file, or a tokenizer of Hugging Face's. `tied` and `whole_text` are
    those of `TokenLLM` and of its loss, `activation_checkpointing` and `compile` those of its `use`. For the rest see
    `StoreRun`.
    """

    tokenizer: str = ""
    tied: bool = True
    whole_text: bool = True
    activation_checkpointing: bool = False
    compile: bool = False


@dataclass(frozen=True)
class SpeechRun:
    """Train a speech encoder towards the vectors that a frozen codec gives to the transcriptions.

    `data` and `valid` are sets that `evaluation.speech.speech_set` opens: manifests, FOLDER@SPLIT of Common Voice or FLEURS, or
    synthetic:COUNT, which espeak-ng speaks into the folder `synthetic` first. The codec's vectors are kept beside each
    set's manifest, under the codec's fingerprint.

    `init` is a speech encoder of the same shape to go on from, "mini" or a folder; `body:` and one whose body alone is taken,
    under a fresh pooling; or `w2v-bert:` and a w2v-BERT 2.0 of Hugging Face's as the body; "" begins with random weights. Mean
    and max pooling keep the body's width, which must then be the codec's; attention pooling has a pooler as wide as the codec's
    vectors; pooling "text" is the codec's text encoder, which reads the pieces that the frames are heard as, and needs a
    `piece_weight`. For `frozen_steps` only the pooler learns. A body with random weights needs a `ctc_weight` (see
    `SpeechTask`): without it `mini` gave every sentence little but the mean of all vectors for as long as it was tried, 11 000
    utterances. With a `decoder_weight` it learns through the frozen decoder, too.
    A step has about `seconds_per_step` of sound on all ranks together, a micro-batch at most `micro_seconds`, an
    utterance at most `max_seconds`. A sound file that is listed but not there stops the run, or with `skip_missing` is left out
    and counted on the console.
    """

    train: TrainConfig
    body: BodyConfig
    data: tuple[str, ...] = ("synthetic:12000",)
    valid: tuple[str, ...] = ("synthetic:200", "synthetic:200@valid-unheard")
    synthetic: Path = Path("stores/speech")
    codec: str = "mini"
    init: str = ""
    pooling: Literal["mean", "max", "attention", "text"] = "attention"
    pooler_layers: int = 3
    pooler_heads: int = 16
    pooler_ffn: int = 4096
    pooler_dropout: float = 0.1
    frozen_steps: int = 0
    ctc_weight: float = 0.0
    ctc_layer: int = 1
    piece_weight: float = 0.0
    decoder_weight: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seconds_per_step: float = 60.0
    micro_seconds: float = 30.0
    max_seconds: float = 30.0
    skip_missing: bool = False

    def __post_init__(self) -> None:
        if not self.data or not self.valid:
            raise ValueError(
                f"expected at least one set to learn from and one to be judged on: data {self.data}, valid {self.valid}"
            )
        if self.init.startswith("w2v-bert:") and self.body.kind != "w2v-bert":
            raise ValueError(f"init {self.init} needs a body of the kind w2v-bert, got {self.body.kind}; take --size 600M")

    def speech_config(self, codec: CodecConfig) -> SpeechConfig:
        """The shape of an encoder into that codec's vectors. ValueError where mean or max pooling cannot give it."""
        width = codec.width
        if self.pooling == "text":
            pieces = PiecesConfig(codec.vocab_size, codec.encoder.width)
            return SpeechConfig(width, self.body, "text", None, self.max_seconds, pieces=pieces)
        if self.pooling == "attention":
            pooler = PoolerConfig(width, self.pooler_layers, self.pooler_heads, self.pooler_ffn, dropout=self.pooler_dropout)
            return SpeechConfig(width, self.body, "attention", pooler, self.max_seconds)
        if self.body.width != width:
            raise ValueError(
                f"{self.pooling} pooling gives vectors as wide as the body, {self.body.width}, but the codec's are {width}: "
                f"add --width {width}, or pool by attention"
            )
        return SpeechConfig(width, self.body, self.pooling, None, self.max_seconds)


def steps_of(epochs: float, documents: int, documents_per_step: int) -> int:
    """The steps that come nearest to `epochs` passes over that many documents, at least one."""
    return max(1, round(epochs * documents / documents_per_step))


def codec_mini() -> CodecRun:
    """A codec of the shipped shape from scratch, D = 256, two CPU cores; `codec_mini_everyday` is what followed."""
    optimizer = OptimizerConfig(lr=2e-3, muon=True, warmup_steps=300, schedule="cosine", min_lr_ratio=0.01)
    return CodecRun(
        TrainConfig(Path("runs/codec-mini"), steps=2800, precision="auto", log_every=50, save_every=250, optimizer=optimizer),
        objective=ObjectiveConfig(dae_weight=0.5, dae_share=0.25, noise_ratio=0.0),
    )


def codec_mini_everyday() -> CodecRun:
    """What made the shipped codec of the one before it: everyday sentences (Tatoeba), and itself as the teacher of StoryWorld."""
    run = codec_mini()
    return replace(
        run,
        train=replace(
            run.train, out=Path("runs/codec-mini-everyday"), steps=4300, optimizer=replace(run.train.optimizer, lr=1.5e-3)
        ),
        init="mini",
        teacher="mini",
        taught=("storyworld",),
        bitext=("tatoeba_eng_deu.jsonl.gz", "tatoeba_eng_fra.jsonl.gz"),
        bitext_share=0.72,
        pairs_per_step=128,
        micro_pairs=128,
        objective=ObjectiveConfig(mt_weight=0.6, dae_weight=1.0, dae_share=0.75, noise_ratio=0.0, distill_weight=5.0),
    )


def codec_mini_decoder() -> CodecRun:
    """The decoder alone learns from points between translations, the encoder frozen: its vectors stay what they are."""
    run = codec_mini()
    optimizer = OptimizerConfig(lr=5e-4, muon=True, warmup_steps=100, schedule="cosine", min_lr_ratio=0.01)
    return replace(
        run,
        train=replace(run.train, out=Path("runs/codec-mini-decoder"), steps=1000, optimizer=optimizer),
        init="mini",
        objective=DecoderObjective(),
    )


def codec_mini_language() -> CodecRun:
    """A codec learns `new_languages` from bitext whose other side it knows: to say nothing new, but to read."""
    run = codec_mini()
    return replace(
        run,
        train=replace(run.train, out=Path("runs/codec-mini-language"), steps=1000),
        init="mini",
        teacher="mini",
        stories=0,
        bitext=("bitext.tsv",),
        new_languages=("ces_Latn",),
        new_pieces=2000,
        anchors=STORYWORLD_LANGUAGES,
        objective=ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=0, distill_weight=1),
    )


def codec_mini_student() -> CodecRun:
    """A smaller encoder learns the vectors of a larger one, whose decoder then says them."""
    run = codec_mini()
    return replace(
        run,
        train=replace(run.train, out=Path("runs/codec-mini-student"), steps=1000),
        teacher="mini",
        encoder_layers=1,
        objective=ObjectiveConfig(mt_weight=0, mse_weight=0, dae_weight=0, distill_weight=1),
    )


def codec_1b() -> CodecRun:
    """SONAR as published (arXiv 2308.11466), from NLLB 1B: 24 + 24 layers of 1024, on the bitext given.

    100 000 updates with NLLB's schedule, which the paper says it took (its own public recipe, arXiv 2207.04672): Adam with
    betas 0.9 and 0.98, 1e-3 after 8 000 warm-up updates, then the inverse square root, about 1.05M target tokens an update,
    label smoothing 0.1, no clipping, half of the pieces masked for the denoising.
    """
    optimizer = OptimizerConfig(lr=1e-3, betas=(0.9, 0.98), eps=1e-6, clip=0.0, warmup_steps=8000, schedule="inverse_sqrt")
    return CodecRun(
        TrainConfig(Path("runs/codec-1B"), steps=100_000, precision="auto", log_every=20, save_every=500, optimizer=optimizer),
        ObjectiveConfig(label_smoothing=0.1),
        init="nllb:facebook/nllb-200-1.3B",
        bitext=("bitext.tsv",),
        temperature=5.0,
        stories=0,
        width=1024,
        encoder_layers=24,
        decoder_layers=24,
        heads=16,
        ffn=8192,
        dropout=0.1,
        codec_max_tokens=512,
        tokens_per_step=1_050_000,
        micro_tokens=8192,
    )


def codec_1b_decoder() -> CodecRun:
    """The decoder of `codec_1b`'s codec tuned on random interpolations, as Meta's "sonar-finetuned" was."""
    run = codec_1b()
    return replace(
        run,
        train=replace(run.train, out=Path("runs/codec-1B-decoder")),
        init="runs/codec-1B/final",
        objective=DecoderObjective(label_smoothing=0.1),
    )


CODEC_RECIPES = {
    "mini": codec_mini,
    "mini-everyday": codec_mini_everyday,
    "mini-decoder": codec_mini_decoder,
    "mini-language": codec_mini_language,
    "mini-student": codec_mini_student,
    "1B": codec_1b,
    "1B-decoder": codec_1b_decoder,
}


# mini aside, those of arXiv 2508.05305, named by their parameters with a token embedding of 128 256 rows that only the
# token-level model of the same size has. It gives no shape for 39M and 1.3B: those are ours, made to the counts it names.
SONAR_LLM_SIZES = {
    "mini": BackboneConfig(hidden=320, ffn=1024, layers=6, heads=5, head_dim=64),
    "39M": BackboneConfig(hidden=224, ffn=896, layers=13, heads=7, head_dim=32),
    "100M": BackboneConfig(hidden=512, ffn=2048, layers=8, heads=16, head_dim=32),
    "300M": BackboneConfig(hidden=1024, ffn=4096, layers=10, heads=16, head_dim=64),
    "600M": BackboneConfig(hidden=1280, ffn=5120, layers=16, heads=26, head_dim=64),
    "900M": BackboneConfig(hidden=1536, ffn=6144, layers=17, heads=32, head_dim=64),
    "1.3B": BackboneConfig(hidden=1792, ffn=7168, layers=20, heads=32, head_dim=64),
}


def sonar_llm(size: str) -> SonarLLMRun:
    """SONAR-LLM of a named size with the recipe that goes with it: ours for mini, the published one for the others.

    ValueError names the sizes there are.
    """
    if size not in SONAR_LLM_SIZES:
        raise ValueError(f"unknown size {size!r}; the sizes are {', '.join(SONAR_LLM_SIZES)}, 1.3B-summarization")
    return sonar_llm_mini() if size == "mini" else sonar_llm_published(size)


def sonar_llm_mini() -> SonarLLMRun:
    """The shipped SONAR-LLM: StoryWorld, two CPU cores."""
    optimizer = OptimizerConfig(lr=1e-3, muon=True, betas=(0.9, 0.99), eps=1e-5, weight_decay=0.01, warmup_steps=50)
    return SonarLLMRun(
        Path("stores/storyworld-train"),
        Path("stores/storyworld-valid"),
        TrainConfig(
            Path("runs/sonar-llm-mini"),
            steps=3000,
            precision="auto",
            log_every=20,
            eval_every=500,
            save_every=250,
            optimizer=optimizer,
        ),
        SONAR_LLM_SIZES["mini"],
        frozen="float32",
        batches=ConceptDataConfig(documents_per_step=32, micro_tokens=16_384),
    )


def sonar_llm_published(size: str) -> SonarLLMRun:
    """arXiv 2508.05305: TinyStories for 4 epochs, 512 documents a step of at most 32 sentences of 256 tokens; AdamW with
    eps 1e-5, 1e-3 after 820 warm-up steps, then a cosine; gradients clipped at 1.

    That took 16 480 steps there; here it is as many as four epochs of the store at hand. What the paper leaves open
    is as in torch's AdamW: betas 0.9 and 0.999, weight decay 0.01 (but of matrices only).
    """
    optimizer = OptimizerConfig(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-5, weight_decay=0.01, clip=1.0, warmup_steps=820, schedule="cosine"
    )
    return SonarLLMRun(
        Path("stores/tinystories-train"),
        Path("stores/tinystories-valid"),
        TrainConfig(
            Path(f"runs/sonar-llm-{size}"),
            steps=16_480,
            precision="auto",
            log_every=20,
            eval_every=1000,
            save_every=500,
            optimizer=optimizer,
        ),
        SONAR_LLM_SIZES[size],
        codec="sonar",
        batches=ConceptDataConfig(documents_per_step=512, max_sentences=32, max_tokens=256),
        epochs=4.0,
    )


# The stores of the summarization mixture, the Hugging Face datasets they are encoded from, and the columns of their texts: a
# document goes before its summary, as in `evaluation.summarization`. Which of the public versions of "Textbooks Are All You
# Need" was used the paper does not say.
SUMMARIZATION_MIXTURE = {
    "tiny-textbooks": ("hf:nampdn-ai/tiny-textbooks", "textbook"),
    "tiny-orca-textbooks": ("hf:nampdn-ai/tiny-orca-textbooks", "textbook"),
    "tiny-strange-textbooks": ("hf:nampdn-ai/tiny-strange-textbooks", "text"),
    "textbooks-are-all-you-need": ("", "text"),
    "wikitext-103": ("hf:Salesforce/wikitext:wikitext-103-raw-v1", "text"),
    "xsum": ("hf:EdinburghNLP/xsum", "document+summary"),
    "cnn-dailymail": ("hf:abisee/cnn_dailymail:3.0.0", "article+highlights"),
}


def sonar_llm_summarization() -> SonarLLMRun:
    """The 1.3B model of the paper's summarization experiments: seven corpora, a store of each under its name in `stores/`.

    The paper publishes no weights for them: each is drawn from in proportion to its documents, unless told otherwise. A store is
    made by `sonarkit/encode.py hf:EdinburghNLP/xsum stores/xsum --column document+summary --codec sonar`, and so on, and
    `stores/xsum-valid` of `hf:EdinburghNLP/xsum@validation`. No set was fetched; a column that is not there is answered with
    those that are.
    """
    run = sonar_llm_published("1.3B")
    return replace(
        run,
        mixture=tuple(MixturePart(Path("stores") / name) for name in SUMMARIZATION_MIXTURE),
        valid=Path("stores/xsum-valid"),
        train=replace(run.train, out=Path("runs/sonar-llm-1.3B-summarization")),
    )


def mse_lcm(size: str) -> MseLCMRun:
    """The MSE-LCM of a named size: SONAR-LLM's recipe, at half its rate for the published sizes (arXiv 2508.05305)."""
    return MseLCMRun(**_shared(size, "mse-lcm"))


def diffusion_lcm(size: str) -> DiffusionLCMRun:
    """The diffusion LCM with the recipe of `mse_lcm`."""
    return DiffusionLCMRun(**_shared(size, "diffusion-lcm"))


def token_llm(size: str) -> TokenLLMRun:
    """The token-level LLM over the codec's tokens with the recipe of `mse_lcm`."""
    return TokenLLMRun(**_shared(size, "token-llm"))


def _shared(size: str, family: str) -> dict[str, Any]:
    """What a baseline takes over from SONAR-LLM of its size: all of `StoreRun`, with another folder and rate."""
    run = sonar_llm(size)
    optimizer = run.train.optimizer if size == "mini" else replace(run.train.optimizer, lr=5e-4)
    train = replace(run.train, out=Path(f"runs/{family}-{size}"), optimizer=optimizer)
    return {**{one.name: getattr(run, one.name) for one in fields(StoreRun)}, "train": train}


def speech_mini() -> SpeechRun:
    """The shipped speech encoder: StoryWorld by espeak-ng, two CPU cores, 4.2M parameters beside mini's text encoder.

    That one reads the pieces that the frames are heard as (pooling "text"), so that only to hear is learnt. Who pools the frames
    themselves learns anew what sentences mean: by attention after 3 000 steps of a minute each the cosine for unheard
    voices was 0.51. What is learnt is bounded by the number of steps, so they are short; without dropout, which takes a fifth of
    a step, varied speed and masks keep the voices from being learnt by heart.
    """
    optimizer = OptimizerConfig(lr=6e-3, muon=True, warmup_steps=100, schedule="cosine", min_lr_ratio=0.01)
    return SpeechRun(
        TrainConfig(
            Path("runs/speech-mini"),
            steps=7000,
            precision="auto",
            log_every=50,
            eval_every=1000,
            save_every=250,
            optimizer=optimizer,
        ),
        BodyConfig(192, 5, 4, 576, kernel=15, subsampling="convolution"),
        data=("synthetic:16000",),
        pooling="text",
        pooler_layers=1,
        pooler_heads=4,
        pooler_ffn=512,
        pooler_dropout=0.0,
        ctc_weight=0.1,
        ctc_layer=2,
        piece_weight=0.2,
        augment=AugmentConfig(time_masks=0, mel_masks=1, mels=12, silence=0.5, noise=0.1),
        seconds_per_step=20.0,
        micro_seconds=40.0,
    )


def speech_600m() -> SpeechRun:
    """SONAR's speech encoder as published (arXiv 2308.11466, section 3.2): w2v-BERT 2.0 with an attention pooler of three layers.

    16 kHz, MSE to the vector of the transcription, a language or several at a time. The paper gives no schedule: steps, batch,
    rate, the steps in which the pooler learns alone and augmentation are ours, and were not run. The published encoders of
    languages other than English have six layers (`--pooler-layers 6`).
    """
    optimizer = OptimizerConfig(lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, warmup_steps=2000)
    return SpeechRun(
        TrainConfig(
            Path("runs/speech-600M"),
            steps=50_000,
            precision="auto",
            log_every=20,
            eval_every=2000,
            save_every=500,
            optimizer=optimizer,
        ),
        BodyConfig(kind="w2v-bert"),
        data=("fleurs/data/fr_fr@train",),
        valid=("fleurs/data/fr_fr@dev",),
        codec="sonar",
        init="w2v-bert:facebook/w2v-bert-2.0",
        frozen_steps=2000,
        seconds_per_step=3200.0,
        micro_seconds=200.0,
        max_seconds=60.0,
    )


SPEECH_RECIPES = {"mini": speech_mini, "600M": speech_600m}

Family = Literal["codec", "sonar-llm", "mse-lcm", "diffusion-lcm", "token-llm", "speech"]
BY_NAME: dict[str, Mapping[str, Callable[[], CodecRun | SpeechRun]]] = {"codec": CODEC_RECIPES, "speech": SPEECH_RECIPES}
FAMILIES = {"sonar-llm": sonar_llm, "mse-lcm": mse_lcm, "diffusion-lcm": diffusion_lcm, "token-llm": token_llm}


def recipe(family: str, size: str) -> CodecRun | StoreRun | SpeechRun:
    """The run that `train.py FAMILY --size SIZE` starts from. ValueError names the families and sizes there are."""
    if family in BY_NAME:
        if size not in BY_NAME[family]:
            raise ValueError(f"unknown size {size!r}; the sizes are {', '.join(BY_NAME[family])}")
        return BY_NAME[family][size]()
    if family not in FAMILIES:
        raise ValueError(f"unknown model family {family!r}; the families are codec, {', '.join(FAMILIES)}, speech")
    return sonar_llm_summarization() if (family, size) == ("sonar-llm", "1.3B-summarization") else FAMILIES[family](size)
