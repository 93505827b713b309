"""A language model as the judge of stories, over any OpenAI-compatible endpoint (arXiv 2508.05305, after TinyStories 2305.07759).

1. Two turns a story: an assessment in words, then grammar, creativity, consistency and plot out of 10. The papers' wording
   is not copied; ours is `ASSESS` and `GRADE`, so numbers compare with their own kind only, and each names its judge.
2. `judge_stories` asks with several threads, repeats what may succeed later, and appends every verdict to a JSONL file.
   A verdict is found again by the hash of model, prompt and story, so a restart asks only for what is missing.
3. Scores are means over stories that have all four. Stories without are named and counted, never averaged.

The key is read from the environment and written nowhere. Nothing is sent anywhere but to `base_url`; redirects are refused.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sonarkit.core.foreign import parse_json
from sonarkit.evaluation.statistics import RESAMPLES, Interval, bootstrap

CRITERIA = ("grammar", "creativity", "consistency", "plot")
ASSESS = """Below is the beginning of a short story and how a writer went on with it. The mark *** stands between them.

{prompt} *** {told}

Assess only what comes after the mark, in a few sentences. Is its grammar right? Is it creative? Does it agree with the \
beginning? Does its plot make sense? Pay attention to whether it goes on from the sentence that the mark \
interrupts, where it does."""
GRADE = """Now grade the writer's part: its grammar, its creativity, its consistency with the beginning, and its plot, each a \
number from 1 to 10. Answer with nothing but JSON of this form: {"grammar": 0, "creativity": 0, "consistency": 0, "plot": 0}"""
LOWEST, HIGHEST = 1, 10
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}  # HTTP statuses that another try may get past
REFUSED = {401, 402, 403, 404}  # and those of which every story would have the same
LARGEST_REPLY = 4_000_000  # bytes


@dataclass(frozen=True)
class JudgeConfig:
    """Whom to ask and how patiently.

    `base_url` is that of the API, such as https://api.openai.com/v1 or http://localhost:8000/v1. The key is the value of the
    environment variable `key_variable`; "" sends none. A request is given up after `timeout` seconds of silence, and when it
    goes on dripping for longer than that in all; it is tried at most `tries` times. Before try n + 1 there is a random wait of up
    to `backoff` * 2^(n - 1) seconds, or as long as Retry-After says, never longer than `longest_wait`. `max_tokens` bounds
    each answer; reasoning models count their thoughts in it. `temperature` None sends none; `workers` stories are asked for
    at once.
    """

    base_url: str = "https://api.openai.com/v1"
    model: str = "gpt-4o"
    key_variable: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int = 1024
    max_tokens_name: str = "max_tokens"  # some models want max_completion_tokens
    workers: int = 8
    tries: int = 6
    timeout: float = 120.0
    backoff: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        address = urllib.parse.urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname or address.query:
            raise ValueError(f"base_url is such as https://api.openai.com/v1, got {self.base_url!r}")
        if address.username or address.password:
            raise ValueError("base_url must not hold a password; the key belongs into the environment variable key_variable")
        if not self.model:
            raise ValueError("model is the name that the endpoint knows the judge by, got ''")
        if min(self.workers, self.tries, self.max_tokens) < 1 or self.timeout <= 0 or min(self.backoff, self.longest_wait) < 0:
            raise ValueError(f"workers, tries and max_tokens are at least 1, timeout above 0, waits not negative: {self}")

    def key(self) -> str:
        """The API key. ValueError where the variable is not set."""
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"no API key: set the environment variable {self.key_variable}; key_variable='' is for endpoints that need none"
            )
        return key


@dataclass(frozen=True)
class Told:
    """A story to judge: the beginning that was given and what a model told."""

    prompt: str
    told: str


@dataclass
class Usage:
    """What requests took. `unmetered` are answers whose tokens the endpoint did not count."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0

    def add(self, other: Usage) -> None:
        """Count another's, too."""
        self.requests += other.requests
        self.tokens_in += other.tokens_in
        self.tokens_out += other.tokens_out
        self.unmetered += other.unmetered


