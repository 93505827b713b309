"""Speech into the space of sentence vectors (arXiv 2308.11466, section 3.2).

1. Front end: `filter_bank`, 80 log-mel energies every 10 ms, each brought to mean 0 and variance 1 over the utterance.
2. Body: `Conformer` (ours; Meta's published encoders are one, and so is `mini`) or `W2vBert` (Hugging Face's w2v-BERT 2.0).
3. Pooling to one vector: mean, max, the attention pooler that text encoders use, too, or the codec's text encoder itself,
   which reads the pieces that the frames are heard as (`Hearing`).
4. `encode_speech` for utterances, `encode_recording` for what is longer than a sentence.

Utterances of a batch are padded, and what is padded reaches nothing: a vector does not depend on its neighbours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from sonarkit.codec import audio as sound
from sonarkit.codec.audio import RATE, Audio
from sonarkit.codec.config import PoolerConfig, StackConfig
from sonarkit.codec.encoder import Encoder
from sonarkit.codec.layers import LayerNorm, linear
from sonarkit.codec.pooler import AttentionPooler
from sonarkit.core import checkpoint
from sonarkit.core import config as configs
from sonarkit.core.config import check_sizes
from sonarkit.core.packing import Packing, chunks_by_tokens, packing_of
from sonarkit.core.paths import asset

SHIPPED = {"mini": "mini/speech"}
FORMAT = "sonarkit-speech-1"
MELS = 80


@dataclass(frozen=True)
class BodyConfig(StackConfig):
    """What turns filter banks into frames of `width`; the defaults are those of w2v-BERT 600M in Meta's speech encoders.

    `subsampling`: "stack" lays two frames side by side (50 a second), "convolution" strides twice (25 a second).
    `convolution_norm` "none" is for a batch norm folded into the convolution. Both, and `kernel`, are fixed in w2v-BERT 2.0.
    """

    kind: Literal["conformer", "w2v-bert"] = "conformer"
    ffn: int = 4096
    activation: Literal["silu"] = "silu"
    dropout: float = 0.0
    kernel: int = 31
    subsampling: Literal["stack", "convolution"] = "stack"
    convolution_norm: Literal["layer", "none"] = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise ValueError(f"kernel must be odd and positive, got {self.kernel}")
        if self.kind == "w2v-bert" and (self.subsampling, self.convolution_norm, self.kernel) != ("stack", "layer", 31):
            raise ValueError("w2v-BERT 2.0 has subsampling 'stack', convolution_norm 'layer' and kernel 31")


@dataclass(frozen=True)
class PiecesConfig:
    """What a text encoder reads: how many pieces it knows (special tokens included) and their width."""

    vocab_size: int
    width: int

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "width")


@dataclass(frozen=True)
class SpeechConfig:
    """A speech encoder into vectors of size `width`. `codec` is the fingerprint of the codec whose vectors it gives, "" unknown.

    Pooling "text" has `pieces`, and its width is that of the text encoder's vectors. Of the others only attention pooling, whose
    pooler has a width of its own, changes the body's width. `max_seconds` bounds an utterance.
    """

    width: int = 1024
    body: BodyConfig = field(default_factory=BodyConfig)
    pooling: Literal["mean", "max", "attention", "text"] = "attention"
    pooler: PoolerConfig | None = PoolerConfig()
    max_seconds: float = 60.0
    codec: str = ""
    pieces: PiecesConfig | None = None

    def __post_init__(self) -> None:
        if (self.pooling == "attention") != (self.pooler is not None):
            raise ValueError(f"pooling 'attention' needs a pooler, and only it: got {self.pooling!r} with {self.pooler}")
        if (self.pooling == "text") != (self.pieces is not None):
            raise ValueError(f"pooling 'text' needs pieces, and only it: got {self.pooling!r} with {self.pieces}")
        if self.pieces is None and (self.pooler or self.body).width != self.width:
            raise ValueError(f"vectors would be of width {(self.pooler or self.body).width}, but width is {self.width}")
        if self.max_seconds < 1:
            raise ValueError(f"max_seconds must be at least 1, got {self.max_seconds}")


# ---------------------------------------------------------------------- 1. front end


def filter_bank(samples: Tensor) -> Tensor:
    """(n,) samples in -1..1 at 16 kHz -> (L, 80) log-mel energies, 25 ms every 10 ms, normalised over time.

    Kaldi's arithmetic, as fairseq2's WaveformToFbankConverter (2**15, standardize) and Hugging Face's
    SeamlessM4TFeatureExtractor have it. Those two differ in silence alone: fairseq2 divides by a deviation of 0, so that
    silence is NaN there; here, as in Hugging Face's, 1e-7 is added to the variance. In float64, where it lies within 8e-5 of
    both on white noise; in float32 it was 2e-4 away.
    """
    frames = (samples.double() * 2**15).unfold(0, 400, 160)  # (L, 400)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    window, mel = _front_end_tables(frames.device)
    spectrum = torch.fft.rfft((frames - 0.97 * before) * window, 512).abs().square()
    energies = (spectrum[:, :256] @ mel).clamp(min=torch.finfo(torch.float32).eps).log()
    variance, mean = torch.var_mean(energies, 0)
    return ((energies - mean) / (variance + 1e-7).sqrt()).float()


@lru_cache
def _front_end_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Povey's window (400,), and Kaldi's 80 triangles between 20 Hz and 8 kHz (256, 80)."""
    window = torch.hann_window(400, periodic=False, dtype=torch.float64) ** 0.85

    def mels(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    low, high = mels(torch.tensor([20.0, 8000.0], dtype=torch.float64))
    step = (high - low) / (MELS + 1)
    left = low + step * torch.arange(MELS, dtype=torch.float64)
    bins = mels(torch.arange(256, dtype=torch.float64) * RATE / 512)[:, None]
    mel = torch.minimum((bins - left) / step, (left + 2 * step - bins) / step).clamp(min=0)
    return window.to(device), mel.to(device)


# ---------------------------------------------------------------------- 2. bodies


def mask_of(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(B, L) True where there is a frame, False where there is padding."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


def stacked(x_BLF: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
    """(B, L, F) -> (B, L // 2, 2 F), two frames side by side; an odd last one is left out, as in Meta's."""
    half = x_BLF.shape[1] // 2
    return x_BLF[:, : 2 * half].unflatten(1, (half, 2)).flatten(2), [length // 2 for length in lengths]


class ConformerFeedForward(nn.Module):
    """Half of a feed-forward network's output, as before and after attention and convolution (arXiv 2005.08100)."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.width)
        self.inner, self.output = linear(config.width, config.ffn), linear(config.ffn, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., H) -> (..., H)."""
        return self.dropout(self.output(self.dropout(F.silu(self.inner(self.norm(x)))))) * 0.5


class RelativeAttention(nn.Module):
    """Self-attention that sees how far keys are, as in Transformer-XL (arXiv 1901.02860)."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        self.heads, head = config.heads, config.width // config.heads
        self.norm = LayerNorm(config.width)
        self.qkv, self.output = linear(config.width, 3 * config.width), linear(config.width, config.width)
        self.distance = nn.Linear(config.width, config.width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(config.heads, 1, head))
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, 1, head))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLH: Tensor, mask_BL: Tensor, distances_RH: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H); distances (2 L - 1, H) are `relative_positions`, the mask that of `mask_of`."""
        length = x_BLH.shape[1]
        query, key, value = self.qkv(self.norm(x_BLH)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        distances = self.distance(distances_RH).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)  # (heads, d, 2L - 1)
        by_distance = (query + self.distance_bias) @ distances  # (B, heads, L, 2L - 1), of L - 1, ..., -(L - 1) frames back
        # row i, key j is at distance i - j, column L - 1 - i + j: a skewed view
        skewed = F.pad(by_distance, (0, 1)).flatten(2)[..., length - 1 : length - 1 + length * (2 * length - 1)]
        bias = skewed.unflatten(2, (length, 2 * length - 1))[..., :length] * query.shape[-1] ** -0.5
        bias = bias.masked_fill(~mask_BL[:, None, None], -torch.inf)
        query = query + self.content_bias.to(query.dtype)
        read = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype), self.dropout.p if self.training else 0.0)
        return self.dropout(self.output(read.transpose(1, 2).flatten(2)))


class ConvolutionModule(nn.Module):
    """Pointwise with a gate, depthwise over time, pointwise (arXiv 2005.08100)."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        width = config.width
        self.norm = LayerNorm(width)
        self.gated, self.output = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.depthwise = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=width)
        self.depthwise_norm = LayerNorm(width) if config.convolution_norm == "layer" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLH: Tensor, mask_BL: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H); what is padded is 0 to the convolution."""
        x_BLH = F.glu(self.gated(self.norm(x_BLH)), -1).masked_fill(~mask_BL[..., None], 0)
        x_BLH = self.depthwise(x_BLH.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.output(F.silu(self.depthwise_norm(x_BLH))))


class ConformerLayer(nn.Module):
    """Feed-forward, attention, convolution, feed-forward, layer norm (arXiv 2005.08100)."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        self.before, self.attention = ConformerFeedForward(config), RelativeAttention(config)
        self.convolution, self.after = ConvolutionModule(config), ConformerFeedForward(config)
        self.norm = LayerNorm(config.width)

    def forward(self, x_BLH: Tensor, mask_BL: Tensor, distances_RH: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, H), as `RelativeAttention`."""
        x_BLH = x_BLH + self.before(x_BLH)
        x_BLH = x_BLH + self.attention(x_BLH, mask_BL, distances_RH)
        x_BLH = x_BLH + self.convolution(x_BLH, mask_BL)
        return self.norm(x_BLH + self.after(x_BLH))


class StridedConvolutions(nn.Module):
    """(B, L, 80) -> (B, L / 4, 320), rounded up: two convolutions that each halve the frames."""

    features = 4 * MELS

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(MELS, self.features, 3, stride=2, padding=1)
        self.second = nn.Conv1d(self.features, self.features, 3, stride=2, padding=1)

    def forward(self, x_BLF: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
        """The frames, and how many of them are each utterance's."""
        for convolution in (self.first, self.second):
            lengths = [(length + 1) // 2 for length in lengths]
            x_BLF = F.gelu(convolution(x_BLF.transpose(1, 2))).transpose(1, 2)
            x_BLF = x_BLF.masked_fill(~mask_of(lengths, x_BLF.device)[..., None], 0)
        return x_BLF, list(lengths)


class Conformer(nn.Module):
    """(B, L, 80) filter banks -> (B, L', H) frames, and how many of them are each utterance's."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        self.subsampling = StridedConvolutions() if config.subsampling == "convolution" else None
        features = StridedConvolutions.features if self.subsampling else 2 * MELS
        self.features_norm, self.projection = LayerNorm(features), linear(features, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(config.layers))
        self.norm = LayerNorm(config.width)

    def forward(self, features_BLF: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
        """`lengths` are the utterances' own frames of L, and of L' what is returned."""
        x_BLF, lengths = self.subsampling(features_BLF, lengths) if self.subsampling else stacked(features_BLF, lengths)
        x_BLH = self.dropout(self.projection(self.features_norm(x_BLF)))
        mask_BL = mask_of(lengths, x_BLH.device)
        distances_RH = relative_positions(x_BLH.shape[1], x_BLH.shape[2], x_BLH.device).to(x_BLH.dtype)
        for layer in self.layers:
            x_BLH = layer(x_BLH, mask_BL, distances_RH)
        return self.norm(x_BLH), list(lengths)


@lru_cache(maxsize=64)
def relative_positions(length: int, width: int, device: torch.device) -> Tensor:
    """(2 length - 1, width) sinusoids of the distances length - 1, ..., -(length - 1): sine and cosine by turns."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length - 1, -length, -1)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(device)


class W2vBert(nn.Module):
    """Hugging Face's w2v-BERT 2.0 as a body; its own masking and layer dropping are off. ValueError without transformers."""

    def __init__(self, config: BodyConfig) -> None:
        super().__init__()
        library = _transformers()
        self.model = library.Wav2Vec2BertModel(w2v_bert_config(config))

    @property
    def layers(self) -> nn.ModuleList:
        """Its conformer layers."""
        return self.model.encoder.layers

    def forward(self, features_BLF: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
        """As `Conformer.forward`: (B, L, 80) -> (B, L // 2, H)."""
        x_BLF, lengths = stacked(features_BLF, lengths)
        mask_BL = mask_of(lengths, x_BLF.device).long()
        return self.model(x_BLF, attention_mask=mask_BL).last_hidden_state, list(lengths)


def w2v_bert_config(config: BodyConfig) -> Any:
    """transformers' configuration of that body."""
    return _transformers().Wav2Vec2BertConfig(
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.ffn,
        feature_projection_input_dim=2 * MELS,
        hidden_dropout=config.dropout,
        activation_dropout=config.dropout,
        attention_dropout=config.dropout,
        feat_proj_dropout=config.dropout,
        conformer_conv_dropout=config.dropout,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
    )


def _transformers() -> Any:
    try:
        import transformers

        _ = transformers.Wav2Vec2BertModel
    except (ImportError, AttributeError) as error:
        raise ValueError(f'w2v-BERT 2.0 needs the transformers package ({error}): pip install -e ".[speech]"') from error
    return transformers


# ---------------------------------------------------------------------- 3. the encoder


class Hearing(nn.Module):
    """Frames -> the pieces of text that they sound like, each frame a piece or the blank of CTC (Graves et al. 2006).

    A piece is told by its row of the text encoder's embedding, which is not among the weights here.
    """

    def __init__(self, width: int, pieces: PiecesConfig) -> None:
        super().__init__()
        self.projection = linear(width, pieces.width)
        self.blank = nn.Parameter(torch.zeros(1, pieces.width))
        self.bias = nn.Parameter(torch.zeros(1 + pieces.vocab_size))

    def forward(self, x_BLH: Tensor, embedding_VH: Tensor) -> Tensor:
        """(B, L, H) frames -> (B, L, 1 + V) scores in float32; 0 is the blank, 1 + k piece k."""
        rows = torch.cat([self.blank, embedding_VH.to(self.blank.dtype)])
        return F.linear(self.projection(x_BLH), rows, self.bias).float()


def pieces_heard(scores_BLV: Tensor, lengths: Sequence[int], most: int) -> tuple[Tensor, list[int]]:
    """(B, L, 1 + V) scores of frames -> (K, V) shares of the pieces at the K places where one is heard, and each row's places.

    Frames in a row with one best piece are a place, and their mean scores its own; blanks are left out (CTC compression, arXiv
    2102.01578). Where all is blank the first frame is the place; a row has at most `most`.
    """
    best_BL = scores_BLV.argmax(2).masked_fill_(~mask_of(lengths, scores_BLV.device), 0)
    best_BL[:, 0] += (best_BL.amax(1) == 0) * scores_BLV.shape[2]  # not blank, and no piece
    begins_BL = F.pad(best_BL[:, 1:] != best_BL[:, :-1], (1, 0), value=True)
    kept_BL = (best_BL != 0) & ((begins_BL & (best_BL != 0)).cumsum(1) <= most)
    frames_F = kept_BL.flatten().nonzero()[:, 0]
    _, place_F, count_K = begins_BL.flatten().cumsum(0)[frames_F].unique_consecutive(return_inverse=True, return_counts=True)
    rows_FV = scores_BLV.flatten(0, 1).index_select(0, frames_F)
    sums_KV = rows_FV.new_zeros(len(count_K), rows_FV.shape[1]).index_add(0, place_F, rows_FV)
    return (sums_KV[:, 1:] / count_K[:, None]).softmax(1), (kept_BL & begins_BL).sum(1).tolist()


class SpeechEncoder(nn.Module):
    """Filter banks of N utterances -> (N, D) sentence vectors, in the caller's order.

    With pooling "text" it needs the text encoder of its codec, `read_with`, and does not save it among its own weights.
    """

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        self.body: Conformer | W2vBert = Conformer(config.body) if config.body.kind == "conformer" else W2vBert(config.body)
        self.pooler = AttentionPooler(config.pooler, config.body.width) if config.pooler else None
        self.hearing = Hearing(config.body.width, config.pieces) if config.pieces else None
        self._reader: list[Encoder] = []  # in a list: its weights are the codec's
        self.name = ""

    def read_with(self, encoder: Encoder) -> None:
        """Pool with this text encoder (pooling "text" only). ValueError where its pieces are others, as many or as wide."""
        there = PiecesConfig(*encoder.embedding.weight.shape)
        if self.config.pieces != there:
            raise ValueError(f"the speech encoder hears {self.config.pieces}, the text encoder reads {there}")
        self._reader = [encoder]

    @property
    def reader(self) -> Encoder:
        """The text encoder that `read_with` was given. ValueError where there is none."""
        if not self._reader:
            raise ValueError(
                "this speech encoder reads with its codec's text encoder: give it to the codec first, by "
                "sonar.add_speech(encoder) or Sonar.from_pretrained(..., speech=...)"
            )
        return self._reader[0]

    def forward(self, features: Sequence[Tensor], frozen_body: bool = False) -> Tensor:
        """`features` are (L_i, 80) each, of `filter_bank`, at least two frames. A frozen body gets no gradient."""
        padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_body):
            x_BLH, lengths = self.body(padded.to(self.device, self.dtype), [len(f) for f in features])
        if self.hearing is not None:
            return self._read(self.hearing(x_BLH, self.reader.embedding.weight), lengths)
        packing = packing_of(lengths)
        x_TH = torch.cat([x_BLH[i, : lengths[i]] for i in packing.order_N.tolist()])
        packing = replace(packing, order_N=packing.order_N.to(self.device))
        return packing.in_callers_order(self.pool(x_TH, packing))

    @torch.no_grad()
    def heard(self, features: Tensor) -> list[tuple[float, int]]:
        """(L, 80) of one utterance -> the pieces that it is heard as, special tokens among them, each with the second at which
        it begins. ValueError for another pooling than "text"."""
        if self.hearing is None:
            raise ValueError(f"only pooling 'text' hears pieces, this encoder has pooling {self.config.pooling!r}")
        x_BLH, _ = self.body(features[None].to(self.device, self.dtype), [len(features)])
        best = self.hearing(x_BLH, self.reader.embedding.weight)[0].argmax(1).tolist()
        seconds = 0.04 if self.config.body.subsampling == "convolution" else 0.02
        return [(i * seconds, k - 1) for i, k in enumerate(best) if k and (not i or best[i - 1] != k)]

    def _read(self, scores_BLV: Tensor, lengths: Sequence[int]) -> Tensor:
        """What is heard -> (N, D) vectors: the text encoder reads a mixture of its pieces at each place."""
        embedding = self.reader.embedding
        shares_KV, places = pieces_heard(scores_BLV, lengths, embedding.max_tokens)
        packing = packing_of(places, self.device)
        x_KH = shares_KV.to(embedding.weight.dtype) @ embedding.weight
        x_TH = torch.cat([x_KH.split(places)[i] for i in packing.order_N.tolist()])
        return self.reader.read(embedding.placed(x_TH, packing.positions()), packing)

    def pool(self, x_TH: Tensor, packing: Packing) -> Tensor:
        """(T, H) packed frames -> (N, D), packed; the mean is summed in float32."""
        if self.pooler is not None:
            return self.pooler(x_TH, packing)
        blocks = packing.split(x_TH)  # (n, L, H) each
        if self.config.pooling == "max":
            return torch.cat([block.amax(1) for block in blocks])
        return torch.cat([block.mean(1, dtype=torch.promote_types(block.dtype, torch.float32)) for block in blocks])

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.parameters()).dtype

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> SpeechEncoder:
        """A shipped speech encoder (`"mini"`) or a folder of `save_pretrained`; Meta's are in `codec.published_speech`.

        Raises FileNotFoundError for what is not there and ValueError for files that are not whole.
        """
        folder = asset(SHIPPED[str(name)]) if str(name) in SHIPPED else Path(name)
        if not (folder / "config.json").is_file():
            known = ", ".join(sorted(SHIPPED))
            raise FileNotFoundError(
                f"no speech encoder at {str(name)!r}: expected {known} or a folder with config.json and model.safetensors"
            )
        encoder = cls(configs.load(SpeechConfig, folder / "config.json"))
        file = folder / "model.safetensors"
        checkpoint.assign(
            encoder, {k: v.to(device, dtype, copy=True) for k, v in checkpoint.read_safetensors(file).items()}, file
        )
        encoder.name = str(name)
        return encoder.to(device).eval()  # buffers that are computed, too

    @classmethod
    def from_w2v_bert(cls, source: str | Path = "facebook/w2v-bert-2.0", pooler: PoolerConfig = PoolerConfig()) -> SpeechEncoder:
        """A new student: w2v-BERT 2.0 as pretrained (a repository of Hugging Face or a folder), with a fresh pooler.

        SONAR's speech encoders began so. ValueError where it is of another shape than BodyConfig can say, or transformers
        is missing; OSError where it cannot be fetched.
        """
        library = _transformers()
        pretrained = library.Wav2Vec2BertModel.from_pretrained(str(source), dtype=torch.float32)
        told = pretrained.config
        body = BodyConfig(
            told.hidden_size,
            told.num_hidden_layers,
            told.num_attention_heads,
            kind="w2v-bert",
            ffn=told.intermediate_size,
        )
        encoder = cls(SpeechConfig(pooler.width, body, "attention", pooler))
        state = {k: v for k, v in pretrained.state_dict().items() if k != "masked_spec_embed"}
        assert isinstance(encoder.body, W2vBert)
        try:
            encoder.body.model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{source} is no w2v-BERT 2.0 without an adapter: {' '.join(str(error).split())[:300]}") from error
        return encoder

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype = torch.float16, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write `config.json` and `model.safetensors` (in `dtype`), atomic file by file; `weights` instead of its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = self.state_dict() if weights is None else weights
        tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
        checkpoint.write_safetensors(folder / "model.safetensors", tensors, {"format": FORMAT})
        configs.save(self.config, folder / "config.json")


# ---------------------------------------------------------------------- 4. sound -> vectors


class SilenceWarning(UserWarning):
    """Some of the sound holds no speech: its vectors mean nothing."""


@dataclass(frozen=True)
class Recording:
    """The sentences of a recording: where each lies, in seconds, and its vector, (n, D) on the encoder's device."""

    spans: list[tuple[float, float]]
    vectors: Tensor


@torch.no_grad()
def encode_speech(
    encoder: SpeechEncoder,
    audio: Sequence[Audio],
    *,
    rate: int = RATE,
    batch_seconds: float | None = None,
    progress: bool = False,
) -> Tensor:
    """Utterances, as paths or arrays at `rate`, -> (n, D) float32 vectors on the encoder's device, in the order given.

    Sorted by length into batches of at most `batch_seconds`, by default 20 s on a CPU and 400 s elsewhere; a file is read
    when its turn comes. What holds no speech has a vector, too, and a SilenceWarning counts it. Raises FileNotFoundError, and
    ValueError for what `codec.audio.load` refuses or is longer than `config.max_seconds` (see `encode_recording`), and for an
    encoder in training mode.
    """
    if isinstance(audio, str | Path | np.ndarray | Tensor):
        raise ValueError("expected a list of paths or arrays; for one utterance pass [audio]")
    if encoder.training:
        raise ValueError("the encoder is in training mode, where dropout is random; call encoder.eval() first")
    lengths = []
    for i, one in enumerate(audio):
        seconds = sound.seconds_of(one) if isinstance(one, str | Path) else len(one) / rate
        if seconds > encoder.config.max_seconds:
            name = one if isinstance(one, str | Path) else f"number {i}"
            raise ValueError(
                f"{name} is {seconds:.1f} s long, more than the {encoder.config.max_seconds:g} s of an utterance; "
                "encode_recording cuts it at silences"
            )
        lengths.append(max(1, round(seconds * 1000)))
    budget = batch_seconds or (20 if encoder.device.type == "cpu" else 400)
    vectors, silent = torch.empty(len(audio), encoder.config.width, device=encoder.device), 0
    with tqdm(total=len(audio), desc="encode", unit="utt", disable=not progress) as bar:
        for chunk in chunks_by_tokens(lengths, round(budget * 1000)):
            samples = [sound.load(audio[i], rate) for i in chunk]
            silent += sum(bool(np.abs(s).max() < 1e-3) for s in samples)
            vectors[chunk] = encoder([filter_bank(torch.from_numpy(s)) for s in samples]).float()
            bar.update(len(chunk))
    if silent:
        warnings.warn(f"{silent} of {len(audio)} utterances are silent (below -60 dB)", SilenceWarning, stacklevel=3)
    return vectors


def encode_recording(
    encoder: SpeechEncoder, audio: Audio, *, rate: int = RATE, progress: bool = False, **cutting: float
) -> Recording:
    """A recording of any length, cut at its silences, -> a vector for each segment, with its times.

    Streamed: what is held at a time are some minutes. `cutting` are options of `codec.audio.segments`, whose `max_seconds`
    is at most the encoder's. ValueError where there is no speech, and as in `encode_speech`.
    """
    cutting = {"max_seconds": min(20.0, encoder.config.max_seconds), **cutting}
    spans: list[tuple[float, float]] = []
    vectors: list[Tensor] = []
    held: list[np.ndarray] = []

    def flush() -> None:
        if held:
            vectors.append(encode_speech(encoder, held))
            held.clear()

    for segment in tqdm(sound.segments(audio, rate, **cutting), desc="encode", unit="segment", disable=not progress):
        if len(segment.samples) < sound.MIN_SECONDS * RATE:
            continue
        spans.append((segment.start, segment.end))
        held.append(segment.samples)
        if sum(map(len, held)) > 120 * RATE:
            flush()
    flush()
    if not spans:
        name = audio if isinstance(audio, str | Path) else "the array"
        raise ValueError(f"there is no speech in {name}: it is silent throughout (below -60 dB)")
    return Recording(spans, torch.cat(vectors))
