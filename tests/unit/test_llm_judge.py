"""The judge's protocol against a server on 127.0.0.1 that behaves in every bad way."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sonarkit.evaluation.llm_judge import (
    GRADE,
    JudgeConfig,
    JudgeReport,
    Told,
    judge_stories,
    parse_scores,
    retry_after,
    verdict_key,
    wait_before,
)

SCORES = {"grammar": 8, "creativity": 6, "consistency": 7, "plot": 5}
KEY = "sk-secret-of-the-test"
Fault = Callable[["Handler"], None]


@dataclass
class Server:
    """`faults` answer the next requests, `grades` the second turns, by a word of the story."""

    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    grades: dict[str, str] = field(default_factory=dict)
    usage: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        state: Server = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with state.lock:
            state.requests.append({"path": self.path, **body})
            state.keys.append(self.headers["Authorization"])
            fault = state.faults.pop(0) if state.faults else None
        if fault:
            fault(self)
            return
        if len(body["messages"]) == 1:
            self.answer("It is quite good.")
            return
        story = body["messages"][0]["content"]
        self.answer(next((grade for word, grade in state.grades.items() if word in story), json.dumps(SCORES)))

    def answer(self, text: str | None) -> None:
        reply: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        if self.server.state.usage:
            reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
        self.send(200, json.dumps(reply).encode())

    def send(self, status: int, data: bytes, announced: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(announced or len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.state = state = Server(f"http://127.0.0.1:{http.server_port}/v1")  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.closing.set()
    http.shutdown()
    http.server_close()
    thread.join()


STORIES = [Told("Once there was a fox.", "He ran home."), Told("Tom had a map.", "He lost it.")]


def judge(server: Server, out: Path, stories: list[Told] = STORIES, **options: Any) -> JudgeReport:
    settings = {"workers": 1, "timeout": 0.3, "tries": 3}
    settings |= {name: options.pop(name) for name in list(options) if name in JudgeConfig.__dataclass_fields__}
    options = {"sleep": lambda _: None, "resamples": 20} | options
    return judge_stories(stories, out, JudgeConfig(server.url, "judge-1", "JUDGE_KEY", **settings), **options)


def test_two_turns_a_story(server: Server, tmp_path: Path) -> None:
    server.grades = {"map": json.dumps({name: value - 2 for name, value in SCORES.items()})}
    report = judge(server, tmp_path / "out" / "verdicts.jsonl", price_in=2.5, price_out=10.0)
    first, second = server.requests[:2]
    assert first["path"] == "/v1/chat/completions" and first["model"] == "judge-1" and first["temperature"] == 0
    assert [m["role"] for m in first["messages"]] == ["user"]
    assert "Once there was a fox. *** He ran home." in first["messages"][0]["content"]
    assert second["messages"][1:] == [{"role": "assistant", "content": "It is quite good."}, {"role": "user", "content": GRADE}]
    assert {name: score.value for name, score in report.scores.items()} == {n: v - 1 for n, v in SCORES.items()}
    assert report.judged == 2 and not report.failures and report.scores["plot"].count == 2
    assert (report.usage.requests, report.usage.tokens_in, report.usage.tokens_out) == (4, 400, 40)
    assert report.cost == pytest.approx((400 * 2.5 + 40 * 10) / 1e6) and "0.0014" in report.table()
    assert set(server.keys) == {f"Bearer {KEY}"} and KEY not in (tmp_path / "out" / "verdicts.jsonl").read_text()
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["scores"]["grammar"]["value"] == 7


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.send(code, b'{"error": "busy"}', **headers)


def silence(handler: Handler) -> None:
    handler.server.state.closing.wait(5)


def drip(handler: Handler) -> None:
    """A byte now and then, for ever: no single read times out."""
    handler.send(200, b" ", announced=1000)
    while not handler.server.state.closing.wait(0.05):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def hang_up(handler: Handler) -> None:
    handler.close_connection = True
    handler.connection.close()


FAULTS: dict[str, tuple[Fault, str]] = {
    "429": (status(429, Retry_After="7"), "HTTP 429"),
    "500": (status(500), "HTTP 500"),
    "503": (status(503, Retry_After="soon"), "HTTP 503"),
    "no JSON": (lambda h: h.send(200, b'{"choices": [{"mess'), "broken reply"),
    "another JSON": (lambda h: h.send(200, b"[1, 2]"), "broken reply"),
    "no choices": (lambda h: h.send(200, b'{"choices": []}'), "broken reply"),
    "no content": (lambda h: h.answer(None), "empty answer"),
    "blank": (lambda h: h.answer("  "), "empty answer"),
    "silence": (silence, "timeout"),
    "dripping": (drip, "timeout"),
    "cut midway": (lambda h: h.send(200, b'{"choices"', announced=500), "connection lost"),
    "hung up": (hang_up, "connection lost"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_passes_is_tried_again_and_what_stays_is_a_named_failure(name: str, server: Server, tmp_path: Path) -> None:
    fault, kind = FAULTS[name]
    server.faults = [fault]
    report = judge(server, tmp_path / "passes.jsonl", STORIES[:1])
    assert report.judged == 1 and report.usage.requests == 3 and not report.failures
    server.faults = [fault] * 2
    report = judge(server, tmp_path / "stays.jsonl", tries=2)
    assert report.failures == {kind: 1} and report.verdicts[0].failure == kind and not report.verdicts[0].scores
    assert report.judged == 1 and report.scores["plot"].count == 1 and report.scores["plot"].value == SCORES["plot"]
    assert "1 of 2 stories judged, 0 of them found" in report.table() and f"not judged: 1 {kind}" in report.table()


@pytest.mark.parametrize(
    "grade, kind, detail",
    [
        ('{"grammar": 8, "creativity": 6, "consistency": 7}', "score missing", "plot"),
        (json.dumps(SCORES | {"plot": 11}), "score out of range", "plot 11"),
        (json.dumps(SCORES | {"plot": 0}), "score out of range", "plot 0"),
        ("I would rather not.", "score missing", "grammar, creativity, consistency, plot"),
    ],
)
def test_bad_scores_are_asked_for_again_and_never_averaged(
    grade: str, kind: str, detail: str, server: Server, tmp_path: Path
) -> None:
    server.grades = {"fox": grade}
    report = judge(server, tmp_path / "verdicts.jsonl")
    assert report.failures == {kind: 1} and report.verdicts[0].detail.startswith(detail)
    assert report.usage.requests == 1 + 3 + 2 and report.usage.tokens_in == 600  # all tries are paid for
    assert {name: score.value for name, score in report.scores.items()} == SCORES


def test_a_request_that_is_wrong_is_not_repeated(server: Server, tmp_path: Path) -> None:
    server.faults = [status(400)]
    report = judge(server, tmp_path / "verdicts.jsonl")
    assert report.failures == {"HTTP 400": 1} and "busy" in report.verdicts[0].detail and report.usage.requests == 3


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_who_is_refused_stops_at_once_and_keeps_what_there_is(code: int, server: Server, tmp_path: Path) -> None:
    def refuse(handler: Handler) -> None:
        handler.send(code, f"no: {KEY}".encode())

    server.faults = [lambda h: h.answer("Good."), lambda h: h.answer(json.dumps(SCORES)), refuse]
    stories = [*STORIES, *(Told("A.", f"Number {i}.") for i in range(20))]
    with pytest.raises(ValueError, match=f"refuses with HTTP {code}: no: .*check the key in JUDGE_KEY") as caught:
        judge(server, tmp_path / "verdicts.jsonl", stories)
    assert KEY not in str(caught.value)
    assert len(server.requests) < 2 * len(stories)
    kept = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["usage"]["requests"] for row in kept)
    server.faults.clear()
    assert judge(server, tmp_path / "verdicts.jsonl", STORIES[:1]).found == 1


def test_a_spent_quota_is_no_busy_server(server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: h.send(429, b'{"error": {"code": "insufficient_quota"}}')]
    with pytest.raises(ValueError, match="refuses with HTTP 429: .*insufficient_quota"):
        judge(server, tmp_path / "verdicts.jsonl", STORIES[:1])


@pytest.mark.parametrize("code", [302, 307])  # urllib itself would follow the first, key in hand
def test_the_key_is_not_sent_elsewhere(code: int, server: Server, tmp_path: Path) -> None:
    server.faults = [lambda h: h.send(code, b"", Location="http://127.0.0.1:9/v1")]
    with pytest.raises(ValueError, match=f"redirects .HTTP {code}.; give the address it redirects to"):
        judge(server, tmp_path / "verdicts.jsonl", STORIES[:1])


def test_nobody_there(server: Server, tmp_path: Path) -> None:
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = closed.server_port
    closed.server_close()
    report = judge(replace(server, url=f"http://127.0.0.1:{port}"), tmp_path / "verdicts.jsonl")
    assert report.failures == {"no connection": 2} and not report.scores and report.judged == 0
    assert "0 of 2" in report.table()


# ---------------------------------------------------------------------- going on


def test_a_restart_asks_only_for_what_is_missing(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    server.faults = [status(500)] * 3
    assert judge(server, out).failures == {"HTTP 500": 1}
    server.requests.clear()
    report = judge(server, out)
    assert len(server.requests) == 2 and report.judged == 2 and report.found == 1 and report.usage.requests == 2
    server.requests.clear()
    report = judge(server, out)
    assert not server.requests and report.found == 2 and report.usage.requests == 0 and report.judged == 2


def test_half_a_line_of_a_killed_run_is_passed_over(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    judge(server, out)
    lines = out.read_text().splitlines()
    bad = json.dumps(json.loads(lines[1]) | {"scores": {"grammar": 99}})
    out.write_text(f"{lines[0]}\n{bad}\n[1]\n{lines[1][:40]}")
    heard: list[str] = []
    report = judge(server, out, tell=heard.append)
    assert report.judged == 2 and report.found == 1 and report.usage.requests == 2
    assert heard[0] == f"{out}: 3 lines are no verdicts and are passed over"
    assert judge(server, out).found == 2


def test_equal_stories_are_asked_for_once_and_empty_ones_never(server: Server, tmp_path: Path) -> None:
    report = judge(server, tmp_path / "verdicts.jsonl", [STORIES[0], STORIES[0], Told("A.", " ")])
    assert report.usage.requests == 2 and report.judged == 2 and report.failures == {"empty story": 1}
    assert report.scores["plot"].count == 2


def test_verdicts_belong_to_judge_prompt_and_story() -> None:
    config = JudgeConfig()
    keys = {
        verdict_key(STORIES[0], config),
        verdict_key(STORIES[1], config),
        verdict_key(STORIES[0], replace(config, model="another")),
        verdict_key(STORIES[0], replace(config, base_url="http://localhost:1/v1")),
        verdict_key(STORIES[0], replace(config, temperature=0.5)),
        verdict_key(Told("Once there was a fox. He", "ran home."), config),
    }
    assert len(keys) == 6
    assert verdict_key(STORIES[0], config) == verdict_key(STORIES[0], replace(config, workers=3, base_url=config.base_url + "/"))


def test_many_at_once(server: Server, tmp_path: Path) -> None:
    stories = [Told("A.", f"Number {i}.") for i in range(40)]
    server.grades = {f"Number {i}.": json.dumps(SCORES | {"plot": 1 + i % 10}) for i in range(40)}
    server.faults = [status(429, Retry_After="0"), status(500)] * 5
    report = judge(server, tmp_path / "verdicts.jsonl", stories, workers=8, tries=12, timeout=5)
    assert [verdict.scores["plot"] for verdict in report.verdicts] == [1 + i % 10 for i in range(40)]
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 40 and report.usage.requests == 90


# ---------------------------------------------------------------------- waiting, reading, settings


def test_waits_double_up_to_a_limit_and_retry_after_is_kept(server: Server, tmp_path: Path) -> None:
    config = JudgeConfig(backoff=1.0, longest_wait=20.0)
    assert [wait_before(n, None, config, lambda: 1.0) for n in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 8, 16, 20]
    assert wait_before(3, None, config, lambda: 0.25) == 1 and wait_before(10_000, None, config, lambda: 1.0) == 20
    assert wait_before(1, 7.0, config, lambda: 1.0) == pytest.approx(7.1) and wait_before(1, 3600.0, config) == 20
    waits: list[float] = []
    server.faults = [status(429, Retry_After="7"), status(429, Retry_After="900")]
    judge(server, tmp_path / "verdicts.jsonl", STORIES[:1], sleep=waits.append)
    assert 7 <= waits[0] <= 7.1 and waits[1:] == [60]


def test_an_error_ends_all_waiting(server: Server, tmp_path: Path) -> None:
    """Another thread would wait a minute."""
    busy = threading.Event()

    def limit(handler: Handler) -> None:
        status(429, Retry_After="60")(handler)
        busy.set()

    def refuse(handler: Handler) -> None:
        busy.wait(5)
        status(401)(handler)

    server.faults = [limit, refuse]
    began = time.monotonic()
    with pytest.raises(ValueError, match="401"):
        judge(server, tmp_path / "verdicts.jsonl", workers=2, timeout=5, sleep=None)
    assert time.monotonic() - began < 10


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after("3.5") == 3.5 and retry_after("-1") == 0 and retry_after(None) is None
    assert retry_after("soon") is None and retry_after("nan") is None and retry_after("inf") is None
    assert retry_after(email.utils.formatdate(1000, usegmt=True), lambda: 990.0) == 10
    assert retry_after(email.utils.formatdate(1000, usegmt=True), lambda: 2000.0) == 0


def test_scores_are_read_in_the_ways_judges_write_them() -> None:
    want = {name: float(value) for name, value in SCORES.items()}
    assert parse_scores(json.dumps(SCORES)) == want
    assert parse_scores(f"Here you are:\n```json\n{json.dumps(SCORES, indent=1)}\n```") == want
    assert parse_scores("**Grammar:** 8/10\nCreativity: 6/10\n- consistency = 7\nPlot: 5/10") == want
    assert parse_scores('{"Grammar": "8/10", "creativity": "6", "consistency": 7.0, "plot": 5}') == want
    assert parse_scores(json.dumps(SCORES | {"plot": 5.5}))["plot"] == 5.5
    assert parse_scores(f'{{"form": 0}} {json.dumps(SCORES)} I hope that helps: {{"done": true}}') == want
    for value in (True, None, "good", [5], float("nan"), "5/100"):
        with pytest.raises(ValueError, match="score missing: plot"):
            parse_scores(json.dumps(SCORES | {"plot": value}))
    with pytest.raises(ValueError, match="score out of range: creativity -6, plot 50"):
        parse_scores(json.dumps(SCORES | {"plot": 50, "creativity": -6}))


def test_tokens_that_nobody_counted_are_told(server: Server, tmp_path: Path) -> None:
    server.usage = False
    report = judge(server, tmp_path / "verdicts.jsonl", price_in=1.0, price_out=1.0)
    assert report.usage.unmetered == 4 and "at least 0.0000" in report.table()
    assert judge(server, tmp_path / "verdicts.jsonl").cost is None


def test_bad_settings_are_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least one story"):
        judge(server, tmp_path / "verdicts.jsonl", [])
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="no API key: set the environment variable JUDGE_KEY"):
        judge(server, tmp_path / "verdicts.jsonl")
    assert not server.requests
    assert judge_stories(STORIES, tmp_path / "open.jsonl", JudgeConfig(server.url, "judge-1", "", workers=1)).judged == 2
    assert server.keys == [None] * 4
    for url in ("localhost:8000/v1", "file:///etc/passwd", "https://", "https://x/v1?key=1"):
        with pytest.raises(ValueError, match="base_url is such as"):
            JudgeConfig(url)
    with pytest.raises(ValueError, match="must not hold a password"):
        JudgeConfig("https://me:secret@host/v1")
    for settings in ({"workers": 0}, {"tries": 0}, {"timeout": 0}, {"backoff": -1}):
        with pytest.raises(ValueError, match="at least 1, timeout above 0"):
            JudgeConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model is the name"):
        JudgeConfig(model="")