@dataclass
class Verdict:
    """Of one story: `scores` by criterion, 1 to 10, or `failure`, why there are none, with its `detail`. `key`: `verdict_key`."""

    key: str
    scores: dict[str, float] = field(default_factory=dict)
    assessment: str = ""
    failure: str = ""
    detail: str = ""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class JudgeReport:
    """`verdicts` in the order of the stories; `scores` are means over those that have all four, `failures` counts by reason.

    `usage` is that of this run, `found` how many verdicts were there before it.
    """

    model: str
    verdicts: list[Verdict]
    scores: dict[str, Interval]
    failures: dict[str, int]
    found: int
    usage: Usage
    price_in: float | None = None
    price_out: float | None = None

    @property
    def judged(self) -> int:
        """How many stories have scores."""
        return sum(not verdict.failure for verdict in self.verdicts)

    @property
    def cost(self) -> float | None:
        """Of this run, in the money of the prices (per million tokens); None without prices. At least that: see `unmetered`."""
        if self.price_in is None or self.price_out is None:
            return None
        return (self.usage.tokens_in * self.price_in + self.usage.tokens_out * self.price_out) / 1e6

    def table(self) -> str:
        """Scores with their intervals, a line each, then failures and what it took."""
        lines = [f"judge {self.model}: {self.judged} of {len(self.verdicts)} stories judged, {self.found} of them found"]
        lines += [f"{name:<12}{score}" for name, score in self.scores.items()]
        if self.failures:
            lines.append("not judged: " + ", ".join(f"{count} {why}" for why, count in self.failures.items()))
        spent = f"{self.usage.tokens_in} tokens in, {self.usage.tokens_out} out, {self.usage.requests} requests"
        if self.cost is not None:
            spent += f", cost {'at least ' if self.usage.unmetered else ''}{self.cost:.4f}"
        if self.usage.unmetered:
            spent += f"; {self.usage.unmetered} answers without a count of tokens"
        return "\n".join([*lines, spent])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the verdicts, which are in their file."""
        return {
            "judge": self.model,
            "stories": len(self.verdicts),
            "judged": self.judged,
            "found": self.found,
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "failures": self.failures,
            "usage": asdict(self.usage),
            "cost": self.cost,
        }


class _Failed(Exception):
    """A try that gave no answer. `kind` is what is counted, `wait` what the server asked for."""

    def __init__(self, kind: str, detail: str = "", *, again: bool = True, wait: float | None = None) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail, self.again, self.wait = kind, detail, again, wait


def judge_stories(
    stories: Sequence[Told],
    out: str | Path,
    config: JudgeConfig = JudgeConfig(),
    *,
    price_in: float | None = None,
    price_out: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    sleep: Callable[[float], object] | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> JudgeReport:
    """Have every story judged; verdicts are appended to `out` (JSONL) as they come.

    Verdicts that `out` has for the same judge, prompts and story are taken from it; failures are tried again. Equal stories are
    asked for once. A story without a word is a failure ("empty story"), never sent. `tell` hears how it goes; `sleep`
    waits, by default so that an error or Ctrl-C ends it.

    Raises ValueError for no stories, no key, and when the endpoint refuses (401, 402, 403, 404, no quota) or redirects: then no
    story would be judged. What was judged until then is in `out`.
    """
    if not stories:
        raise ValueError("expected at least one story to judge, got none")
    key, out = config.key(), Path(out)
    keys = [verdict_key(story, config) for story in stories]
    known, damaged = _read(out)
    if damaged:
        tell(f"{out}: {damaged} lines are no verdicts and are passed over")
    verdicts: dict[str, Verdict] = {one: known[one] for one in keys if one in known}
    found, open_stories = sum(one in verdicts for one in keys), {}
    for one, story in zip(keys, stories):
        if not story.told.split():
            verdicts[one] = Verdict(one, failure="empty story")
        elif one not in verdicts:
            open_stories[one] = story
    usage = Usage()
    if open_stories:
        out.parent.mkdir(parents=True, exist_ok=True)
        stop = threading.Event()
        with _appending(out) as write, ThreadPoolExecutor(config.workers) as pool:

            def work(one: str, story: Told) -> Verdict:
                try:
                    verdict = _judge(story, one, config, key, sleep or stop.wait, stop)
                except BaseException:
                    stop.set()  # at once: who waits for this may be long in hearing of it
                    raise
                if verdict.usage.requests:  # else the run was over before this story's turn
                    write(json.dumps(asdict(verdict), ensure_ascii=False))
                return verdict

            jobs = [pool.submit(work, one, story) for one, story in open_stories.items()]
            try:
                for number, job in enumerate(as_completed(jobs), 1):
                    verdict = job.result()
                    verdicts[verdict.key] = verdict
                    usage.add(verdict.usage)
                    tell(f"judged {number} of {len(jobs)}" + (f": {verdict.failure}" if verdict.failure else ""))
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    ordered = [verdicts[one] for one in keys]
    whole = [verdict for verdict in ordered if not verdict.failure]
    scores = {name: bootstrap([v.scores[name] for v in whole], resamples=resamples, seed=seed) for name in CRITERIA if whole}
    failures = dict(Counter(verdict.failure for verdict in ordered if verdict.failure).most_common())
    return JudgeReport(config.model, ordered, scores, failures, found, usage, price_in, price_out)


def verdict_key(story: Told, config: JudgeConfig) -> str:
    """What a verdict is found by: a hash of the judge, how it is asked, and the story."""
    what = [config.base_url.rstrip("/"), config.model, config.temperature, config.max_tokens, ASSESS, GRADE]
    return hashlib.sha256(json.dumps([*what, story.prompt, story.told]).encode()).hexdigest()


def parse_scores(answer: str) -> dict[str, float]:
    """The four scores of an answer: JSON, alone or within text, or lines such as "Grammar: 8/10".

    Raises ValueError that names what is missing or out of range.
    """
    found: dict[str, Any] = {}
    for block in re.findall(r"\{[^{}]*\}", answer):
        try:
            read = parse_json(block)
        except ValueError:
            continue
        named = {str(name).strip().lower(): value for name, value in read.items()} if isinstance(read, dict) else {}
        found = named if named.keys() & set(CRITERIA) else found  # the last that grades
    if not found:
        pattern = rf"\b({'|'.join(CRITERIA)})\b[\"'*_ ]*[:=][\"'*_ ]*(-?\d+(?:\.\d+)?)"
        found = {name.lower(): float(number) for name, number in re.findall(pattern, answer, re.IGNORECASE)}
    scores, missing, outside = {}, [], []
    for name in CRITERIA:
        value = found.get(name)
        if isinstance(value, str) and (match := re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(?:/\s*10)?\s*", value)):
            value = float(match[1])
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            missing.append(name)
        elif not LOWEST <= value <= HIGHEST:
            outside.append(f"{name} {value:g}")
        else:
            scores[name] = float(value)
    if missing:
        raise ValueError(f"score missing: {', '.join(missing)}")
    if outside:
        raise ValueError(f"score out of range: {', '.join(outside)}")
    return scores


# ---------------------------------------------------------------------- one story


def _judge(
    story: Told, one: str, config: JudgeConfig, key: str, sleep: Callable[[float], object], stop: threading.Event
) -> Verdict:
    """Both turns. Only what makes the whole run senseless is raised."""
    verdict = Verdict(one)
    messages = [{"role": "user", "content": ASSESS.format(prompt=story.prompt, told=story.told)}]

    def assessed(answer: str) -> str:
        if not answer.strip():
            raise _Failed("empty answer")
        return answer.strip()

    def graded(answer: str) -> dict[str, float]:
        try:
            return parse_scores(answer)
        except ValueError as error:
            kind, _, detail = str(error).partition(": ")
            raise _Failed(kind, f"{detail} in {answer.strip()[:200]!r}") from error

    try:
        verdict.assessment = _ask(messages, assessed, config, key, verdict.usage, sleep, stop)
        messages += [{"role": "assistant", "content": verdict.assessment}, {"role": "user", "content": GRADE}]
        verdict.scores = _ask(messages, graded, config, key, verdict.usage, sleep, stop)
    except _Failed as error:
        verdict.failure, verdict.detail = error.kind, error.detail
    return verdict


def _ask(
    messages: list[dict[str, str]],
    check: Callable[[str], Any],
    config: JudgeConfig,
    key: str,
    usage: Usage,
    sleep: Callable[[float], object],
    stop: threading.Event,
) -> Any:
    """One turn, with tries: what `check` makes of the answer. _Failed is the last try's."""
    for attempt in range(1, config.tries + 1):
        if stop.is_set():
            raise _Failed("stopped", again=False)
        try:
            return check(_post(messages, config, key, usage))
        except _Failed as error:
            if not error.again or attempt == config.tries:
                raise
            sleep(wait_before(attempt, error.wait, config))
    raise AssertionError("tries is at least 1")


