"""The speech encoders that Meta publishes, one a language: fetched, and read without fairseq2.

1. `PUBLISHED` lists them, as the asset card of facebookresearch/SONAR does (`sonar/cards/sonar_speech_encoder.yaml`).
2. `load` fetches one into the user's cache and reads it; `from_meta` reads a file that is there already.

Both arrangements of keys are known: fairseq's (`encoder.w2v_model...` and, of the pooler, `decoder...`, under `model`), in which
they are published, and fairseq2's. The batch norm of a convolution module is folded into its depthwise convolution, which is
exact when nothing is trained, and what a fine-tuning with fixed statistics would train.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from sonarkit.codec import published
from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.speech import BodyConfig, SpeechConfig, SpeechEncoder
from sonarkit.codec.weights import read_weights
from sonarkit.core import memory
from sonarkit.core.download import Remote, download_all, refuse_offline
from sonarkit.text.languages import SONAR_LANGUAGES, resolve

QUERY_ROW = 2  # of the pooler's embedding table: `<s>`
BATCH_NORM_EPS = 1e-5

# Meta's licence file gives v3ap to all under MIT, v5ap not to commerce (CC-BY-NC 4.0); English, which it does not name, is
# treated as the latter.
_V3 = "arb cat cym dan deu est fin fra ind ita kor nld pes por ron spa swh tgl tur uzn"
_V5 = (
    "asm bel ben bos bul ces cmn guj heb hin hrv jpn kan lao lit lvs mal mar mkd mlt npi ory pan pol rus slk slv snd srp tam "
    "tel tha ukr urd vie yue"
)
PUBLISHED: dict[str, str] = {
    resolve(code, SONAR_LANGUAGES): file
    for code, file in sorted(
        {
            "eng": "spenc.eng.pt",
            **{code: f"spenc.v3ap.{code}.pt" for code in _V3.split()},
            **{code: f"spenc.v5ap.{code}.pt" for code in _V5.split()},
        }.items()
    )
}  # FLORES-200 code -> file


def load(
    lang: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    accept_licence: bool | None = None,
    progress: bool = True,
) -> SpeechEncoder:
    """Meta's encoder of speech in `lang` (as `resolve` understands it) into SONAR's space; fetched once.

    Licence, cache and mirror are as in `codec.published.files`; the v3ap encoders, under MIT, need no acceptance. Raises
    UnknownLanguageError for a language without one, LicenceError, and what `download_all` and `from_meta` raise.
    """
    encoder = from_meta(file(lang, accept_licence, progress), device=device, dtype=dtype)
    encoder.name = f"sonar-speech-{resolve(lang, tuple(PUBLISHED))}"
    return encoder


def file(lang: str, accept_licence: bool | None = None, progress: bool = True) -> Path:
    """Where the published encoder of a language lies, fetched where it is not in the cache yet. Errors as in `load`."""
    name = PUBLISHED[resolve(lang, tuple(PUBLISHED))]
    base = (os.environ.get("SONARKIT_MIRROR") or published.BASE).rstrip("/")
    folder = published.cache_folder() / "SONAR"
    remote = Remote(f"{base}/{name}", folder / name)
    refuse_offline([remote])
    if not remote.path.is_file() and ".v3ap." not in name:
        published.require_licence(name, folder, accept_licence)
    return download_all([remote], progress=progress)[0]


def from_meta(
    path: str | Path,
    *,
    pooler_heads: int = 16,
    codec: str = "",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SpeechEncoder:
    """Read a `spenc.*.pt`. All of its shape but `pooler_heads` is read off its tensors.

    `codec` is the fingerprint of the codec it belongs to, "" where that is not checked. FileNotFoundError when there is none,
    ValueError for what is no such file or names every tensor that is missing or unexpected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no speech encoder at {path}; expected Meta's spenc.LANG.pt, spenc.v3ap.LANG.pt or spenc.v5ap.LANG.pt"
        )
    found = in_fairseq2_names(read_weights(path))
    config = _read_shape(path, found, pooler_heads, codec)
    with torch.device("meta"):
        encoder = SpeechEncoder(config)
    needed = sum(p.numel() for p in encoder.parameters()) * dtype.itemsize
    memory.check(needed, f"loading {path} as {dtype}", torch.device(device))
    parts = _parts(config)
    wanted = {name for names in parts.values() for name in names}
    told = [f"missing {name}" for name in sorted(wanted - set(found))]
    told += [f"unexpected {name}" for name in sorted(set(found) - wanted) if not _UNUSED.search(name)]
    if told:
        raise ValueError(f"{path} is no speech encoder of SONAR: {'; '.join(told[:12])}{' and more' if len(told) > 12 else ''}")
    state = {}
    for ours, shape in ((name, tensor.shape) for name, tensor in encoder.state_dict().items()):
        value = _value(ours, [found[name] for name in parts[ours]], shape)
        if value.numel() != shape.numel():
            raise ValueError(f"{path}: {' and '.join(parts[ours])} have {value.numel()} numbers, expected {tuple(shape)}")
        state[ours] = value.reshape(shape).to(device, dtype, copy=True)
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


