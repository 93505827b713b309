"""Training a speech encoder by a frozen text encoder: MSE to the vector of the transcription (arXiv 2308.11466, section 3.2).

1. `teacher_vectors` encodes the transcriptions once and keeps them in a file, for that codec alone.
2. `SpeechBatches` draws utterances by duration, perturbs their speed and masks their filter banks (SpecAugment,
   arXiv 1904.08779); what a step sees is the same on any number of ranks, and after a resume.
3. `SpeechTask` is what the training loop needs: the distance to the teacher, and where the body begins with random weights
   also the spelling of what is said (CTC, Graves et al. 2006), without which it hears nothing for a long time, and what the
   frozen decoder would say instead (the loss of SONAR-LLM, arXiv 2508.05305).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from torch import Tensor, nn

from sonarkit.codec import audio
from sonarkit.codec.audio import MIN_SECONDS, RATE
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.speech import SpeechEncoder, encode_speech, filter_bank
from sonarkit.core import checkpoint
from sonarkit.core.config import to_dict
from sonarkit.core.distributed import World, barrier, shard
from sonarkit.core.loss import LossSum
from sonarkit.core.packing import chunks_by_tokens, pack
from sonarkit.store.batches import deal
from sonarkit.text.speech_data import Utterance

# ---------------------------------------------------------------------- 1. the teacher


@dataclass(frozen=True)
class Targets:
    """The vectors (n, D) of n transcriptions, and the fingerprint of the codec that made them."""

    vectors: Tensor
    codec: str


def vectors_beside(manifest: str | Path) -> Path:
    """Where the vectors of a manifest's transcriptions are kept: `speech.tsv` -> `speech.vectors.safetensors`."""
    return Path(manifest).with_suffix(".vectors.safetensors")


def teacher_vectors(
    file: Path,
    utterances: Sequence[Utterance],
    sonar: Sonar,
    *,
    dtype: torch.dtype = torch.float16,
    world: World | None = None,
    progress: bool = False,
) -> Targets:
    """The codec's vectors of the transcriptions, from `file` where it has them, else encoded (by rank 0) and written there in
    `dtype`.

    Raises ValueError where the file is damaged, was made by another codec or of other texts, UnknownLanguageError.
    """
    texts = hashlib.sha256("\0".join(f"{u.language} {u.text}" for u in utterances).encode()).hexdigest()[:12]
    codec = sonar.fingerprint()
    if not file.is_file() and (world is None or world.rank == 0):
        vectors = sonar.encode([u.text for u in utterances], [u.language for u in utterances], progress=progress)
        checkpoint.write_safetensors(file, {"vectors": vectors.to("cpu", dtype)}, {"codec": codec, "texts": texts})
    if world is not None:
        barrier(world)
    try:
        with safetensors.safe_open(file, "pt") as stored:
            made_of = stored.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); delete it to have it made again") from error
    if made_of.get("codec") != codec:
        raise ValueError(
            f"{file} holds vectors of the codec {made_of.get('codec')}, but the teacher {sonar.name or 'given'} is {codec}; "
            "use that teacher, or give another file"
        )
    if made_of.get("texts") != texts:
        raise ValueError(f"{file} holds the vectors of other texts; delete it to have it made again, or give another file")
    return Targets(checkpoint.read_safetensors(file)["vectors"], codec)


# ---------------------------------------------------------------------- 2. batches


@dataclass(frozen=True)
class AugmentConfig:
    """How sound is varied: a factor of its speed, and stripes of the filter bank that are set to their mean, 0.

    There are `time_masks` stripes of 0 to `time_frames` frames (at most a fifth of all) and `mel_masks` of 0 to `mels` bands.
    With `silence` the silence around the sound (60 dB below its peak) gives way to 0 to so many seconds before and after. Half of
    the utterances get white noise, its deviation from 0.001 (drawn by its logarithm) to `noise` times that of the sound.
    """

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    time_masks: int = 2
    time_frames: int = 40
    mel_masks: int = 2
    mels: int = 15
    silence: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.silence < 0 or not (self.noise == 0 or 0.001 <= self.noise <= 10):
            raise ValueError(f"silence must not be negative, noise 0 or in 0.001..10: {self}")
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds are factors in 0.5..2, at least one; got {self.speeds}")
        if min(self.time_masks, self.time_frames, self.mel_masks, self.mels) < 0 or self.mels > 80:
            raise ValueError(f"masks and their sizes must not be negative, mels at most 80: {self}")


