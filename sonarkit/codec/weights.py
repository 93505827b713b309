"""Every published layout of SONAR's weights, read into ours, and ours written in Meta's.

1. `open_side` maps the file of one side, encoder or decoder, and names its tensors as fairseq2 does
   (`encoder.layers.0.self_attn.q_proj.weight`), whichever of these it is:
   - fairseq2's, Meta's newer files and what `Sonar.save_meta` writes, under a top `model` key or not;
   - fairseq's, Meta's older files, under `state_dict`, with a pickled `embed_tokens` module beside it;
   - Hugging Face's M2M100 (the SONAR ports and NLLB itself), whole models or one half.
2. `read_shape` reads the configuration off the tensors.
3. `parts` says which of those tensors each of ours is made of; `fill` copies them, one by one, into memory of the
   dtype and device asked for. Beyond the weights themselves nothing larger than GROUP_BYTES is held.

fairseq and Hugging Face number the first four tokens `<s> <pad> </s> <unk>`, SONAR `<pad> <unk> <s> </s>`: the rows of
the embedding are put in SONAR's order. Nothing is unpickled but tensors; for the fairseq layout's `torch.nn.Embedding` a
class stands that only holds what the file says of it.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sonarkit.codec.config import Activation, CodecConfig, DecoderConfig, EncoderConfig, PoolerConfig, Pooling, TextStackConfig
from sonarkit.core import memory
from sonarkit.core.config import from_dict
from sonarkit.core.foreign import read_json

Side = Literal["encoder", "decoder"]
GROUP_BYTES = 256 << 20  # of the source file mapped at a time
FAIRSEQ_ROWS = [1, 3, 0, 2]  # where fairseq keeps <pad>, <unk>, <s>, </s>

# ---------------------------------------------------------------------- 1. files and layouts


@dataclass(frozen=True)
class SideFile:
    """The tensors of one side of a codec, by fairseq2's names, and how its file names them."""

    path: Path
    tensors: dict[str, Tensor]
    names: dict[str, str]  # fairseq2's name -> the file's own
    reordered: bool  # the first four rows of the embedding are in fairseq's order


def open_side(path: Path, side: Side) -> SideFile:
    """Map the weights of one side. `path` is a .pt, .bin or .safetensors file or a folder of Hugging Face's.

    FileNotFoundError when there is none, ValueError when it is cut short, holds more than tensors, is the other side's,
    or has a layout that is not known.
    """
    found = {name: tensor for file in weight_files(path) for name, tensor in read_weights(file).items()}
    return _in_fairseq2_names(path, found, side)


