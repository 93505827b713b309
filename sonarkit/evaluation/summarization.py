"""Summaries: the sentences of a document in, the summary's sentences out (arXiv 2508.05305: XSum and CNN/DailyMail).

A document's sentences are the prompt, its first ones where it is too long (a lead tells more than an end), and the model goes on
until it ends. Beside the model stands the lead: as many first sentences as the reference has, which needs no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sonarkit.evaluation.nlg import MeteorMode, meteor, meteor_label, meteor_mode, meteor_name, rouge_l, versions
from sonarkit.evaluation.statistics import RESAMPLES, Interval, bootstrap
from sonarkit.models.family import seeds_for
from sonarkit.models.rollout import Story
from sonarkit.text.corpora import ColumnError, hugging_face_rows, read_jsonl
from sonarkit.text.sentences import split_sentences

# Where the two sets are, as corpora are named, and their columns.
SETS = {
    "xsum": ("hf:EdinburghNLP/xsum@test", "document", "summary"),
    "cnn_dailymail": ("hf:abisee/cnn_dailymail:3.0.0@test", "article", "highlights"),
}
# ROUGE-L and METEOR of the 1.3B models (arXiv 2508.05305, v1). The token model leads on CNN/DailyMail and, by METEOR, on XSum.
PAPER = {
    "xsum": {
        "SONAR-LLM": (19.3, 15.2),
        "LLM, beam": (18.7, 15.4),
        "LLM, greedy": (18.9, 14.9),
        "MSE-LCM": (12.2, 8.7),
        "Diffusion-LCM": (12.0, 8.3),
    },
    "cnn_dailymail": {
        "SONAR-LLM": (16.0, 10.4),
        "LLM, beam": (18.3, 16.5),
        "LLM, greedy": (18.7, 14.1),
        "MSE-LCM": (7.6, 3.7),
        "Diffusion-LCM": (10.2, 5.1),
    },
}


class Generator(Protocol):
    """What is needed of a model: SonarLLM's `generate`, for a list of prompts."""

    def generate(self, prompt: list[str], lang: str = ..., *, max_sentences: int = ..., **options: Any) -> list[Story]:
        """A story for each prompt."""


@dataclass(frozen=True)
class Pair:
    """A document and its summary, and where they came from."""

    document: str
    summary: str
    source: str


@dataclass(frozen=True)
class SummaryConfig:
    """`max_sentences` is what the model takes, document and summary together; at most `summary_sentences` of them are told.

    `cue` is a sentence put between the two, such as "In short:"; the published prompts' wording is not known, "" puts none.
    `batch` documents are summarized at once. ValueError where no sentence of a document fits.
    """

    max_sentences: int = 32
    summary_sentences: int = 8
    cue: str = ""
    batch: int = 16

    def __post_init__(self) -> None:
        if min(self.summary_sentences, self.batch) < 1 or self.room < 1:
            raise ValueError(
                "max_sentences must hold a sentence of the document beside summary_sentences and the cue, batch at least 1; "
                f"got {self}"
            )

    @property
    def room(self) -> int:
        """How many sentences of a document are read."""
        return self.max_sentences - self.summary_sentences - bool(self.cue.strip())


def read_pairs(
    spec: str | Path, *, document: str = "document", summary: str = "summary", limit: int | None = None
) -> tuple[list[Pair], Counter[str]]:
    """The pairs that `spec` names, and how many rows were dropped and why.

    "xsum", "cnn_dailymail" (`SETS`), hf:NAME[:CONFIG][@SPLIT], or a .jsonl or .jsonl.gz file with the columns `document` and
    `summary`. Raises FileNotFoundError, ColumnError (listing the columns there are), ValueError for other files and no pairs.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is the number of pairs to keep, at least 1; got {limit}")
    name = str(spec)
    if name in SETS:
        name, document, summary = SETS[name]
    pairs: list[Pair] = []
    dropped: Counter[str] = Counter()
    for source, row in _hugging_face(name.removeprefix("hf:")) if name.startswith("hf:") else _file(Path(name)):
        for column in (document, summary):
            if column not in row:
                raise ColumnError(f"{source}: no column {column!r}; the columns are {', '.join(row) or 'none'}")
        texts = row[document], row[summary]
        if not all(isinstance(text, str) for text in texts):
            dropped["not a text"] += 1
        elif not all(text.strip() for text in texts):
            dropped["empty"] += 1
        else:
            pairs.append(Pair(*texts, source))
            if len(pairs) == limit:
                break
    if not pairs:
        raise ValueError(f"{spec} holds no pair of document and summary ({dict(dropped) or 'no rows'})")
    return pairs, dropped


def _file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise FileNotFoundError(f"no pairs at {path}; expected a .jsonl file, {', '.join(SETS)} or hf:NAME[:CONFIG][@SPLIT]")
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path} is of no known kind; expected .jsonl or .jsonl.gz with a document and a summary on each line")
    return ((f"{path.name}:{number}", row) for number, row in read_jsonl(path))


def _hugging_face(what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((source, row) for row, source in hugging_face_rows(what, "test"))


@dataclass(frozen=True)
class SummaryReport:
    """`scores` of the model and, under `lead_...`, of the lead, from 0 to 100; `summaries` in the order of the pairs."""

    scores: dict[str, Interval]
    labels: dict[str, str]
    counts: dict[str, int]
    stopped_by: dict[str, int]
    versions: dict[str, str]
    summaries: list[str]

    def table(self, paper: str | None = None) -> str:
        """With `paper`, a key of `PAPER`, the published numbers stand below: of other models and, it may be, another METEOR.

        ValueError for another key.
        """
        if paper is not None and paper not in PAPER:
            raise ValueError(f"the paper has no set {paper!r}; expected one of {', '.join(PAPER)}")
        lines = [f"{name:<24}{score!s:<28}  {self.labels[name]}" for name, score in self.scores.items()]
        lines.append(", ".join(f"{count} {what.replace('_', ' ')}" for what, count in self.counts.items()))
        lines.append("stopped by " + ", ".join(f"{why} {count}" for why, count in self.stopped_by.items()))
        lines.append(", ".join(f"{name} {number}" for name, number in self.versions.items()))
        lines += [f"paper, {name:<15}ROUGE-L {r:.1f}, METEOR {m:.1f}" for name, (r, m) in PAPER.get(paper or "", {}).items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the summaries."""
        return {
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "labels": self.labels,
            "counts": self.counts,
            "stopped_by": self.stopped_by,
            "versions": self.versions,
        }