# ---------------------------------------------------------------------- names

_FAIRSEQ_NAMES = (  # fairseq's beginnings and parts -> fairseq2's, one after another
    (r"^encoder\.w2v_model\.layer_norm\.", "encoder_frontend.post_extract_layer_norm."),
    (r"^encoder\.w2v_model\.post_extract_proj\.", "encoder_frontend.model_dim_proj."),
    (r"^encoder\.w2v_model\.encoder\.layer_norm\.", "layer_norm."),
    (r"^encoder\.w2v_model\.encoder\.layers\.(\d+)\.", r"encoder.layers.\1."),
    (r"^(encoder\.layers\.\d+\.)conv_module\.layer_norm\.", r"\1conv_layer_norm."),
    (r"^(encoder\.layers\.\d+\.)conv_module\.", r"\1conv."),
    (r"^(encoder\.layers\.\d+\.ffn[12])\.layer_norm\.", r"\1_layer_norm."),
    (r"^(encoder\.layers\.\d+\.ffn[12])\.w_1\.", r"\1.inner_proj."),
    (r"^(encoder\.layers\.\d+\.ffn[12])\.w_2\.", r"\1.output_proj."),
    (r"^(encoder\.layers\.\d+\.self_attn)\.linear_([qkv])\.", r"\1.\2_proj."),
    (r"^(encoder\.layers\.\d+\.self_attn)\.linear_out\.", r"\1.output_proj."),
    (r"^(encoder\.layers\.\d+\.self_attn)\.linear_pos\.", r"\1.sdpa.r_proj."),
    (r"^(encoder\.layers\.\d+\.self_attn)\.pos_bias_([uv])$", r"\1.sdpa.\2_bias"),
    (r"^(encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.layer_norm."),
    (r"^decoder\.embed_tokens\.", "encoder_pooler.decoder_frontend.embed."),
    (r"^decoder\.embed_out$", "encoder_pooler.projection_out.weight"),
    (r"^decoder\.layers\.", "encoder_pooler.decoder.layers."),
    (r"^(encoder_pooler\.decoder\.layers\.\d+)\.encoder_attn", r"\1.encoder_decoder_attn"),
    (r"^(encoder_pooler\.decoder\.layers\.\d+\.\w+_attn)\.out_proj\.", r"\1.output_proj."),
    (r"^(encoder_pooler\.decoder\.layers\.\d+)\.fc1\.", r"\1.ffn.inner_proj."),
    (r"^(encoder_pooler\.decoder\.layers\.\d+)\.fc2\.", r"\1.ffn.output_proj."),
    (r"^(encoder_pooler\.decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.ffn_layer_norm."),
)
# What no output depends on: pretraining's mask and positions, counters, and queries and keys of the pooler's one query.
_UNUSED = re.compile(
    r"^encoder\.w2v_model\.(mask_emb$|encoder\.pos_conv\.)|num_batches_tracked$|(^|\.)version$|_float_tensor$"
    r"|^encoder_pooler\.decoder\.layers\.\d+\.self_attn\.[qk]_proj\."
)


def in_fairseq2_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a speech encoder by fairseq2's names, whichever of the two arrangements they are in."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, theirs in _FAIRSEQ_NAMES:
            name = re.sub(pattern, theirs, name)
        found[name] = tensor
    return found


def _read_shape(path: Path, found: dict[str, Tensor], pooler_heads: int, codec: str) -> SpeechConfig:
    first, pooling = "encoder.layers.0", "encoder_pooler.decoder.layers"
    needed = (f"{first}.ffn1.inner_proj.weight", f"{first}.self_attn.sdpa.u_bias", f"{first}.conv.depthwise_conv.weight")
    if lacking := [name for name in (*needed, f"{pooling}.0.ffn.inner_proj.weight") if name not in found]:
        told = ", ".join(sorted(found)[:4])
        raise ValueError(f"{path} is no speech encoder of SONAR: it lacks {', '.join(lacking)}; its tensors begin {told}")
    ffn, width = found[needed[0]].shape
    body = BodyConfig(
        width,
        _depth(found, "encoder.layers"),
        len(found[needed[1]]),
        ffn,
        kernel=found[needed[2]].shape[-1],
        convolution_norm="none",
    )
    pooler_ffn, pooler_width = found[f"{pooling}.0.ffn.inner_proj.weight"].shape
    pooler = PoolerConfig(pooler_width, _depth(found, pooling), pooler_heads, pooler_ffn)
    return SpeechConfig(pooler_width, body, "attention", pooler, codec=codec)