def weight_files(path: Path) -> list[Path]:
    """The weight files at `path`: itself, or what a Hugging Face folder lists.

    FileNotFoundError where one is missing, ValueError for an index that is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no weights at {path}: expected a .pt, .bin or .safetensors file, or a Hugging Face folder")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            listed = read_json(index, "download it again").get("weight_map")
            if not isinstance(listed, dict) or any(not isinstance(s, str) or Path(s).parts[1:] for s in listed.values()):
                raise ValueError(f'{index}: expected a "weight_map" from tensors to files beside it; download it again')
            shards = sorted(set(listed.values()))
            missing = [shard for shard in shards if not (path / shard).is_file()]
            if missing:
                raise FileNotFoundError(f"{index} names files that are not there: {', '.join(missing)}; download them again")
            return [path / shard for shard in shards]
    raise FileNotFoundError(f"{path} has neither model.safetensors nor pytorch_model.bin, whole or in shards")


class _Embedding:
    """Stands for `torch.nn.Embedding` in a file: that one would allocate a table of any size that the file asks for."""

    @property
    def weight(self) -> Any:
        parameters = vars(self).get("_parameters")
        return parameters.get("weight") if isinstance(parameters, dict) else None


def read_weights(file: Path) -> dict[str, Tensor]:
    """All tensors of a file, memory-mapped, under flat names; wrapping keys (`model`, `state_dict`) are taken off.

    ValueError for a file that is empty, cut short, compressed or damaged, or holds more than tensors.
    """
    if not file.stat().st_size:
        raise ValueError(f"{file} is empty; download it again")
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, ValueError) as error:
            raise ValueError(f"{file} is damaged or cut short ({error}); copy or download it again") from error
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed, which PyTorch never does, and may unpack to any size")
        with torch.serialization.safe_globals([(_Embedding, "torch.nn.modules.sparse.Embedding")]):
            try:
                saved = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                saved = torch.load(file, map_location="cpu", weights_only=True)  # torch's format before 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise ValueError(f"{file} is no PyTorch checkpoint, or damaged ({_first_line(error)}); download it again") from error
        raise ValueError(
            f"{file} holds more than tensors, and sonarkit runs no code of a file ({_first_line(error)}). Where you trust it, "
            'load it with the package that wrote it and save its tensors alone: torch.save({"model": model.state_dict()}, PATH)'
        ) from error
    except Exception as error:  # bytes that are no pickle make an unpickler raise almost anything
        if isinstance(error, OSError) and error.filename:  # it cannot be opened; torch's own for a cut file name none
            raise
        raise ValueError(f"{file} is no PyTorch checkpoint, or cut short ({_first_line(error)}); download it again") from error
    return _tensors(saved, file)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _tensors(saved: Any, file: Path) -> dict[str, Tensor]:
    """The dictionary of tensors in what `torch.load` gave."""
    beside: dict[str, Any] = {}
    for _ in range(4):  # dictionaries in it; one may hold itself
        if not isinstance(saved, dict):
            break
        if isinstance(module := saved.get("embed_tokens"), _Embedding):
            beside["embed_tokens.weight"] = module.weight
        inner = next(
            (saved[key] for key in ("model", "state_dict", "model_state_dict") if isinstance(saved.get(key), dict)), None
        )
        if inner is None:
            tensors = {key: value.detach() for key, value in [*saved.items(), *beside.items()] if isinstance(value, Tensor)}
            if odd := [key for key, value in tensors.items() if not isinstance(key, str) or not _is_whole(value)]:
                raise ValueError(f"{file}: {odd[0]} is no plain tensor whose numbers are all in the file; download it again")
            if tensors:
                return tensors
            break
        saved = inner
    raise ValueError(f"{file} holds no dictionary of tensors, at its top or under 'model' or 'state_dict'")


def _is_whole(tensor: Tensor) -> bool:
    """Whether each number has its own place in memory. A file may say otherwise: one number as a table of any size."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


# What fairseq and Hugging Face call the parts of a layer -> fairseq2's.
_LAYER_NAMES = (
    (r"self_attn\.out_proj\.", "self_attn.output_proj."),
    (r"encoder_attn\.out_proj\.", "encoder_decoder_attn.output_proj."),
    (r"encoder_attn\.", "encoder_decoder_attn."),
    (r"encoder_attn_layer_norm\.", "encoder_decoder_attn_layer_norm."),
    (r"fc1\.", "ffn.inner_proj."),
    (r"fc2\.", "ffn.output_proj."),
    (r"final_layer_norm\.", "ffn_layer_norm."),
)
# No weights: counters and tables that are computed.
_NOT_WEIGHTS = re.compile(r"(^|\.)(version|_float_tensor|embed_positions\.weights|pos_encoder\.freqs|final_logits_bias)$")


