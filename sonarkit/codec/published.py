"""The weights that Meta publishes, fetched once into the user's cache after their licence was accepted.

Addresses as in the asset cards of facebookresearch/SONAR (`sonar/cards/text_sonar_*.yaml`), which give no checksums.
"""

from __future__ import annotations

import datetime
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sonarkit.core.download import Remote, download_all, refuse_offline

BASE = "https://dl.fbaipublicfiles.com/SONAR"
LICENCE = "CC-BY-NC-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-nc/4.0/"


@dataclass(frozen=True)
class PublishedFiles:
    """Where the files of one published codec lie."""

    encoder: Path
    decoder: Path
    tokenizer: Path


class LicenceError(PermissionError):
    """The licence of the weights was not accepted."""


# (encoder, decoder, SentencePiece model); float32, about 3 GB for each .pt
PUBLISHED = {
    "sonar": ("sonar_text_encoder.pt", "sonar_text_decoder.pt", "sentencepiece.source.256000.model"),
    # the decoder fine-tuned on random interpolations (arXiv 2308.11466): better at saying a sentence again
    "sonar-finetuned": ("sonar_text_encoder.pt", "finetuned_decoder.pt", "sentencepiece.source.256000.model"),
}


def files(name: str, accept_licence: bool | None = None, progress: bool = True) -> PublishedFiles:
    """The files of the codec `name`, one of PUBLISHED; fetched where they are not in the cache yet (about 6 GB).

    Before the first fetch the licence, CC-BY-NC 4.0, has to be accepted: by `accept_licence=True`, by
    SONARKIT_ACCEPT_LICENCE=CC-BY-NC-4.0, or by the answer to a question where a terminal is at hand; False never
    asks. That is remembered in the cache. SONARKIT_MIRROR names another place to fetch from, SONARKIT_CACHE another
    cache. `progress` tells sizes and free space, and shows a bar.

    Raises ValueError for an unknown name, LicenceError, and what `download_all` raises.
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published codec is called {name!r}; there are {', '.join(PUBLISHED)}")
    base, folder = (os.environ.get("SONARKIT_MIRROR") or BASE).rstrip("/"), cache_folder() / "SONAR"
    wanted = [Remote(f"{base}/{file}", folder / file) for file in PUBLISHED[name]]
    refuse_offline(wanted)  # before a question whose answer would not help
    if not all(remote.path.is_file() for remote in wanted):  # files copied there by hand were accepted elsewhere
        require_licence(name, folder, accept_licence)
    return PublishedFiles(*download_all(wanted, progress=progress))


def cache_folder() -> Path:
    """Where downloads are kept: $SONARKIT_CACHE, else $XDG_CACHE_HOME/sonarkit, else ~/.cache/sonarkit."""
    if own := os.environ.get("SONARKIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sonarkit"


# ---------------------------------------------------------------------- the licence


def require_licence(name: str, folder: Path, accept: bool | None) -> None:
    """Return if the licence is accepted, now or earlier; else LicenceError with the ways to accept it."""
    remembered = folder / f"accepted-{LICENCE}.txt"
    if remembered.is_file():
        return
    said = os.environ.get("SONARKIT_ACCEPT_LICENCE", "")
    if not (accept or said == LICENCE or (accept is None and _may_ask() and _ask(name, folder))):
        wrong = f" (it is set to {said!r})" if said else ""
        raise LicenceError(
            f"the weights of {name!r} are Meta's, under CC-BY-NC 4.0 ({LICENCE_URL}): not for commercial use. To accept "
            f"that, pass accept_licence=True, set SONARKIT_ACCEPT_LICENCE={LICENCE}{wrong}, or answer y when asked in a terminal"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remembered.write_text(
        f"SONAR's weights: licence {LICENCE} ({LICENCE_URL}) accepted on {datetime.date.today()}\n", encoding="utf-8"
    )


def _may_ask() -> bool:
    """Whether someone is there to answer: a terminal, and no torchrun with many ranks that would ask at once."""
    return sys.stdin is not None and sys.stdin.isatty() and int(os.environ.get("WORLD_SIZE", 1)) == 1


def _ask(name: str, folder: Path) -> bool:
    question = (
        f"The weights of {name!r} are Meta's, under CC-BY-NC 4.0 ({LICENCE_URL}): not for commercial use.\n"
        f"Accept the licence and fetch them to {folder}? [y/N] "
    )
    print(question, end="", file=sys.stderr, flush=True)  # standard output may be a pipe
    return sys.stdin.readline().strip().lower() in ("y", "yes")