NONE = AugmentConfig((1.0,), 0, 0, 0, 0)


def augmented(samples: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """(n,) samples at 16 kHz -> (L, 80) filter banks, perturbed in speed and masked."""
    speed = Fraction(str(rng.choice(config.speeds))).limit_denominator(100)
    if speed != 1:
        samples = resample_poly(samples, speed.denominator, speed.numerator).astype(np.float32)
    if config.silence:
        loud = np.flatnonzero(np.abs(samples) >= 1e-3 * np.abs(samples).max())
        sound = samples[loud[0] : loud[-1] + 1]
        samples = np.pad(
            sound if len(sound) >= MIN_SECONDS * RATE else samples, rng.integers(round(config.silence * RATE) + 1, size=2)
        )
    if config.noise and rng.random() < 0.5:
        samples = samples + samples.std() * 10 ** rng.uniform(-3, math.log10(config.noise)) * rng.standard_normal(len(samples))
    features = filter_bank(torch.from_numpy(samples))
    for axis, masks, widest in (
        (0, config.time_masks, min(config.time_frames, len(features) // 5)),
        (1, config.mel_masks, config.mels),
    ):
        for _ in range(masks):
            width = int(rng.integers(widest + 1))
            start = int(rng.integers(features.shape[axis] - width + 1))
            features.narrow(axis, start, width).zero_()
    return features


@dataclass(frozen=True)
class SpeechBatch:
    """Filter banks (L_i, 80), the vectors (n, D) they are to be brought to, the texts that are said, the same as what the
    decoder is to say (`</s> __lang__ pieces </s>`, where it is asked) and as what is to be heard (`__lang__ pieces </s>`, for
    pooling "text"), and where they were listed. With `body_frozen` only the pooler learns."""

    features: list[Tensor]
    targets: Tensor
    texts: list[str]
    said: list[list[int]]
    heard: list[list[int]]
    sources: list[str]
    body_frozen: bool


class SpeechBatches:
    """The micro-batches of one rank, step after step, for ever: about `seconds_per_step` of sound a step on all ranks together.

    Every epoch is a new permutation. A micro-batch has utterances of like length, of at most `micro_seconds` in sum or one.
    """

    def __init__(self, task: SpeechTask, rank: int, size: int) -> None:
        self.task, self.rank, self.size = task, rank, size
        self.step = self.drawn = 0  # utterances drawn so far, by all ranks together

    def __next__(self) -> list[SpeechBatch]:
        task, chosen, milliseconds = self.task, list[tuple[int, int]](), list[int]()  # (draw, utterance)
        while not chosen or sum(milliseconds) < 1000 * task.seconds_per_step or len(chosen) < self.size:
            epoch, place = divmod(self.drawn, len(task.utterances))
            i = int(_permutation(task.seed, epoch, len(task.utterances))[place])
            chosen.append((self.drawn, i))
            milliseconds.append(task.milliseconds[i])
            self.drawn += 1
        frozen = self.step < task.frozen_steps
        self.step += 1
        mine = micro_batches(milliseconds, self.size, round(1000 * task.micro_seconds))[self.rank]
        return [self._batch([chosen[k] for k in micro], frozen) for micro in mine]

    def _batch(self, chosen: list[tuple[int, int]], frozen: bool) -> SpeechBatch:
        task, features = self.task, []
        for draw, i in chosen:
            samples = audio.load(task.utterances[i].path)
            features.append(augmented(samples, task.augment, np.random.default_rng([task.seed, draw])))
        rows = [i for _, i in chosen]
        spoken = [task.utterances[i] for i in rows]
        said, heard = ([ids[i] for i in rows] if ids else [] for ids in (task.said, task.heard))
        targets = task.targets.vectors[rows]
        return SpeechBatch(features, targets, [u.text for u in spoken], said, heard, [u.source for u in spoken], frozen)

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step, self.drawn = state["step"], state["drawn"]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def micro_batches(lengths: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """For each rank its micro-batches, as indices into `lengths`: of like length, as many for every rank, none empty.

    None has more than `budget`, unless a rank has fewer utterances than another needs micro-batches.
    """
    dealt = deal(lengths, ranks)
    cut = [[[mine[k] for k in chunk] for chunk in chunks_by_tokens([lengths[i] for i in mine], budget)] for mine in dealt]
    most = min(max(map(len, cut)), min(map(len, dealt)))
    for mine in cut:
        while len(mine) < most:  # halve the one with most utterances
            largest = max(range(len(mine)), key=lambda k: len(mine[k]))
            half = len(mine[largest]) // 2
            mine[largest : largest + 1] = [mine[largest][:half], mine[largest][half:]]
        while len(mine) > most:  # a rank has too few utterances for as many
            mine[-2:] = [mine[-2] + mine[-1]]
    return cut


# ---------------------------------------------------------------------- 3. the task


class Speller(nn.Module):
    """An encoder, and what its frames spell: bytes, by a head on one of its body's layers (the first is 1), and pieces."""

    def __init__(self, encoder: SpeechEncoder, layer: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.body.width, 1 + 256) if layer else None  # 0 is the blank
        self._frames_BLH = self._scores_BLV = torch.empty(0)
        self._lengths = list[int]()
        encoder.body.register_forward_hook(self._keep_lengths)
        if layer:
            encoder.body.layers[layer - 1].register_forward_hook(self._keep_frames)
        if encoder.hearing is not None:
            encoder.hearing.register_forward_hook(self._keep_scores)

    def _keep_frames(self, layer: nn.Module, given: Any, output: Any) -> None:
        self._frames_BLH = output[0] if isinstance(output, tuple) else output  # of transformers' layers

    def _keep_lengths(self, body: nn.Module, given: Any, output: tuple[Tensor, list[int]]) -> None:
        self._lengths = output[1]

    def _keep_scores(self, hearing: nn.Module, given: Any, output: Tensor) -> None:
        self._scores_BLV = output

    def nats_of_bytes(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`ctc_nats` of the texts whose speech the encoder has just been given, in lower case."""
        assert self.head is not None
        return ctc_nats(self.head(self._frames_BLH), self._lengths, [list(text.lower().encode()) for text in texts])

    def nats_of_pieces(self, heard: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """`ctc_nats` of the pieces that the encoder was to hear."""
        return ctc_nats(self._scores_BLV, self._lengths, heard)


def ctc_nats(scores_BLV: Tensor, lengths: Sequence[int], spelt: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """For N utterances of `lengths` frames: -log p (N,), float32, of the symbols that each is to spell, and their number (N,).

    Score 0 is the blank's, score 1 + k symbol k's. Where there are fewer frames than symbols the nats are 0.
    """
    numbers = torch.tensor([len(one) for one in spelt])
    nats_N = F.ctc_loss(
        scores_BLV.float().log_softmax(-1).transpose(0, 1),
        torch.tensor([symbol + 1 for one in spelt for symbol in one]).to(scores_BLV.device),
        torch.tensor(lengths),
        numbers,
        reduction="none",
        zero_infinity=True,
    )
    return nats_N, numbers


class SpeechTask:
    """What the training loop needs to train a `SpeechEncoder`; `evaluate` comes from the caller (see `judge`).

    The loss of an utterance is the mean over D of the squared difference to its target; its count is utterances. For
    `frozen_steps` steps the body is left as it is and only the pooler learns (weight decay, where there is one, acts on the
    body, too). The encoder learns whose vectors it gives: `config.codec`.

    With a `ctc_weight` the frames after the body's layer `ctc_layer` (the first is 1) are also to spell the transcription: that
    weight times the nats per UTF-8 byte, lower case, of a head that is not saved with the encoder. Where there are fewer frames
    than bytes it is 0. With pooling "text" they are also to spell the pieces of the transcription, as the text encoder of
    `sonar`, which is frozen, reads them: `piece_weight` times the nats per piece.

    With a `decoder_weight` the decoder of `sonar`, which is frozen, is to say the transcription when it is given the vector:
    that weight times its nats, divided by the tokens that an utterance has in the mean.

    Raises ValueError where targets and utterances are not as many, the widths differ, the encoder or `sonar` belongs to another
    codec, `decoder_weight` or pooling "text" find no `sonar`, `piece_weight` no pieces, `frozen_steps` no pooler, `ctc_layer`
    no layer, or an utterance is longer than `micro_seconds` or the encoder's `max_seconds`; FileNotFoundError for a file that
    is not there, UnknownLanguageError.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        utterances: Sequence[Utterance],
        targets: Targets,
        *,
        seconds_per_step: float,
        micro_seconds: float,
        seed: int,
        evaluate: Callable[[SpeechEncoder], Mapping[str, float | str]],
        augment: AugmentConfig = AugmentConfig(),
        frozen_steps: int = 0,
        ctc_weight: float = 0.0,
        ctc_layer: int = 1,
        piece_weight: float = 0.0,
        sonar: Sonar | None = None,
        decoder_weight: float = 0.0,
    ) -> None:
        if len(utterances) != len(targets.vectors) or not utterances:
            raise ValueError(
                f"expected a vector for each utterance, got {len(utterances)} utterances, {len(targets.vectors)} vectors"
            )
        if targets.vectors.shape[1] != encoder.config.width:
            raise ValueError(
                f"the teacher's vectors are of width {targets.vectors.shape[1]}, the speech encoder's {encoder.config.width}; "
                "they must agree"
            )
        if encoder.config.codec not in ("", targets.codec):
            raise ValueError(
                f"the speech encoder gives vectors of the codec {encoder.config.codec}, the targets are {targets.codec}'s"
            )
        if min(seconds_per_step, micro_seconds) <= 0 or frozen_steps < 0:
            raise ValueError("seconds_per_step and micro_seconds must be above 0, frozen_steps not negative")
        if frozen_steps and encoder.pooler is None and encoder.hearing is None:
            raise ValueError(
                f"frozen_steps leave the pooler to learn, but pooling {encoder.config.pooling!r} has none; set them to 0"
            )
        if ctc_weight < 0 or not 1 <= ctc_layer <= len(encoder.body.layers):
            raise ValueError(
                f"ctc_weight must not be negative and ctc_layer one of the body's layers 1 to {len(encoder.body.layers)}; "
                f"got {ctc_weight} and {ctc_layer}"
            )
        if piece_weight < 0 or (piece_weight and encoder.hearing is None):
            raise ValueError(
                f"piece_weight must not be negative, and above 0 it needs pooling 'text'; got {piece_weight} and pooling "
                f"{encoder.config.pooling!r}"
            )
        if decoder_weight < 0:
            raise ValueError(f"decoder_weight must not be negative, got {decoder_weight}")
        if (decoder_weight or encoder.hearing) and (sonar is None or sonar.fingerprint() != targets.codec):
            raise ValueError(
                f"decoder_weight and pooling 'text' need the codec that made the targets, {targets.codec}; "
                f"got {sonar.fingerprint() if sonar else None}"
            )
        encoder.config = replace(encoder.config, codec=targets.codec)
        self.heard = list[list[int]]()
        if sonar is not None and encoder.hearing is not None:
            encoder.read_with(sonar.encoder.eval().requires_grad_(False))
            self.heard = sonar.source_ids([u.text for u in utterances], [u.language for u in utterances])
        self.decoder_weight, self.said = decoder_weight, list[list[int]]()
        if sonar is not None and decoder_weight:
            self.decoder = sonar.decoder.eval().requires_grad_(False)
            self.said = sonar.target_ids([u.text for u in utterances], [u.language for u in utterances])
            self.mean_tokens = sum(len(ids) - 2 for ids in self.said) / len(self.said)
        self.speller = Speller(encoder, ctc_layer if ctc_weight else None) if ctc_weight or piece_weight else None
        self.ctc_weight, self.ctc_layer, self.piece_weight = ctc_weight, ctc_layer, piece_weight
        self.encoder, self.utterances, self.targets = encoder, list(utterances), targets
        self.seconds_per_step, self.micro_seconds, self.seed = seconds_per_step, micro_seconds, seed
        self.augment, self.frozen_steps, self._evaluate = augment, frozen_steps, evaluate
        self.milliseconds = [max(1, round(1000 * audio.seconds_of(u.path))) for u in utterances]
        for utterance, length in zip(utterances, self.milliseconds):
            if length > 1000 * min(micro_seconds, encoder.config.max_seconds):
                raise ValueError(
                    f"{utterance.source} ({utterance.path}) is {length / 1000:.1f} s long, more than micro_seconds = "
                    f"{micro_seconds:g} or the encoder's {encoder.config.max_seconds:g}; raise it, or leave the utterance out"
                )
        self._sharded = False

    @property
    def loss_unit(self) -> str:
        beside = {"ctc": self.ctc_weight, "pieces": self.piece_weight, "decoder": self.decoder_weight}
        return "squared_distance_per_dimension" + "".join(f"_and_{weight:g}_{name}" for name, weight in beside.items() if weight)

    @property
    def model(self) -> nn.Module:
        return self.encoder if self.speller is None else self.speller

    def batches(self, rank: int, size: int) -> SpeechBatches:
        return SpeechBatches(self, rank, size)

    def loss(self, batch: SpeechBatch) -> LossSum:
        targets = batch.targets.to(self.encoder.device, torch.float32)
        vectors = self.encoder(batch.features, frozen_body=batch.body_frozen).float()
        squared = F.mse_loss(vectors, targets, reduction="none").mean(1).sum()
        if batch.body_frozen and not self._sharded:  # DDP waits for a gradient of every weight
            squared = squared + 0 * sum(p.flatten()[0] for p in self.encoder.body.parameters())
        with torch.no_grad():
            away = (1 - F.cosine_similarity(vectors, targets)).sum()
        count = float(len(targets))
        parts = {"mse": (squared.detach(), count), "cosine_distance": (away, count)}
        total = squared
        spelt: dict[str, tuple[float, tuple[Tensor, Tensor]]] = {}
        if self.speller is not None and self.ctc_weight:
            spelt["ctc"] = self.ctc_weight, self.speller.nats_of_bytes(batch.texts)
        if self.speller is not None and self.piece_weight:
            spelt["pieces"] = self.piece_weight, self.speller.nats_of_pieces(batch.heard)
        for name, (weight, (nats_N, symbols_N)) in spelt.items():
            total = total + weight * (nats_N / symbols_N.to(nats_N)).sum()
            parts[name] = (nats_N.detach().sum(), float(symbols_N.sum()))
        if self.decoder_weight:
            nats, losses_T = self.decoder.token_losses(vectors, *pack(batch.said, vectors.device))
            total = total + self.decoder_weight / self.mean_tokens * nats
            parts["decoder"] = (nats.detach(), float(len(losses_T)))
        return LossSum(total, count, parts)

    def evaluate(self, world: World) -> Mapping[str, float | str]:
        return self._evaluate(self.encoder) if world.rank == 0 or self._sharded else {}  # in parts it takes all ranks

    def cost(self, batch: SpeechBatch) -> dict[str, float]:
        return {"sentences": float(len(batch.features))}

    def describe(self, batch: SpeechBatch) -> list[str]:
        return batch.sources

    def shard(self, world: World) -> None:
        """FSDP2 over the layers of the body."""
        shard(world, self.encoder, (), self.encoder.body.layers, ())
        if self.speller is not None and self.speller.head is not None:
            shard(world, self.speller.head, (), (), ())
        self._sharded = True

    def save_pretrained(self, folder: Path, weights: dict[str, Tensor]) -> None:
        if self.speller is not None:
            weights = {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
        self.encoder.save_pretrained(folder, weights=weights)

    def config(self) -> dict[str, Any]:
        listed = "\0".join(f"{u.path.name} {u.language} {u.text}" for u in self.utterances)
        return {
            "task": "speech",
            "encoder": to_dict(self.encoder.config),
            "utterances": [len(self.utterances), hashlib.sha256(listed.encode()).hexdigest()[:12]],
            "seconds_per_step": self.seconds_per_step,
            "micro_seconds": self.micro_seconds,
            "augment": to_dict(self.augment),
            "frozen_steps": self.frozen_steps,
            "ctc": [self.ctc_weight, self.ctc_layer],
            "piece_weight": self.piece_weight,
            "decoder_weight": self.decoder_weight,
            "seed": self.seed,
        }


def judge(
    encoder: SpeechEncoder, sets: Mapping[str, tuple[Sequence[Utterance], Targets]], batch_seconds: float | None = None
) -> dict[str, float]:
    """How near speech comes to its transcription, for each named set (such as heard and unheard voices).

    `NAME_mse` and `NAME_cosine` to the target, and `NAME_error_percent`: how often the nearest transcription of the set, by
    cosine, is another text.
    """
    found = {}
    for name, (utterances, targets) in sets.items():
        vectors = encode_speech(encoder, [u.path for u in utterances], batch_seconds=batch_seconds).float().cpu()
        wanted = targets.vectors.float().cpu()
        nearest = (F.normalize(vectors) @ F.normalize(wanted).T).argmax(1).tolist()
        wrong = sum(
            (utterances[i].text, utterances[i].language) != (utterances[j].text, utterances[j].language)
            for i, j in enumerate(nearest)
        )
        found[f"{name}_mse"] = float(F.mse_loss(vectors, wanted))
        found[f"{name}_cosine"] = float(F.cosine_similarity(vectors, wanted).mean())
        found[f"{name}_error_percent"] = 100 * wrong / len(utterances)
    return found