def _in_fairseq2_names(path: Path, found: dict[str, Tensor], side: Side) -> SideFile:
    found = {name: tensor for name, tensor in found.items() if not _NOT_WEIGHTS.search(name)}
    other: Side = "decoder" if side == "encoder" else "encoder"
    if any(name.startswith(("encoder_frontend.", "decoder_frontend.")) for name in found):
        if f"{side}_frontend.embed.weight" not in found:
            raise ValueError(f"{path} is a SONAR {other}, not {_an(side)}; pass it as {other}=")
        return SideFile(path, found, {name: name for name in found}, reordered=False)

    stripped = {re.sub(r"^model\.", "", name): name for name in found}
    whole = any(name.startswith("encoder.layers.") for name in stripped) and any(
        name.startswith("decoder.layers.") for name in stripped
    )
    if whole:  # an encoder-decoder such as NLLB: take one half; the embedding is shared
        half = {name.removeprefix(f"{side}."): own for name, own in stripped.items() if name.startswith(f"{side}.")}
        if "embed_tokens.weight" not in half and "shared.weight" in stripped:
            half["embed_tokens.weight"] = stripped["shared.weight"]
    else:
        half = {
            re.sub(rf"^({side}\.|shared\.)", lambda m: "embed_tokens." if m[0] == "shared." else "", name): own
            for name, own in stripped.items()
        }
    if not any(re.match(r"layers\.0\.(fc1|ffn\.inner_proj)\.weight", name) for name in half):
        told = ", ".join(sorted(found)[:4])
        raise ValueError(
            f"{path} is no SONAR {side} in a known layout (fairseq2's, fairseq's, Hugging Face's M2M100); it begins {told}"
        )
    has_cross = any(".encoder_attn." in name or ".encoder_decoder_attn." in name for name in half)
    if has_cross != (side == "decoder"):
        raise ValueError(f"{path} is a SONAR {other}, not {_an(side)}; pass it as {other}=")
    names = {_fairseq2_name(name, side): own for name, own in half.items()}
    return SideFile(path, {name: found[own] for name, own in names.items()}, names, reordered=True)


def _an(side: Side) -> str:
    return {"encoder": "an encoder", "decoder": "a decoder"}[side]


def _fairseq2_name(name: str, side: Side) -> str:
    layer = re.match(r"layers\.\d+\.", name)
    if layer:
        rest = name[layer.end() :]
        for pattern, ours in _LAYER_NAMES:
            if re.match(pattern, rest):
                rest = re.sub(f"^{pattern}", ours, rest)
                break
        return f"{side}.{layer[0]}{rest}"
    if name.startswith("embed_tokens."):
        return f"{side}_frontend.embed.{name.removeprefix('embed_tokens.')}"
    if name.startswith("embed_positions."):
        return f"{side}_frontend.pos_encoder.{name.removeprefix('embed_positions.')}"
    if name.startswith("layer_norm."):
        return name if side == "encoder" else f"decoder.{name}"
    if name.startswith(("output_projection.", "lm_head.")):
        return f"final_proj.{name.split('.', 1)[1]}"
    return name


# ---------------------------------------------------------------------- 2. the configuration, read off the tensors


@dataclass(frozen=True)
class ShapeHints:
    """What the tensors of a codec do not tell; the defaults are those of Meta's text SONAR."""

    heads: int = 16
    decoder_heads: int | None = None  # None: as many as the encoder
    pooler_heads: int = 16
    activation: Activation = "relu"
    pooling: Pooling = "mean"
    first_position: int = 2
    scale_embedding: bool = True
    normalize_vector: bool = False
    predicts_language: bool = True
    positions: bool = True  # a sinusoidal position is added; learned ones are seen in the tensors
    dropout: float = 0.1
    max_tokens: int = 512


def read_shape(encoder: SideFile, decoder: SideFile, languages: tuple[str, ...], hints: ShapeHints = ShapeHints()) -> CodecConfig:
    """The configuration of a codec whose halves are these; ValueError when they do not belong together."""
    reading, speaking = _read_stack(encoder, "encoder", hints), _read_stack(decoder, "decoder", hints)
    rows = {
        path: len(side.tensors[f"{name}_frontend.embed.weight"])
        for path, side, name in ((encoder.path, encoder, "encoder"), (decoder.path, decoder, "decoder"))
    }
    if len(set(rows.values())) > 1:
        told = " and ".join(f"{path} {count}" for path, count in rows.items())
        raise ValueError(f"encoder and decoder must share a vocabulary, but their embedding tables differ in rows: {told}")
    pooler = _read_pooler(encoder, hints)
    encoder_config = EncoderConfig(**vars(reading), pooling="attention" if pooler else hints.pooling, pooler=pooler)
    decoder_config = DecoderConfig(
        **vars(speaking), normalize_vector=hints.normalize_vector, predicts_language=hints.predicts_language
    )
    width = (pooler or encoder_config).width
    memory_width = _tensor(decoder, "decoder.layers.0.encoder_decoder_attn.v_proj.weight").shape[1]
    if memory_width != width:
        raise ValueError(
            f"{encoder.path} gives vectors of width {width}, but {decoder.path} reads vectors of width {memory_width}"
        )
    positions = encoder.tensors.get("encoder_frontend.pos_encoder.weight")
    max_tokens = hints.max_tokens if positions is None else len(positions) - 1
    return CodecConfig(languages, next(iter(rows.values())), width, encoder_config, decoder_config, max_tokens)


