"""From a prompt to a story, one sentence at a time.

1. The prompt is split into sentences and encoded.
2. The model reads the vectors and predicts the next one.
3. The prediction is decoded to a sentence; if it means "End of sequence.", the story ends.
4. The sentence is encoded again, its vector joins the context, and 2 follows.

Many prompts run as one batch; a story that has ended leaves it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.search import SearchConfig
from sonarkit.text.languages import check_language, per_text
from sonarkit.text.sentences import split_sentences

if TYPE_CHECKING:
    from sonarkit.codec.pipeline import Sonar

END_OF_SEQUENCE = "End of sequence."
StoppedBy = Literal["end", "max_sentences", "loop"]


class PromptWarning(UserWarning):
    """A prompt was longer than the story may be."""


class ConceptModel(Protocol):
    """What a rollout needs of a model: sentence vectors in, the next sentence's vector out."""

    @property
    def sonar(self) -> Sonar: ...
    def start(self, rows: int, positions: int) -> Any: ...
    def advance(self, embeddings_BSD: Tensor, context: Any, new_B: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RolloutConfig:
    """How to tell a story.

    It ends when the cosine of the predicted vector (`stop_on="predicted"`, the paper's rule) or of the
    re-encoded sentence (`"reencoded"`, the published script's) to the vector of "End of sequence." exceeds
    `end_threshold`, or when the sentence says just that: the loss asks of a prediction that it decodes to the end, not
    that it lies near its vector, and after a short training it seldom does (English output only); when a sentence
    repeats an earlier one of the story to the letter ("loop"; the repetition is left out); or when it has
    `max_sentences` sentences, the prompt's included. `noise` is the standard deviation of Gaussian noise on each
    predicted vector, relative to that vector's root mean square.
    """

    max_sentences: int = 32
    end_threshold: float = 0.98
    stop_on: Literal["predicted", "reencoded"] = "predicted"
    stop_on_loop: bool = True
    noise: float = 0.0
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.max_sentences < 2 or not -1 <= self.end_threshold <= 1 or self.noise < 0:
            raise ValueError(f"max_sentences must be at least 2, end_threshold a cosine, noise not negative: {self}")
        if self.stop_on not in ("predicted", "reencoded"):
            raise ValueError(f"stop_on must be 'predicted' or 'reencoded', got {self.stop_on!r}")


@dataclass(frozen=True)
class Step:
    """One step of one story, every stage kept: what was predicted, said, and read back."""

    story: int  # which prompt of the batch
    predicted_D: Tensor
    sentence: str
    reencoded_D: Tensor
    end_cosine: float  # of the vector that `stop_on` names
    log_prob: float  # mean per token of the decoded sentence, nats
    stopped_by: StoppedBy | None  # when this step ended the story; unless "max_sentences" its sentence is not part of it


@dataclass(frozen=True)
class Story:
    """A story: the prompt's sentences and those the model told, with the vector of each.

    `sentences[:prompt_sentences]` come from the prompt, in the output language. `embeddings` is (S, D).
    """

    prompt: str
    sentences: list[str]
    prompt_sentences: int
    embeddings: Tensor
    stopped_by: StoppedBy
    steps: list[Step]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    @property
    def continuation(self) -> list[str]:
        return self.sentences[self.prompt_sentences :]


def split_prompt(prompt: str, lang: str) -> list[str]:
    """A prompt's sentences. Raises ValueError when there are none."""
    sentences = split_sentences(prompt, lang)
    if not sentences:
        raise ValueError(
            "the prompt holds no sentence; begin with one or two, such as 'Once upon a time there was a little fox named Mia.'"
        )
    return sentences


@torch.no_grad()
def tell(
    model: ConceptModel,
    prompts: Sequence[Sequence[str]],
    lang: str | Sequence[str] = "eng_Latn",
    config: RolloutConfig = RolloutConfig(),
    *,
    output_lang: str | None = None,
    seed: int | None = None,
) -> Iterator[Step]:
    """Continue each prompt (a list of sentences); yields every step as it is made, story by story in each round.

    The prompts may be in different languages; all stories are told in `output_lang` (default: each in its own).
    """
    sonar = model.sonar
    languages = per_text(lang, len(prompts), sonar.languages)
    told_in = [check_language(output_lang, sonar.languages)] * len(prompts) if output_lang else languages
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    end_D = F.normalize(sonar.encode([END_OF_SEQUENCE], "eng_Latn")[0], dim=0)

    room = config.max_sentences - 1
    for prompt in prompts:
        if len(prompt) > room:
            warnings.warn(f"the prompt has {len(prompt)} sentences; the model reads the last {room}", PromptWarning, stacklevel=2)
    heads = [list(prompt)[-room:] for prompt in prompts]
    flat = sonar.encode([s for head in heads for s in head], [code for code, head in zip(languages, heads) for _ in head])
    vectors = list(flat.split([len(head) for head in heads]))
    seen = [set(head) for head in heads]

    active = list(range(len(prompts)))
    counts = torch.tensor([len(v) for v in vectors])
    context = model.start(len(active), config.max_sentences)
    fresh_BSD = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    fresh_B = counts
    round_number = 0
    while active:
        predicted_BD = model.advance(fresh_BSD, context, fresh_B)
        if config.noise:
            scale = config.noise * predicted_BD.square().mean(1, keepdim=True).sqrt()
            predicted_BD = predicted_BD + scale * torch.randn(predicted_BD.shape, generator=generator).to(predicted_BD)
        codes = [told_in[i] for i in active]
        found = sonar.search(predicted_BD, codes, config.search, seed=None if seed is None else seed + round_number)
        sentences = [sonar.tokenizer.decode(hypotheses[0].ids) for hypotheses in found]
        reencoded_BD = sonar.encode(sentences, codes)
        judged_BD = predicted_BD if config.stop_on == "predicted" else reencoded_BD
        cosines = (F.normalize(judged_BD.float(), dim=1) @ end_D).tolist()

        going = []
        for row, story in enumerate(active):
            counts[story] += 1
            stopped: StoppedBy | None = None
            if cosines[row] > config.end_threshold or sentences[row] == END_OF_SEQUENCE:
                stopped = "end"
            elif config.stop_on_loop and sentences[row] in seen[story]:
                stopped = "loop"
            elif counts[story] >= config.max_sentences:
                stopped = "max_sentences"
            else:
                going.append(row)
            seen[story].add(sentences[row])
            yield Step(story, predicted_BD[row], sentences[row], reencoded_BD[row], cosines[row], found[row][0].score, stopped)
        active = [active[row] for row in going]
        if len(going) < len(sentences):
            context = context.select(torch.tensor(going, dtype=torch.long, device=reencoded_BD.device))
        fresh_BSD = reencoded_BD[going, None]
        fresh_B = torch.ones(len(going), dtype=torch.long)
        round_number += 1


@overload
def generate(model: ConceptModel, prompt: str, lang: str = ..., **options: Any) -> Story: ...
@overload
def generate(model: ConceptModel, prompt: list[str], lang: str | Sequence[str] = ..., **options: Any) -> list[Story]: ...


def generate(
    model: ConceptModel,
    prompt: str | list[str],
    lang: str | Sequence[str] = "eng_Latn",
    *,
    output_lang: str | None = None,
    seed: int | None = None,
    max_sentences: int = 32,
    end_threshold: float = 0.98,
    stop_on: Literal["predicted", "reencoded"] = "predicted",
    stop_on_loop: bool = True,
    noise: float = 0.0,
    **search: Any,
) -> Story | list[Story]:
    """Continue a prompt, or a list of them as one batch. -> `Story`, or a list of them.

    `search` takes the fields of `SearchConfig` (beam_size, sample, temperature, top_k, top_p, max_tokens), the
    rest those of `RolloutConfig`. With `output_lang` the story is told in another language than the prompt's;
    the prompt's own sentences are translated. Raises ValueError for a prompt without a sentence.
    """
    config = RolloutConfig(max_sentences, end_threshold, stop_on, stop_on_loop, noise, SearchConfig(**search))
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    languages = per_text(lang, len(prompts), model.sonar.languages)
    heads = [split_prompt(text, code) for text, code in zip(prompts, languages)]
    steps: list[list[Step]] = [[] for _ in prompts]
    for step in tell(model, heads, languages, config, output_lang=output_lang, seed=seed):
        steps[step.story].append(step)
    stories = [
        collect(model.sonar, text, head, code, told, output_lang)
        for text, head, code, told in zip(prompts, heads, languages, steps)
    ]
    return stories[0] if isinstance(prompt, str) else stories


def collect(sonar: Sonar, prompt: str, head: list[str], lang: str, steps: list[Step], output_lang: str | None = None) -> Story:
    """The story that a finished list of steps tells."""
    stopped_by = steps[-1].stopped_by
    assert stopped_by is not None, "collect() needs the steps of a story that has ended"
    kept = [step for step in steps if step.stopped_by in (None, "max_sentences")]
    embeddings = torch.cat([sonar.encode(head, lang), *(step.reencoded_D[None] for step in kept)])
    opening = sonar.decode(embeddings[: len(head)], output_lang) if output_lang not in (None, lang) else head
    return Story(prompt, [*opening, *(step.sentence for step in kept)], len(head), embeddings, stopped_by, steps)
