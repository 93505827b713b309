"""BLEU, spBLEU and chrF++ by sacrebleu, each with the signature that tells how it was counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sacrebleu
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from sonarkit.core.download import download

FLORES_200 = "https://tinyurl.com/flores200sacrebleuspm"  # what sacrebleu fetches, 4.9 MB
PATIENCE = 20.0  # seconds after which spBLEU goes without its tokenizer
# Scripts that put no spaces between words: the words of 13a would be whole sentences.
UNSPACED = {"Hans": "zh", "Hant": "zh"} | dict.fromkeys(("Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"), "char")


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], code: str = "eng_Latn") -> float:
    """sacrebleu's corpus BLEU of texts in the language `code` (exponential smoothing, `tokenizer_for`: mostly 13a), 0 to 100."""
    return sacrebleu.corpus_bleu(list(hypotheses), [list(references)], tokenize=tokenizer_for(code, spbleu=False)).score


@dataclass(frozen=True)
class Scores:
    """Corpus scores from 0 to 100, and sacrebleu's signatures of both."""

    bleu: float
    chrf: float
    signatures: dict[str, str]


def scores(hypotheses: Sequence[str], references: Sequence[str], code: str = "eng_Latn", *, tokenizer: str = "13a") -> Scores:
    """BLEU by `tokenizer` (see `tokenizer_for`) and chrF++ (word order 2) of texts in the language `code`.

    Raises ValueError for none, and where there are not as many of both.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"expected one reference for each text, got {len(hypotheses)} texts and {len(references)} references")
    bleu, chrf = BLEU(tokenize=tokenizer), CHRF(word_order=2)
    found = [metric.corpus_score(list(hypotheses), [list(references)]).score for metric in (bleu, chrf)]
    return Scores(found[0], found[1], {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())})


def tokenizer_for(code: str, spbleu: bool) -> str:
    """sacrebleu's tokenizer for a language: "flores200" for spBLEU, else "13a", or one that needs no spaces between words."""
    return "flores200" if spbleu else UNSPACED.get(code.rpartition("_")[2], "13a")


@cache
def flores_tokenizer(patience: float = PATIENCE, fetch: Callable[[str, Path], object] | None = None) -> str:
    """Make sure that sacrebleu has the SentencePiece model of spBLEU; "" if it has, else why not.

    It is fetched once, to where sacrebleu looks for it. Longer than `patience` seconds nobody waits: what came by then is
    kept and gone on with the next time. SONARKIT_OFFLINE=1 asks nobody.
    """
    from sacrebleu.utils import SACREBLEU_DIR

    path = Path(SACREBLEU_DIR) / "models" / Path(FLORES_200).name
    if path.is_file() and path.stat().st_size:
        return ""
    trouble = [f"no answer within {patience:g} s"]

    def attempt() -> None:
        try:
            (fetch or _fetch)(FLORES_200, path)
            trouble[0] = ""
        except (OSError, ValueError) as error:
            trouble[0] = " ".join(str(error).split())

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(patience)
    return trouble[0]


def _fetch(url: str, path: Path) -> None:
    download(url, path, progress=False, retries=0)