def summarize(
    model: Generator,
    documents: Sequence[str],
    lang: str = "eng_Latn",
    config: SummaryConfig = SummaryConfig(),
    *,
    seed: int = 0,
    **options: Any,
) -> tuple[list[Story], int, int]:
    """A `Story` for each document, whose `continuation` is the summary; how many documents were cut, and of how many sentences.

    `seed` and `options` go to `generate`, to a diffusion LCM another seed for each document. Documents of as many sentences make
    a batch, so that each has the same room. Raises ValueError for a document without a sentence.
    """
    split = [split_sentences(document, lang) for document in documents]
    if empty := [i for i, sentences in enumerate(split) if not sentences]:
        raise ValueError(f"document {empty[0]} holds no sentence; leave it out")
    cut = [len(sentences) - config.room for sentences in split if len(sentences) > config.room]
    by_length: dict[int, list[int]] = defaultdict(list)
    cue = split_sentences(config.cue, lang)[:1]
    prompts = []
    for i, sentences in enumerate(split):
        head = sentences[: config.room] + cue
        by_length[len(head)].append(i)
        prompts.append("\n\n".join(head))  # a blank line ends a sentence: split again, they are the same
    stories: dict[int, Story] = {}
    for length, of_length in sorted(by_length.items()):
        rest = iter(of_length)
        while chosen := list(islice(rest, config.batch)):
            room, seeds = length + config.summary_sentences, seeds_for(model, seed, chosen)
            told = model.generate([prompts[i] for i in chosen], lang, max_sentences=room, seed=seeds, **options)
            stories |= zip(chosen, told)
    return [stories[i] for i in range(len(split))], len(cut), sum(cut)


def summary_report(
    model: Generator,
    pairs: Sequence[Pair],
    lang: str = "eng_Latn",
    config: SummaryConfig = SummaryConfig(),
    *,
    mode: MeteorMode | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> SummaryReport:
    """Summarize every document and compare with its summary: ROUGE-L (F1, stemmed) and METEOR of `nlg`. Empty summaries have 0.

    `seed` is that of what a model draws and of the intervals; `options` go to `generate` (beam_size, ...). Raises ValueError for
    no pairs and empty documents or summaries.
    """
    if not pairs:
        raise ValueError("expected at least one pair of document and summary, got none")
    if empty := [pair.source for pair in pairs if not pair.summary.split()]:
        raise ValueError(f"{empty[0]} has an empty summary; leave it out")
    mode = mode or meteor_mode()
    stories, cut, sentences_cut = summarize(model, [pair.document for pair in pairs], lang, config, seed=seed, **options)
    told = [" ".join(story.continuation) for story in stories]
    true = [" ".join(pair.summary.split()) for pair in pairs]
    leads = [" ".join(split_sentences(pair.document, lang)[: max(1, len(split_sentences(pair.summary, lang)))]) for pair in pairs]
    name = meteor_name(mode)
    scores = {
        prefix + key: bootstrap([score(a, b) for a, b in zip(texts, true)], resamples=resamples, seed=seed)
        for prefix, texts in (("", told), ("lead_", leads))
        for key, score in (("rouge_l", rouge_l), (name, lambda a, b: meteor(a, b, mode)))
    }
    labels = {"rouge_l": "ROUGE-L F1, stemmed", name: meteor_label(mode)}
    counts = {
        "pairs": len(pairs),
        "documents_cut": cut,
        "sentences_cut": sentences_cut,
        "empty_summaries": sum(not text.split() for text in told),
        "sentences_told": sum(len(story.continuation) for story in stories),
    }
    return SummaryReport(
        scores,
        {key: labels[key.removeprefix("lead_")] + ("; the first sentences" if key.startswith("lead_") else "") for key in scores},
        counts,
        dict(Counter(story.stopped_by for story in stories).most_common()),
        versions(),
        told,
    )
