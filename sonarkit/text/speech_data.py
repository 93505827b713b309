"""Speech with its transcription: manifests, the layouts of Common Voice and FLEURS, and synthetic speech by espeak-ng.

`open_speech` reads, by the path that names it:

    speech.tsv  .jsonl     a manifest: path, text and language of each utterance; paths are relative to its folder
    cv-corpus-21.0/fr/     Common Voice: train.tsv, dev.tsv, test.tsv, validated.tsv and clips/
    fleurs/data/fr_fr/     FLEURS: train.tsv, dev.tsv, test.tsv and the unpacked archives, audio/train/ or train/
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import gcd
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sonarkit.core.checkpoint import write_atomically
from sonarkit.text import storyworld
from sonarkit.text.corpora import read_jsonl, read_lines
from sonarkit.text.languages import SONAR_LANGUAGES, resolve

COLUMNS = ("path", "text", "language")


@dataclass(frozen=True)
class Utterance:
    """A sound file, what is said in it, the language (FLORES-200), and where it was listed, such as `speech.tsv:12`."""

    path: Path
    text: str
    language: str
    source: str


def soundfile() -> Any:
    """The soundfile package. ValueError, with the line to install it, where it is not there."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile itself is missing
        raise ValueError(f'sound files need soundfile and libsndfile ({error}): pip install -e ".[speech]"') from error
    return soundfile


# ---------------------------------------------------------------------- reading


def open_speech(
    place: str | Path,
    split: str = "train",
    lang: str | None = None,
    *,
    skip_missing: bool = False,
    dropped: Counter[str] | None = None,
) -> list[Utterance]:
    """The utterances of a manifest, or of one split of a language's folder of Common Voice or FLEURS (see the module).

    `lang` is the language of a folder whose name does not tell it. `dropped` counts by reason what is left out: utterances
    without text, and files that are not there if `skip_missing`. Raises FileNotFoundError (for missing files it names the
    first lines that list them), ValueError with file and line for what cannot be read, UnknownLanguageError.
    """
    path, counts = Path(place), Counter[str]() if dropped is None else dropped
    if path.is_file():
        found = _manifest(path)
    elif not path.is_dir():
        raise FileNotFoundError(f"no speech at {path}; expected a manifest (.tsv, .jsonl) or a folder of Common Voice or FLEURS")
    elif not (table := path / f"{split}.tsv").is_file():
        there = ", ".join(sorted(file.stem for file in path.glob("*.tsv"))) or "none"
        raise FileNotFoundError(f"{path} has no {split}.tsv; the splits there are {there}")
    elif (path / "clips").is_dir():
        found = _common_voice(table, lang or path.name)
    else:
        found = _fleurs(table, split, lang or path.name)
    spoken, missing = [], []
    for utterance in found:
        if not utterance.text.strip():
            counts["without text"] += 1
        elif not utterance.path.is_file():
            counts["missing"] += 1
            missing.append(utterance)
        else:
            spoken.append(utterance)
    if missing and not skip_missing:
        first = "; ".join(f"{u.source}: no sound file at {u.path}" for u in missing[:3])
        more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(
            f"{first}{more}. Of {len(missing) + len(spoken)} utterances {len(missing)} are missing; copy them there, "
            "or skip them with skip_missing (--skip-missing)"
        )
    if not spoken:
        raise ValueError(f"{path} lists no utterance that can be used ({dict(counts) or 'it is empty'})")
    return spoken


