"""From a prompt to a story, one sentence at a time.

1. The prompt is split into sentences and encoded.
2. The model reads the vectors and predicts the next one.
3. The prediction is decoded to a sentence; if it means "End of sequence.", the story ends.
4. The sentence is encoded again, its vector joins the context, and 2 follows.

Many prompts run as one batch; a story that has ended leaves it. `candidates` gives several sentences for step 3 to choose from.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from sonarkit.codec.search import Hypothesis, SearchConfig
from sonarkit.text.languages import per_text, resolve
from sonarkit.text.sentences import split_sentences

if TYPE_CHECKING:
    from sonarkit.codec.pipeline import Sonar

END_OF_SEQUENCE = "End of sequence."
END_LANGUAGE = "eng_Latn"  # the language of that sentence
SENTENCE_TOKENS = 256  # what a told sentence may have (arXiv 2508.05305)
StoppedBy = Literal["end", "max_sentences", "loop", "max_tokens"]  # the last of a token-level model only


class PromptWarning(UserWarning):
    """A prompt was longer than the story may be."""


class ConceptModel(Protocol):
    """What a rollout needs of a model: sentence vectors in, the next sentence's vector out.

    `start` gives an empty context, which has a `select(rows)`; `advance` reads into it. See `ConceptModule`.
    """

    @property
    def sonar(self) -> Sonar: ...
    def start(self, rows: int, positions: int) -> Any: ...
    def advance(self, embeddings_BSD: Tensor, context: Any, new_B: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RolloutConfig:
    """How to tell a story.

    It ends when the cosine of the predicted vector (`stop_on="predicted"`, the paper's rule) or of the
    re-encoded sentence (`"reencoded"`, the published script's) to the vector of "End of sequence." exceeds
    `end_threshold`; when the prediction says just that, whatever language the story is told in (it is then decoded in
    English, too); when a sentence repeats an earlier one of the story to the letter, or the judged vector's cosine to the
    vector before it exceeds `loop_threshold` (0.9 in arXiv 2412.08821), unless `stop_on_loop` is off ("loop"; the repetition
    is left out); or when it has `max_sentences` sentences, the prompt's included. `noise` is the standard deviation of
    Gaussian noise on each predicted vector, relative to that vector's root mean square.
    """

    max_sentences: int = 32
    end_threshold: float = 0.98
    stop_on: Literal["predicted", "reencoded"] = "predicted"
    stop_on_loop: bool = True
    loop_threshold: float | None = None
    noise: float = 0.0
    search: SearchConfig = field(default_factory=lambda: SearchConfig(max_tokens=SENTENCE_TOKENS))

    def __post_init__(self) -> None:
        if (
            self.max_sentences < 2
            or not -1 <= self.end_threshold <= 1
            or not -1 <= (self.loop_threshold or 0) <= 1
            or self.noise < 0
        ):
            raise ValueError(
                f"max_sentences must be at least 2, end_threshold and loop_threshold cosines, noise not negative: {self}"
            )
        if self.stop_on not in ("predicted", "reencoded"):
            raise ValueError(f"stop_on must be 'predicted' or 'reencoded', got {self.stop_on!r}")


@dataclass(frozen=True)
class Candidate:
    """A sentence that may come next, every stage kept: what was predicted, said, and read back."""

    sentence: str
    predicted_D: Tensor
    reencoded_D: Tensor
    end_cosine: float  # of the vector that `stop_on` names
    log_prob: float  # mean per token of the decoded sentence, nats
    ends: bool  # it says that the story is over, and is not part of it


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
        """The sentences as one paragraph."""
        return " ".join(self.sentences)

    @property
    def continuation(self) -> list[str]:
        """The sentences that the model told."""
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
    lang: str | Sequence[str | Sequence[str]] = "eng_Latn",
    config: RolloutConfig = RolloutConfig(),
    *,
    output_lang: str | None = None,
    seed: int | None = None,
) -> Iterator[Step]:
    """Continue each prompt (a list of sentences); yields every step as it is made, story by story in each round.

    `lang` is one code, or for each prompt a code or one code per sentence. All stories are told in `output_lang`
    (default: each in the language of its last sentence). Of a longer prompt the last `max_sentences` - 1 sentences are read, with
    a PromptWarning. Raises UnknownLanguageError, and ValueError for an empty prompt and for another number of codes.
    """
    sonar = model.sonar
    heads, languages = _read(sonar, prompts, lang, config.max_sentences - 1)
    told_in = [resolve(output_lang or codes[-1], sonar.languages) for codes in languages]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    end_D = _end_direction(sonar)
    flat_ND = sonar.encode([s for head in heads for s in head], [code for codes in languages for code in codes])
    vectors = flat_ND.split([len(head) for head in heads])
    seen = [set(head) for head in heads]

    active = list(range(len(prompts)))
    counts = torch.tensor([len(v) for v in vectors])
    context = model.start(len(active), config.max_sentences)
    fresh_BSD = torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True)
    fresh_B = counts
    round_number = 0
    while active:
        predicted_BD = noisy(model.advance(fresh_BSD, context, fresh_B), config.noise, generator)
        codes = [told_in[i] for i in active]
        found = sonar.search(predicted_BD, codes, config.search, seed=None if seed is None else seed + round_number)
        said = _judge(sonar, predicted_BD, [hypotheses[0] for hypotheses in found], codes, config, end_D)
        repeats = [False] * len(said)
        if config.loop_threshold is not None:
            last_BD = fresh_BSD[torch.arange(len(fresh_B)), fresh_B - 1].to(predicted_BD.device)
            judged_BD = torch.stack([new.predicted_D if config.stop_on == "predicted" else new.reencoded_D for new in said])
            repeats = (F.cosine_similarity(judged_BD.float(), last_BD.float()) > config.loop_threshold).tolist()

        going = []
        for row, (story, new) in enumerate(zip(active, said)):
            counts[story] += 1
            stopped: StoppedBy | None = None
            if new.ends:
                stopped = "end"
            elif config.stop_on_loop and (new.sentence in seen[story] or repeats[row]):
                stopped = "loop"
            elif counts[story] >= config.max_sentences:
                stopped = "max_sentences"
            else:
                going.append(row)
            seen[story].add(new.sentence)
            yield Step(story, new.predicted_D, new.sentence, new.reencoded_D, new.end_cosine, new.log_prob, stopped)
        active = [active[row] for row in going]
        if len(going) < len(said):
            context = context.select(torch.tensor(going, dtype=torch.long, device=predicted_BD.device))
        if going:
            fresh_BSD = torch.stack([said[row].reencoded_D for row in going])[:, None]
        fresh_B = torch.ones(len(going), dtype=torch.long)
        round_number += 1


@torch.no_grad()
def candidates(
    model: ConceptModel,
    sentences: Sequence[str],
    lang: str | Sequence[str] = "eng_Latn",
    config: RolloutConfig = RolloutConfig(),
    count: int = 5,
    *,
    output_lang: str | None = None,
    seed: int | None = None,
    spread: float = 0.5,
) -> list[Candidate]:
    """Up to `count` different sentences that may follow a story so far; the first is what `tell` would say.

    The others come from two noisy copies of the prediction for each one wanted, with noise growing in equal steps up to
    `spread` (relative, as `RolloutConfig.noise`), the nearest first; then from what else the beam found. Fewer are returned
    when no more are different. `lang` is one code or one per sentence; see `tell` for `output_lang`. Raises ValueError for a
    `count` below 1 and a negative `spread`, and as `tell`.
    """
    if count < 1 or spread < 0:
        raise ValueError(f"count must be at least 1 and spread not negative, got {count} and {spread}")
    sonar = model.sonar
    (head,), (languages,) = _read(sonar, [sentences], [lang], config.max_sentences - 1)
    told_in = resolve(output_lang or languages[-1], sonar.languages)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    end_D = _end_direction(sonar)

    context = model.start(1, len(head))
    predicted_1D = model.advance(sonar.encode(head, languages)[None], context, torch.tensor([len(head)]))
    first_1D = noisy(predicted_1D, config.noise, generator)
    copies = 2 * (count - 1)
    steps_K1 = torch.linspace(0, 1, copies + 1, device=predicted_1D.device)[1:, None]
    others_KD = noisy(predicted_1D.expand(copies, -1), spread * steps_K1, generator)
    # What is drawn depends on the other rows of a batch: the first must be drawn alone, as `tell` would draw it.
    batches = [first_1D, others_KD] if config.search.sample else [torch.cat([first_1D, others_KD])]
    found = [
        hypotheses
        for i, batch_KD in enumerate(batches)
        for hypotheses in sonar.search(batch_KD, told_in, config.search, seed=None if seed is None else seed + i)
    ]
    rest = found[0][1:]  # of the beam
    predicted_KD = torch.cat([first_1D, others_KD, first_1D.expand(len(rest), -1)])
    spoken = [*(hypotheses[0] for hypotheses in found), *rest]
    different: dict[str, Candidate] = {}
    for candidate in _judge(sonar, predicted_KD, spoken, [told_in] * len(spoken), config, end_D):
        different.setdefault(candidate.sentence, candidate)
    return list(different.values())[:count]


# ---------------------------------------------------------------------- one round


def _read(
    sonar: Sonar, prompts: Sequence[Sequence[str]], lang: str | Sequence[str | Sequence[str]], room: int
) -> tuple[list[list[str]], list[list[str]]]:
    """The last `room` sentences of each prompt, and the checked language of each of them."""
    given = [lang] * len(prompts) if isinstance(lang, str) else list(lang)
    if len(given) != len(prompts):
        raise ValueError(f"one language for all prompts or one for each: got {len(given)} for {len(prompts)} prompts")
    languages = [per_text(code, len(prompt), sonar.languages) for code, prompt in zip(given, prompts)]
    for prompt in prompts:
        if not prompt:
            raise ValueError("a prompt holds no sentence; there must be at least one to continue")
        if len(prompt) > room:
            warnings.warn(f"the prompt has {len(prompt)} sentences; the model reads the last {room}", PromptWarning, stacklevel=3)
    return [list(prompt)[-room:] for prompt in prompts], [codes[-room:] for codes in languages]


def _end_direction(sonar: Sonar) -> Tensor:
    """The vector of the end sentence, of length 1."""
    return F.normalize(sonar.encode([END_OF_SEQUENCE], END_LANGUAGE)[0], dim=0)


def noisy(vectors_BD: Tensor, noise: float | Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise, relative to each vector's root mean square; nothing is drawn for a noise of 0.

    Drawn on the CPU, from torch's global generator unless told.
    """
    if isinstance(noise, float | int) and not noise:
        return vectors_BD
    scale_B1 = noise * vectors_BD.square().mean(1, keepdim=True).sqrt()
    return vectors_BD + scale_B1 * torch.randn(vectors_BD.shape, generator=generator).to(vectors_BD)


def _judge(
    sonar: Sonar,
    predicted_BD: Tensor,
    spoken: Sequence[Hypothesis],
    codes: Sequence[str],
    config: RolloutConfig,
    end_D: Tensor,
) -> list[Candidate]:
    """Read each decoded sentence back, and tell whether it ends its story.

    Beside the cosine, a prediction ends it that says "End of sequence.": the loss asks that it decodes to this sentence,
    not that it lies near its vector, and after a short training it seldom does. The sentence has no sure wording in
    another language (a decoder may never have met its translation), so there the prediction is decoded in English, too.
    """
    sentences = [sonar.tokenizer.decode(hypothesis.ids) for hypothesis in spoken]
    reencoded_BD = sonar.encode(sentences, codes)
    judged_BD = predicted_BD if config.stop_on == "predicted" else reencoded_BD
    cosines = (F.normalize(judged_BD.float(), dim=1) @ end_D).tolist()
    says_end = [sentence == END_OF_SEQUENCE for sentence in sentences]
    foreign = [row for row, code in enumerate(codes) if code != END_LANGUAGE and not says_end[row]]
    if foreign:
        # Greedy, and no longer than the end sentence: a few cheap steps.
        greedy = replace(config.search, beam_size=1, sample=False, max_tokens=len(sonar.tokenizer.pieces(END_OF_SEQUENCE)))
        for row, hypotheses in zip(foreign, sonar.search(predicted_BD[foreign], END_LANGUAGE, greedy)):
            says_end[row] = hypotheses[0].ended and sonar.tokenizer.decode(hypotheses[0].ids) == END_OF_SEQUENCE
    ends = [cosine > config.end_threshold or says for cosine, says in zip(cosines, says_end)]
    means = [hypothesis.mean_log_prob for hypothesis in spoken]
    return [Candidate(*row) for row in zip(sentences, predicted_BD, reencoded_BD, cosines, means, ends)]


# ---------------------------------------------------------------------- whole stories


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
    loop_threshold: float | None = None,
    noise: float = 0.0,
    **search: Any,
) -> Story | list[Story]:
    """Continue a prompt, or a list of them as one batch. -> `Story`, or a list of them.

    `search` takes the fields of `SearchConfig` (beam_size, sample, temperature, top_k, top_p, max_tokens, 256 unless told), the
    rest those of `RolloutConfig`. With `output_lang` the story is told in another language than the prompt's;
    the prompt's own sentences are translated. Raises ValueError for a prompt without a sentence.
    """
    decoding = SearchConfig(**{"max_tokens": SENTENCE_TOKENS, **search})
    config = RolloutConfig(max_sentences, end_threshold, stop_on, stop_on_loop, loop_threshold, noise, decoding)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    languages = per_text(lang, len(prompts), model.sonar.languages)
    if not prompts:
        return []
    output_lang = resolve(output_lang, model.sonar.languages) if output_lang else None
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