def _depth(found: dict[str, Tensor], prefix: str) -> int:
    numbers = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in found)
    return 1 + max(int(match[1]) for match in numbers if match)


def _parts(config: SpeechConfig) -> dict[str, list[str]]:
    """Our tensor -> those of fairseq2's naming that it is made of, as `_value` puts them together."""
    found = _affine("body.features_norm", "encoder_frontend.post_extract_layer_norm")
    found |= _affine("body.projection", "encoder_frontend.model_dim_proj") | _affine("body.norm", "layer_norm")
    for i in range(config.body.layers):
        ours, theirs = f"body.layers.{i}", f"encoder.layers.{i}"
        for mine, ffn in (("before", "ffn1"), ("after", "ffn2")):
            found |= _affine(f"{ours}.{mine}.norm", f"{theirs}.{ffn}_layer_norm")
            found |= _affine(f"{ours}.{mine}.inner", f"{theirs}.{ffn}.inner_proj")
            found |= _affine(f"{ours}.{mine}.output", f"{theirs}.{ffn}.output_proj")
        found |= _affine(f"{ours}.attention.norm", f"{theirs}.self_attn_layer_norm")
        found |= _affine(f"{ours}.attention.qkv", *(f"{theirs}.self_attn.{x}_proj" for x in "qkv"))
        found |= _affine(f"{ours}.attention.output", f"{theirs}.self_attn.output_proj")
        found[f"{ours}.attention.distance.weight"] = [f"{theirs}.self_attn.sdpa.r_proj.weight"]
        found[f"{ours}.attention.content_bias"] = [f"{theirs}.self_attn.sdpa.u_bias"]
        found[f"{ours}.attention.distance_bias"] = [f"{theirs}.self_attn.sdpa.v_bias"]
        found |= _affine(f"{ours}.convolution.norm", f"{theirs}.conv_layer_norm")
        found[f"{ours}.convolution.gated.weight"] = [f"{theirs}.conv.pointwise_conv1.weight"]
        found[f"{ours}.convolution.output.weight"] = [f"{theirs}.conv.pointwise_conv2.weight"]
        norm = [f"{theirs}.conv.batch_norm.{x}" for x in ("weight", "running_var")]
        found[f"{ours}.convolution.depthwise.weight"] = [*norm, f"{theirs}.conv.depthwise_conv.weight"]
        found[f"{ours}.convolution.depthwise.bias"] = [
            *norm,
            *(f"{theirs}.conv.batch_norm.{x}" for x in ("running_mean", "bias")),
        ]
        found |= _affine(f"{ours}.norm", f"{theirs}.layer_norm")
    assert config.pooler is not None
    found["pooler.query"] = ["encoder_pooler.decoder_frontend.embed.weight"]
    for i in range(config.pooler.layers):
        ours, theirs = f"pooler.layers.{i}", f"encoder_pooler.decoder.layers.{i}"
        found |= _affine(f"{ours}.self_norm", f"{theirs}.self_attn_layer_norm")
        found |= _affine(f"{ours}.self_value", f"{theirs}.self_attn.v_proj")
        found |= _affine(f"{ours}.self_output", f"{theirs}.self_attn.output_proj")
        found |= _affine(f"{ours}.cross_norm", f"{theirs}.encoder_decoder_attn_layer_norm")
        found |= _affine(f"{ours}.query", f"{theirs}.encoder_decoder_attn.q_proj")
        found |= _affine(f"{ours}.key_value", *(f"{theirs}.encoder_decoder_attn.{x}_proj" for x in "kv"))
        found |= _affine(f"{ours}.cross_output", f"{theirs}.encoder_decoder_attn.output_proj")
        found |= _affine(f"{ours}.ffn_norm", f"{theirs}.ffn_layer_norm")
        found |= _affine(f"{ours}.ffn.inner", f"{theirs}.ffn.inner_proj")
        found |= _affine(f"{ours}.ffn.output", f"{theirs}.ffn.output_proj")
    found["pooler.projection.weight"] = ["encoder_pooler.projection_out.weight"]
    found["pooler.projection.bias"] = []  # Meta's has none
    return found


def _affine(ours: str, *theirs: str) -> dict[str, list[str]]:
    return {f"{ours}.{kind}": [f"{name}.{kind}" for name in theirs] for kind in ("weight", "bias")}


def _value(ours: str, parts: list[Tensor], shape: torch.Size) -> Tensor:
    if not parts:
        return torch.zeros(shape)
    if ours == "pooler.query":
        return parts[0][QUERY_ROW]
    if ".depthwise." not in ours:
        return torch.cat(parts)
    weight, variance, *rest = (part.float() for part in parts)
    scale = weight / (variance + BATCH_NORM_EPS).sqrt()
    if ours.endswith(".weight"):
        return rest[0] * scale[:, None, None]
    mean, bias = rest
    return bias - mean * scale