def _tensor(side: SideFile, name: str) -> Tensor:
    if name not in side.tensors:
        raise ValueError(f"{side.path} lacks {name}; its tensors begin {', '.join(sorted(side.names.values())[:4])}")
    return side.tensors[name]


def _depth(side: SideFile, prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in side.tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _read_stack(side: SideFile, name: Side, hints: ShapeHints) -> TextStackConfig:
    ffn, width = _tensor(side, f"{name}.layers.0.ffn.inner_proj.weight").shape
    learned = f"{name}_frontend.pos_encoder.weight" in side.tensors
    return TextStackConfig(
        width,
        _depth(side, f"{name}.layers."),
        hints.heads if name == "encoder" else hints.decoder_heads or hints.heads,
        ffn,
        hints.activation,
        hints.dropout,
        positions="learned" if learned else "sinusoidal" if hints.positions or name == "decoder" else "none",
        first_position=hints.first_position,
        scale_embedding=hints.scale_embedding,
    )


def _read_pooler(side: SideFile, hints: ShapeHints) -> PoolerConfig | None:
    if "pooler.projection_out.weight" not in side.tensors:
        return None
    ffn, width = _tensor(side, "pooler.decoder.layers.0.ffn.inner_proj.weight").shape
    norm: Literal["pre", "post"] = "pre" if "pooler.decoder.layer_norm.weight" in side.tensors else "post"
    depth = _depth(side, "pooler.decoder.layers.")
    return PoolerConfig(width, depth, hints.pooler_heads, ffn, hints.activation, hints.dropout, norm=norm)


# ---------------------------------------------------------------------- 3. which tensors ours are made of


def parts(config: CodecConfig, side: Side) -> dict[str, list[str]]:
    """Our tensor -> those of fairseq2's naming that lie in it one after another along the first dimension."""
    stack = config.encoder if side == "encoder" else config.decoder
    found = {f"{side}.embedding.weight": [f"{side}_frontend.embed.weight"]}
    if stack.positions == "learned":
        found[f"{side}.embedding.positions"] = [f"{side}_frontend.pos_encoder.weight"]
    for i in range(stack.layers):
        ours = theirs = f"{side}.layers.{i}"
        found |= _affine(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm")
        found |= _affine(f"{ours}.attention.qkv", *(f"{theirs}.self_attn.{x}_proj" for x in "qkv"))
        found |= _affine(f"{ours}.attention.output", f"{theirs}.self_attn.output_proj")
        found |= _feed_forward(ours, theirs)
    if side == "decoder":
        for ours, x in (("value", "v"), ("output", "output")):
            for kind in ("weight", "bias"):
                found[f"decoder.sentence_terms.{ours}_{kind}"] = [
                    f"decoder.layers.{i}.encoder_decoder_attn.{x}_proj.{kind}" for i in range(stack.layers)
                ]
        return found | _affine("decoder.norm", "decoder.layer_norm")
    found |= _affine("encoder.norm", "layer_norm")
    if pooler := config.encoder.pooler:
        found["encoder.pooler.query"] = ["pooler.decoder_frontend.embed.weight"]
        for i in range(pooler.layers):
            ours, theirs = f"encoder.pooler.layers.{i}", f"pooler.decoder.layers.{i}"
            found |= _affine(f"{ours}.self_norm", f"{theirs}.self_attn_layer_norm")
            found |= _affine(f"{ours}.self_value", f"{theirs}.self_attn.v_proj")
            found |= _affine(f"{ours}.self_output", f"{theirs}.self_attn.output_proj")
            found |= _affine(f"{ours}.cross_norm", f"{theirs}.encoder_decoder_attn_layer_norm")
            found |= _affine(f"{ours}.query", f"{theirs}.encoder_decoder_attn.q_proj")
            found |= _affine(f"{ours}.key_value", *(f"{theirs}.encoder_decoder_attn.{x}_proj" for x in "kv"))
            found |= _affine(f"{ours}.cross_output", f"{theirs}.encoder_decoder_attn.output_proj")
            found |= _feed_forward(ours, theirs)
        if pooler.norm == "pre":
            found |= _affine("encoder.pooler.norm", "pooler.decoder.layer_norm")
        found |= _affine("encoder.pooler.projection", "pooler.projection_out")
    return found


def _affine(ours: str, *theirs: str) -> dict[str, list[str]]:
    return {f"{ours}.{kind}": [f"{name}.{kind}" for name in theirs] for kind in ("weight", "bias")}


def _feed_forward(ours: str, theirs: str) -> dict[str, list[str]]:
    return {
        **_affine(f"{ours}.ffn_norm", f"{theirs}.ffn_layer_norm"),
        **_affine(f"{ours}.ffn.inner", f"{theirs}.ffn.inner_proj"),
        **_affine(f"{ours}.ffn.output", f"{theirs}.ffn.output_proj"),
    }


def unused(config: CodecConfig, side: Side) -> dict[str, tuple[int, ...]]:
    """What Meta's layout has and the output does not depend on (see decoder.py and pooler.py): name -> shape."""
    found: dict[str, tuple[int, ...]] = {}
    if side == "decoder":
        width = config.decoder.width
        for i in range(config.decoder.layers):
            prefix = f"decoder.layers.{i}.encoder_decoder_attn"
            found |= {f"{prefix}.q_proj.weight": (width, width), f"{prefix}.k_proj.weight": (width, config.width)}
            found |= {f"{prefix}.{x}_proj.bias": (width,) for x in "qk"}
            found |= {f"{prefix}_layer_norm.{kind}": (width,) for kind in ("weight", "bias")}
        found["final_proj.weight"] = (config.vocab_size, width)
    elif pooler := config.encoder.pooler:
        for i in range(pooler.layers):
            for x in "qk":
                prefix = f"pooler.decoder.layers.{i}.self_attn.{x}_proj"
                found |= {f"{prefix}.weight": (pooler.width, pooler.width), f"{prefix}.bias": (pooler.width,)}
    return found


def check_names(side: SideFile, config: CodecConfig, name: Side) -> None:
    """ValueError that names every tensor that is missing or unexpected, and for an output projection that is not tied."""
    wanted = {theirs for group in parts(config, name).values() for theirs in group}
    allowed = wanted | set(unused(config, name))
    told = [f"missing {key}" for key in sorted(wanted - set(side.tensors))]
    told += [f"unexpected {side.names[key]}" for key in sorted(set(side.tensors) - allowed)]
    if told:
        raise ValueError(f"{side.path} does not fit the {name} of a SONAR codec: {'; '.join(told)}")
    projection = side.tensors.get("final_proj.weight")
    embedding = side.tensors[f"{name}_frontend.embed.weight"]
    if projection is not None and projection.data_ptr() != embedding.data_ptr() and not torch.equal(projection, embedding):
        raise ValueError(
            f"{side.path}: {side.names['final_proj.weight']} differs from the token embedding, but SONAR's decoder ties them"
        )


def hints_of_huggingface(folder: Path) -> ShapeHints:
    """What the `config.json` of an M2M100 folder tells beyond its tensors.

    FileNotFoundError when it is missing, ValueError when it is no M2M100's.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a Hugging Face folder holds it beside its weights")
    told = read_json(file, "download it again")
    activation = told.get("activation_function", "relu")
    if told.get("model_type", "m2m_100") != "m2m_100" or activation not in ("relu", "gelu", "silu"):
        raise ValueError(
            f"{file}: expected an M2M100 (SONAR's ports, NLLB) with relu, gelu or silu, "
            f"got {told.get('model_type')!r} with {activation!r}"
        )
    hints = from_dict(
        ShapeHints,
        {
            "heads": told.get("encoder_attention_heads", 16),
            "decoder_heads": told.get("decoder_attention_heads", 16),
            "activation": activation,
            "scale_embedding": told.get("scale_embedding", True),
            "dropout": told.get("dropout", 0.1),
            "max_tokens": told.get("max_position_embeddings", 512),
        },
        str(file),
    )
    return replace(hints, max_tokens=min(512, hints.max_tokens))


# ---------------------------------------------------------------------- 4. filling and writing


def fill(
    module: nn.Module,
    sources: Callable[[], Iterable[tuple[SideFile, Side]]],
    config: CodecConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Give `module`, built on the meta device, its weights, converted to `dtype` on `device` one tensor at a time.

    `sources` maps the files anew; it is called again after every GROUP_BYTES, so that their pages never add up to a
    second copy of the model. ValueError for a tensor of the wrong shape, and before anything is read when the memory
    will not do.
    """
    wanted = module.state_dict()
    needed = sum(tensor.numel() for tensor in wanted.values()) * dtype.itemsize
    names = " and ".join(str(side.path) for side, _ in sources())
    half = "" if dtype.itemsize < 4 else "load it with dtype=torch.bfloat16, half the size, or "
    memory.check(needed + GROUP_BYTES, f"loading {names} as {dtype}", device, f"{half}free some memory")

    filled: dict[str, Tensor] = {}
    for ours, tensor in read(sorted(wanted, key=lambda key: -wanted[key].numel()), sources, module, config, device, dtype):
        filled[ours] = tensor  # the largest while little else is held
    module.load_state_dict(filled, assign=True)


def read(
    keys: Iterable[str],
    sources: Callable[[], Iterable[tuple[SideFile, Side]]],
    module: nn.Module,
    config: CodecConfig,
    device: torch.device = torch.device("cpu"),
    dtype: torch.dtype = torch.float16,
) -> Iterator[tuple[str, Tensor]]:
    """The weights of these names, of the shapes they have in `module`, one after another; arguments and errors as of `fill`."""
    wanted = module.state_dict()
    sides: tuple[Side, Side] = ("encoder", "decoder")
    made_of = {ours: (theirs, name) for name in sides for ours, theirs in parts(config, name).items()}
    assert set(made_of) == set(wanted), sorted(set(made_of) ^ set(wanted))
    opened: dict[Side, SideFile] = {}
    seen = GROUP_BYTES
    for ours in keys:
        if seen >= GROUP_BYTES:
            opened = {}  # unmapped before it is mapped again
            opened, seen = {name: side for side, name in sources()}, 0
        theirs, name = made_of[ours]
        target = torch.empty(wanted[ours].shape, dtype=dtype, device=device)
        for key, part in zip(theirs, target.chunk(len(theirs)), strict=True):
            _copy(opened[name], key, part, ours)
        seen += target.numel() * opened[name].tensors[theirs[0]].dtype.itemsize
        yield ours, target


def _copy(side: SideFile, key: str, part: Tensor, ours: str) -> None:
    source = side.tensors[key]
    if ours.endswith("embedding.positions"):
        source = source[1:]  # fairseq2's row for padding
    if source.numel() != part.numel() or (part.ndim > 1 and source.shape[-1] != part.shape[-1]):
        raise ValueError(f"{side.path}: {side.names[key]} is {tuple(source.shape)}, expected {tuple(part.shape)}")
    part.copy_(source.view(part.shape))
    if side.reordered and ours.endswith("embedding.weight"):
        part[:4] = source[FAIRSEQ_ROWS].to(part)


def meta_tensors(module: nn.Module, config: CodecConfig, side: Side) -> dict[str, Tensor]:
    """One side's tensors as sonar-space 0.5.0 names them. What no output depends on is 0 (layer norms' weights 1)."""
    state, found = module.state_dict(), dict[str, Tensor]()
    for ours, theirs in parts(config, side).items():
        for key, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True):
            if ours.endswith("embedding.positions"):
                part = torch.cat([part.new_zeros(1, part.shape[1]), part])
            stacked = ours.startswith("decoder.sentence_terms.")
            found[key] = part[0] if stacked else part[None] if ours == "encoder.pooler.query" else part
    for key, shape in unused(config, side).items():
        found[key] = torch.ones(shape) if key.endswith("layer_norm.weight") else torch.zeros(shape)
    if side == "decoder":
        found["final_proj.weight"] = found["decoder_frontend.embed.weight"]
    return {key: value.detach().cpu() for key, value in found.items()}