def wait_before(attempt: int, asked: float | None, config: JudgeConfig, draw: Callable[[], float] = random.random) -> float:
    """Seconds to wait after the `attempt`-th try, from 1: what the server asked for and a little, else a random part of a
    doubling time."""
    most = config.backoff * 2.0 ** min(attempt - 1, 30)
    wanted = most * draw() if asked is None else asked + 0.1 * config.backoff * draw()
    return min(config.longest_wait, wanted)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to whom it was meant for."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def _post(messages: list[dict[str, str]], config: JudgeConfig, key: str, usage: Usage) -> str:
    """One request -> the answer's text. Raises _Failed for one story's trouble, ValueError for everybody's."""
    body: dict[str, Any] = {"model": config.model, "messages": messages, config.max_tokens_name: config.max_tokens}
    if config.temperature is not None:
        body["temperature"] = config.temperature
    headers = {"Content-Type": "application/json", "User-Agent": "sonarkit"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{config.base_url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
    )
    usage.requests += 1
    ends = time.monotonic() + config.timeout
    try:
        with _OPENER.open(request, timeout=config.timeout) as response:
            data = _read_all(response, ends)
    except urllib.error.HTTPError as error:
        with error:
            raise _of_status(error, config, key) from None
    except TimeoutError as error:
        raise _Failed("timeout", f"no whole answer in {config.timeout:g} s") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Failed("timeout", f"no whole answer in {config.timeout:g} s") from error
        raise _Failed("no connection", str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Failed("connection lost", f"{type(error).__name__} {error}") from error
    return _answer(data, usage)


def _read_all(response: http.client.HTTPResponse, ends: float) -> bytes:
    """The body, however slowly it drips, within the deadline: the timeout of a socket is that of a single read."""
    parts, size = [], 0
    while part := response.read1(65_536):
        parts.append(part)
        size += len(part)
        if time.monotonic() > ends:
            raise TimeoutError
        if size > LARGEST_REPLY:
            raise _Failed("broken reply", f"more than {LARGEST_REPLY} bytes")
    announced = response.getheader("Content-Length")
    if announced and announced.isdigit() and size < int(announced):
        raise _Failed("connection lost", f"{size} of {announced} bytes came")
    return b"".join(parts)


def _of_status(error: urllib.error.HTTPError, config: JudgeConfig, key: str) -> Exception:
    try:
        said = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        said = ""
    said = " ".join((said.replace(key, "***") if key else said).split())[:200]
    if error.code in REFUSED or "insufficient_quota" in said:  # the latter comes with 429, for ever
        advice = f"; check the key in {config.key_variable}, the model {config.model!r} and base_url {config.base_url}"
        return ValueError(f"the judge refuses with HTTP {error.code}: {said}{advice}")
    if 300 <= error.code < 400:
        return ValueError(f"{config.base_url} redirects (HTTP {error.code}); give the address it redirects to as base_url")
    return _Failed(f"HTTP {error.code}", said, again=error.code in PASSING, wait=retry_after(error.headers.get("Retry-After")))


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a Retry-After header asks for, given in seconds or as a date; None where it says nothing sensible."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _answer(data: bytes, usage: Usage) -> str:
    try:
        reply = parse_json(data)
        spent = reply.get("usage")
    except (ValueError, AttributeError) as error:
        raise _Failed("broken reply", f"no JSON object: {data[:200]!r}") from error
    try:
        tokens_in, tokens_out = int(spent["prompt_tokens"]), int(spent["completion_tokens"])
        usage.tokens_in, usage.tokens_out = usage.tokens_in + tokens_in, usage.tokens_out + tokens_out
    except (TypeError, KeyError, ValueError):
        usage.unmetered += 1
    try:
        answer = reply["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise _Failed("broken reply", f"no choices[0].message.content: {data[:200]!r}") from error
    if not isinstance(answer, str):
        raise _Failed("empty answer", f"content is {answer!r}")
    return answer


# ---------------------------------------------------------------------- the file


def _read(path: Path) -> tuple[dict[str, Verdict], int]:
    """The verdicts of a file by their keys, without failures, and how many lines are none: a killed run leaves half a line."""
    if not path.exists():
        return {}, 0
    known, damaged = {}, 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = parse_json(line)
                verdict = Verdict(**row | {"usage": Usage(**row["usage"])})
                whole = bool(verdict.failure) or set(parse_scores(json.dumps(verdict.scores))) == set(CRITERIA)
            except (ValueError, TypeError, KeyError):
                whole = False
            if not whole:
                damaged += 1
            elif not verdict.failure:
                known[verdict.key] = verdict
    return known, damaged


@contextmanager
def _appending(path: Path) -> Iterator[Callable[[str], None]]:
    """`write(line)` for several threads; it returns when the line is whole in the file. Half a last line is ended first."""
    lock = threading.Lock()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")

        def write(line: str) -> None:
            with lock:
                file.write(line.encode("utf-8", "replace") + b"\n")
                file.flush()

        yield write
