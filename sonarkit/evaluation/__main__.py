"""Measure a codec in every direction; the table of its model card comes from here.

`sonarkit evaluate codec` gives more of a codec (chrF++, xsim++, noise) by way of one pivot language; `sonarkit evaluate stories`
is for models.

    python -m sonarkit.evaluation codec                                 # StoryWorld test, every 10th sentence
    python -m sonarkit.evaluation codec --corpus unseen                 # a theme that training never saw
    python -m sonarkit.evaluation codec --bitext PAIRS.jsonl.gz         # the rows of it that training holds out
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

import tyro

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.errors import user_errors
from sonarkit.evaluation.codec import codec_report
from sonarkit.evaluation.sets import rows_of

Corpus = Literal["valid", "test", "unseen", "handwritten"]


def spec_of(corpus: Corpus) -> str:
    """The set's name in `sets`."""
    return corpus if corpus == "handwritten" else f"storyworld:{corpus}"


def codec(
    model: str = "mini",
    corpus: Corpus = "test",
    every: int = 10,
    bitext: Path | None = None,
    beam_size: int = 5,
    out: Path | None = None,
) -> None:
    """Auto-encoding and translation BLEU and xsim of a codec.

    Args:
        model: "mini", "sonar", "sonar-finetuned" or a folder.
        corpus: Which shipped sentences.
        every: Take every n-th of them.
        bitext: Instead, an aligned JSONL file: its rows that training holds out.
        beam_size: Beams when decoding.
        out: Also write the numbers there as JSON.
    """
    rows = rows_of(f"{bitext}@held-out") if bitext else rows_of(spec_of(corpus), every=every)
    began = time.monotonic()
    results = codec_report(Sonar.from_pretrained(model), rows, beam_size=beam_size)
    where = bitext.name if bitext else corpus
    _show(f"{model} on {len(rows)} sentences of {where}, beam {beam_size}, {time.monotonic() - began:.0f} s", results, out)


def _show(title: str, results: dict[str, float], out: Path | None) -> None:
    print(title)
    for name, value in results.items():
        print(f"  {name:32s} {value:8.3f}")
    if out:
        out.write_text(json.dumps({"title": title, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with user_errors():
        tyro.extras.subcommand_cli_from_dict({"codec": codec})