def write_manifest(path: Path, utterances: Sequence[Utterance]) -> None:
    """Write a TSV manifest, paths relative to its folder where they lie below it, else absolute; atomic.

    ValueError for a tab or a line end in a path or text.
    """
    lines = ["\t".join(COLUMNS)]
    for utterance in utterances:
        sound, folder = utterance.path.absolute(), path.parent.absolute()
        listed = sound.relative_to(folder) if sound.is_relative_to(folder) else sound
        cells = (str(listed), utterance.text, utterance.language)
        if any(character in cell for cell in cells for character in "\t\n\r"):
            raise ValueError(f"{utterance.source}: tabs and line ends cannot be in a manifest, got {cells!r}")
        lines.append("\t".join(cells))
    write_atomically(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def _manifest(path: Path) -> Iterator[Utterance]:
    if path.suffix not in (".tsv", ".jsonl"):
        raise ValueError(f"{path} is no manifest; expected .tsv with a header or .jsonl, with {', '.join(COLUMNS)}")
    rows = read_jsonl(path) if path.suffix == ".jsonl" else _table(path)
    for number, row in rows:
        where = f"{path}:{number}"
        if wrong := [name for name in COLUMNS if not isinstance(row.get(name), str)]:
            raise ValueError(f"{where}: no text under {', '.join(wrong)}; expected {', '.join(COLUMNS)}, got {', '.join(row)}")
        yield Utterance(path.parent / row["path"], row["text"], _code(row["language"], where), f"{path.name}:{number}")


def _common_voice(table: Path, lang: str) -> Iterator[Utterance]:
    for number, row in _table(table):
        if "path" not in row or "sentence" not in row:
            raise ValueError(f"{table}: expected Common Voice's columns path and sentence, got {', '.join(row)}")
        code = _code(row.get("locale") or lang, f"{table}:{number}")
        yield Utterance(table.parent / "clips" / row["path"], row["sentence"], code, f"{table.name}:{number}")


def _fleurs(table: Path, split: str, lang: str) -> Iterator[Utterance]:
    """FLEURS has no header: id, file, raw transcription, transcription, characters, samples, gender."""
    code = _code(lang, str(table))
    folders = [folder for folder in (table.parent / "audio" / split, table.parent / split) if folder.is_dir()]
    if not folders:
        raise FileNotFoundError(f"{table.parent} has neither audio/{split} nor {split}; unpack {split}.tar.gz there")
    for number, line in read_lines(table):
        cells = line.rstrip("\r\n").split("\t")
        if len(cells) < 4:
            raise ValueError(
                f"{table}:{number}: expected FLEURS' columns id, file, raw transcription, ..., got {len(cells)} cells"
            )
        yield Utterance(folders[0] / cells[1], cells[2], code, f"{table.name}:{number}")


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a TSV file with a header, with their line numbers; quotation marks are text."""
    lines = ((number, line.rstrip("\r\n").split("\t")) for number, line in read_lines(path))
    _, header = next(lines, (0, [""]))
    for number, cells in lines:
        if cells == [""]:
            continue
        if len(cells) != len(header):
            raise ValueError(f"{path}:{number}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}")
        yield number, dict(zip(header, cells))


def _code(lang: str, where: str) -> str:
    try:
        return resolve(lang, SONAR_LANGUAGES)
    except ValueError as error:
        raise type(error)(f"{where}: {error}") from None


# ---------------------------------------------------------------------- synthetic speech

ACCENTS = {
    "eng_Latn": ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp"),
    "fra_Latn": ("fr-fr", "fr-be", "fr-ch"),
    "deu_Latn": ("de",),
    "spa_Latn": ("es", "es-419"),
}
VOICES = {  # espeak-ng's variants; none of the held-out voices is heard in training
    "train": ("m1", "m2", "m3", "m4", "m5", "m6", "f1", "f2", "f3"),
    "unheard": ("m7", "f4", "f5"),
}


@dataclass(frozen=True)
class SyntheticConfig:
    """`count` utterances of StoryWorld sentences; utterance i depends on i and the other fields, not on `count`.

    `split` is StoryWorld's, `voices` a set of VOICES. `speed` in words a minute, `pitch` (espeak-ng's 0 to 99) and
    `gain`, a factor of the loudness, are drawn evenly from their ranges.
    """

    count: int
    seed: int = 0
    split: str = "train"
    voices: str = "train"
    languages: tuple[str, ...] = tuple(ACCENTS)
    speed: tuple[int, int] = (130, 200)
    pitch: tuple[int, int] = (25, 75)
    gain: tuple[float, float] = (0.3, 1.0)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.voices not in VOICES:
            raise ValueError(f"voices must be one of {', '.join(VOICES)}, got {self.voices!r}")
        if not self.languages or set(self.languages) - set(ACCENTS):
            raise ValueError(f"languages must be some of {', '.join(ACCENTS)}; got {', '.join(self.languages) or 'none'}")
        if not (80 <= self.speed[0] <= self.speed[1] <= 450 and 0 <= self.pitch[0] <= self.pitch[1] <= 99):
            raise ValueError(f"speed lies in 80..450 and pitch in 0..99, lower bound first: {self}")
        if not 0 < self.gain[0] <= self.gain[1] <= 1:
            raise ValueError(f"gain lies in 0..1, lower bound first: {self}")


@dataclass(frozen=True)
class Order:
    """What espeak-ng is to say, and how; units as in `SyntheticConfig`."""

    text: str
    language: str
    voice: str
    speed: int
    pitch: int
    gain: float


def orders(config: SyntheticConfig) -> Iterator[Order]:
    """The utterances of a configuration, one sentence of a story in one language each."""
    rows = (
        row
        for story in storyworld.stories(config.count, config.seed, config.split)
        for row in storyworld.aligned(story.sentences)
    )
    for i, row in enumerate(islice(rows, config.count)):
        rng = Random(f"{config.seed}-{config.split}-{config.voices}-{i}")
        code = rng.choice(config.languages)
        voice = f"{rng.choice(ACCENTS[code])}+{rng.choice(VOICES[config.voices])}"
        yield Order(row[code], code, voice, rng.randint(*config.speed), rng.randint(*config.pitch), rng.uniform(*config.gain))


def synthesize(folder: str | Path, config: SyntheticConfig, workers: int | None = None, progress: bool = False) -> Path:
    """Speak `config` into `folder` as FLAC at 16 kHz and write `manifest.tsv`, whose path is returned.

    `workers` run espeak-ng side by side, by default as many as CPUs; what they make does not depend on their number.
    Files that are there are kept, so the same call goes on where it was stopped. Raises ValueError where espeak-ng or soundfile
    is missing or the folder was begun with another configuration.
    """
    soundfile()
    if shutil.which("espeak-ng") is None:
        raise ValueError("espeak-ng is not installed: apt install espeak-ng, brew install espeak-ng, or conda install espeak-ng")
    _check_voices(config)
    folder = Path(folder)
    _same_settings(folder, config)
    todo = list(enumerate(orders(config)))
    paths = [folder / f"{i // 1000:04d}" / f"{i:07d}.flac" for i, _ in todo]
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)

    def make(i: int) -> None:
        if not paths[i].is_file():
            write_atomically(paths[i], lambda temporary: _write_flac(temporary, speak(todo[i][1])))

    pool = ThreadPoolExecutor(workers or os.cpu_count())  # threads that wait for the processes of espeak-ng
    try:
        for _ in tqdm(pool.map(make, range(len(todo))), total=len(todo), desc="speak", unit="utt", disable=not progress):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C ends it at once
    manifest = folder / "manifest.tsv"
    write_manifest(manifest, [Utterance(path, order.text, order.language, str(i)) for path, (i, order) in zip(paths, todo)])
    return manifest


def speak(order: Order) -> np.ndarray:
    """(n,) float32 samples at 16 kHz of one sentence by espeak-ng. ValueError with what it said where it fails."""
    command = ["espeak-ng", "-v", order.voice, "-s", str(order.speed), "-p", str(order.pitch), "--stdin", "--stdout"]
    done = subprocess.run(command, input=order.text.encode(), capture_output=True, check=False)
    sound = done.stdout
    if done.returncode or sound[:4] != b"RIFF" or len(sound) < 1000:
        raise ValueError(f"espeak-ng could not say {order}: {done.stderr.decode(errors='replace').strip() or 'no sound came'}")
    (rate,) = struct.unpack_from("<I", sound, 24)  # a canonical header of 44 bytes, its length not filled in on a pipe
    samples = np.frombuffer(sound[44 : len(sound) // 2 * 2], "<i2").astype(np.float32) / 2**15
    common = gcd(16_000, rate)
    from scipy.signal import resample_poly  # slow to import, and not needed for reading

    return (resample_poly(samples, 16_000 // common, rate // common) * order.gain).clip(-1, 1).astype(np.float32)


def _check_voices(config: SyntheticConfig) -> None:
    """ValueError for what espeak-ng has not: it would take its default voice without a word."""
    listed = (
        subprocess.run(["espeak-ng", option], capture_output=True, text=True) for option in ("--voices", "--voices=variant")
    )
    known = {re.sub(r"^!v/", "", cell) for table in listed for cell in table.stdout.split()}
    wanted = [*(accent for code in config.languages for accent in ACCENTS[code]), *VOICES[config.voices]]
    if missing := [voice for voice in wanted if voice not in known]:
        raise ValueError(f"espeak-ng has no voices {', '.join(missing)}; install espeak-ng 1.51 with its data")


def _write_flac(path: Path, samples: np.ndarray) -> None:
    soundfile().write(path, samples, 16_000, format="FLAC", subtype="PCM_16")


def _same_settings(folder: Path, config: SyntheticConfig) -> None:
    """Note the configuration, with its accents and voices, in the folder; ValueError where another is noted. A larger `count`
    continues."""
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(config).items() if name != "count"}
    wanted["accents"] = {code: list(ACCENTS[code]) for code in config.languages}
    wanted["variants"] = list(VOICES[config.voices])
    file = folder / "synthetic.json"
    if file.is_file():
        there = json.loads(file.read_text(encoding="utf-8"))
        if changed := [
            f"{name}: {there.get(name)} there, {value} now" for name, value in wanted.items() if there.get(name) != value
        ]:
            raise ValueError(f"{folder} was begun with another configuration ({'; '.join(changed)}); choose another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda temporary: temporary.write_text(json.dumps(wanted) + "\n", encoding="utf-8"))
