"""Sound files and arrays to mono samples at 16 kHz: whole, in a stream, or cut at silences with the times kept.

A long recording is never whole in memory: `stream` reads and resamples it block by block, to the same samples as at once,
and `segments` holds twice the longest segment. WAV, FLAC and what else libsndfile reads come through soundfile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sonarkit.text.speech_data import soundfile

RATE = 16_000  # samples a second
MIN_SECONDS = 0.1  # less holds no word, and a mean and spread over too few frames
Audio = str | Path | np.ndarray | Tensor  # a file, or samples (n,) or (n, channels)
FRAME = RATE // 100  # samples by which loudness is judged


# ---------------------------------------------------------------------- whole


def load(audio: Audio, rate: int = RATE) -> np.ndarray:
    """(n,) float32 samples at 16 kHz of a sound file, or of an array (n,) or (n, channels) at `rate`.

    Channels are averaged. Signed integers are taken as fractions of their largest value. Raises FileNotFoundError, and
    ValueError for what is no sound file, an array of another shape or of unsigned integers, samples that are not finite, and
    less than 0.1 s.
    """
    if isinstance(audio, str | Path):
        samples = np.concatenate([*stream(audio), np.empty(0, np.float32)])
    else:
        samples = resample(_mono(np.asarray(audio), "the array"), rate)
    if len(samples) < MIN_SECONDS * RATE:
        raise ValueError(
            f"{_name(audio)} is {len(samples) / RATE:.3f} s long; speech needs at least {MIN_SECONDS} s. Leave it out, or check "
            "that samples come first and the rate is right"
        )
    return samples


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """(n,) samples at `rate` -> at 16 kHz, by a polyphase filter; every common rate, telephone's 8 kHz too.

    ValueError for a rate below 1.
    """
    if rate < 1:
        raise ValueError(f"the rate is in samples a second, at least 1; got {rate}")
    up, down = _ratio(rate)
    if up == down:
        return samples
    from scipy.signal import resample_poly  # slow to import, and not needed for text

    return resample_poly(samples, up, down).astype(np.float32)


def _ratio(rate: int) -> tuple[int, int]:
    common = math.gcd(RATE, rate)
    return RATE // common, rate // common


def _mono(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and samples.shape[1] > 16):
        raise ValueError(f"{name}: expected samples (n,) or (n, channels) with up to 16 channels, got shape {samples.shape}")
    if samples.dtype.kind in "iu":
        if samples.dtype.kind == "u":
            raise ValueError(f"{name}: expected float samples in -1..1 or signed integers, got {samples.dtype}")
        samples = samples / np.float32(-float(np.iinfo(samples.dtype).min))
    samples = samples.astype(np.float32, copy=False)
    samples = samples if samples.ndim == 1 else samples.mean(1)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} has samples that are not finite; write it again from the source")
    return samples


def _name(audio: Audio) -> str:
    return str(audio) if isinstance(audio, str | Path) else "the array"


# ---------------------------------------------------------------------- in a stream


def seconds_of(path: str | Path) -> float:
    """Length of a sound file in seconds, from its header. Errors as in `load`."""
    with _opened(Path(path)) as file:
        return file.frames / file.samplerate


def stream(path: str | Path, block_seconds: float = 10.0) -> Iterator[np.ndarray]:
    """The file's samples at 16 kHz, mono, block by block; put together they are those of the file resampled at once.

    Raises FileNotFoundError and ValueError as `load` does, the latter also for a file that breaks off.
    """
    path = Path(path)
    with _opened(path) as file:
        up, down = _ratio(file.samplerate)
        reach = -(-(10 * max(up, down) + 1) // up)  # input samples that scipy's filter sees on either side of an output
        reach = -(-reach // down) * down
        block = max(1, round(block_seconds * file.samplerate / down)) * down
        held, done, whole = np.empty(0, np.float32), 0, False  # `done` of what is held has been given out
        while not whole:
            came = _mono(_read(file, block, path), str(path))
            whole = len(came) < block
            held = np.concatenate([held, came])
            ready = len(held) if whole else max(done, (len(held) - reach) // down * down)
            if ready > done:
                resampled = resample(held, file.samplerate)
                yield resampled[done * up // down : None if whole else ready * up // down]
            drop = max(0, ready - reach)
            held, done = held[drop:], ready - drop


def _read(file: Any, count: int, path: Path) -> np.ndarray:
    try:
        return file.read(count, dtype="float32")
    except soundfile().LibsndfileError as error:
        raise ValueError(f"{path} breaks off or is damaged ({error}); copy it again") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    library = soundfile()
    if not path.is_file():
        raise FileNotFoundError(f"no sound file at {path}; expected WAV, FLAC, OGG or MP3")
    try:
        file = library.SoundFile(path)
    except library.LibsndfileError as error:
        raise ValueError(f"{path} is no sound file that libsndfile reads (WAV, FLAC, OGG, MP3): {error}") from error
    with file:
        yield file


# ---------------------------------------------------------------------- cut at silences


@dataclass(frozen=True)
class Segment:
    """Speech between silences: where it lies in the recording, in seconds, and its samples (n,) at 16 kHz."""

    start: float
    end: float
    samples: np.ndarray


def segments(
    audio: Audio,
    rate: int = RATE,
    *,
    max_seconds: float = 20.0,
    min_silence: float = 0.4,
    threshold_db: float = 35.0,
    floor_db: float = -60.0,
    margin: float = 0.1,
) -> Iterator[Segment]:
    """Cut a recording at its silences; nothing where it is silent throughout.

    A frame of 10 ms is silent when it is `threshold_db` below the loud ones (the 99th percentile of the next
    2 * `max_seconds`, or of an earlier stretch where that was louder: noise after the last word is no word) or below
    `floor_db` of full scale. `min_silence` seconds of that end a segment, which keeps
    `margin` seconds of them; one longer than `max_seconds` is cut at the quietest tenth of a second of its second half.

    Raises ValueError for lengths that do not go together, and what `load` and `stream` raise.
    """
    if not max_seconds >= 1 or not 0 < min_silence < max_seconds / 2 or not 0 <= margin <= min_silence / 2:
        raise ValueError(
            "expected max_seconds of at least 1, min_silence below half of it and margin at most half of min_silence; "
            f"got {max_seconds}, {min_silence} and {margin}"
        )
    blocks = stream(audio) if isinstance(audio, str | Path) else iter([load(audio, rate)])
    most, pause, edge = (round(seconds * 100) for seconds in (max_seconds, min_silence, margin))  # in frames
    held, start, whole = np.empty(0, np.float32), 0, False  # `start`: frames before what is held
    loudest = -math.inf
    while True:
        while not whole and len(held) < 2 * most * FRAME:
            came = next(blocks, None)
            whole = came is None
            held = held if came is None else np.concatenate([held, came])
        window = held[: 2 * most * FRAME]
        if not len(window):
            return
        level = _levels(window)
        loudest = max(loudest, float(np.percentile(level, 99)))
        loud = level > max(loudest - threshold_db, floor_db)
        first = int(loud.argmax()) if loud.any() else len(level)
        if first > edge:  # silence before the next segment
            held, start = held[(first - edge) * FRAME :], start + first - edge
            continue
        if not loud.any():
            return
        end = _end(level, loud, first, most, pause, edge)
        yield Segment(start / 100, start / 100 + min(end * FRAME, len(held)) / RATE, held[: end * FRAME].copy())
        held, start = held[end * FRAME :], start + end


def _levels(samples: np.ndarray) -> np.ndarray:
    """Loudness of each frame of 10 ms, the last one maybe shorter, in dB of full scale."""
    padded = np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)
    return 10 * np.log10(np.square(padded, dtype=np.float64).mean(1) + 1e-12)


def _end(level: np.ndarray, loud: np.ndarray, first: int, most: int, pause: int, edge: int) -> int:
    """The frame after the segment that begins before `first`: in the first pause, else the quietest place."""
    last = first
    for place in np.flatnonzero(loud):
        if place - last > pause:
            break
        last = int(place)
    end = min(last + 1 + edge, len(level))
    if end <= most:
        return end
    quiet = np.convolve(level[most // 2 : most], np.ones(10) / 10, "valid")
    return most // 2 + int(quiet.argmin()) + 5
