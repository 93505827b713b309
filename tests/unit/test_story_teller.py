"""The story teller without a browser: what its buttons call, what it shows, and that errors are sentences."""

from __future__ import annotations

import base64
import gc
import re
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.search import SearchConfig
from sonarkit.explore.widgets.story_teller import StoryTeller, story_html
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.rollout import RolloutConfig, candidates, tell
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.models.story_tree import Node, StoryTree

PROMPT = "The fox ran home. Mia slept."
HEAD = ["The fox ran home.", "Mia slept."]
CONFIG = RolloutConfig(max_sentences=6, end_threshold=1.0, stop_on_loop=False, search=SearchConfig(2, 8))


@pytest.fixture
def model(sonar: Sonar) -> SonarLLM:
    torch.manual_seed(0)
    return SonarLLM(SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint()), sonar).eval()


@pytest.fixture
def teller(model: SonarLLM) -> Iterator[StoryTeller]:
    teller = StoryTeller(model, PROMPT, config=CONFIG)
    yield teller
    teller.stop()
    teller.wait()


def told(teller: StoryTeller) -> list[str]:
    return [node.sentence for node in teller.tree.path()]


def test_it_tells_what_the_rollout_tells(teller: StoryTeller) -> None:
    teller.tell_button.click()
    teller.wait()
    assert told(teller) == HEAD + [step.sentence for step in tell(teller.model, [HEAD], config=CONFIG, seed=0)]
    assert (teller.work.error, len(told(teller))) == (None, 6)
    assert teller.status.text == "As long as allowed; raise the maximum to go on."
    assert teller.story.value.count("<tr") == 7 and len(teller.tree_select.options) == 6
    assert re.search(r"<td>-?\d\.\d\d</td><td>\d+%</td>", teller.story.value)
    teller.tell()
    teller.wait()
    assert "may have 6; raise the maximum" in teller.status.text
    teller.max_sentences.value = 8
    teller.tell()
    teller.wait()
    assert len(told(teller)) == 8


class Slow:
    """Lets one sentence through at a time."""

    def __init__(self, model: SonarLLM) -> None:
        self.model, self.sonar = model, model.sonar
        self.allowed, self.asked = threading.Semaphore(0), threading.Semaphore(0)

    def start(self, rows: int, positions: int) -> object:
        return self.model.start(rows, positions)

    def advance(self, embeddings_BSD: Tensor, context: object, new_B: Tensor) -> Tensor:
        self.asked.release()
        assert self.allowed.acquire(timeout=20)
        return self.model.advance(embeddings_BSD, context, new_B)  # type: ignore[arg-type]


def test_sentences_come_one_by_one_and_it_stops_in_the_middle(model: SonarLLM) -> None:
    slow = Slow(model)
    teller = StoryTeller(slow, PROMPT, config=CONFIG)
    teller.tell()
    counts = []
    for _ in range(2):
        assert slow.asked.acquire(timeout=20)
        counts.append(len(teller.tree.nodes))
        slow.allowed.release()
    assert slow.asked.acquire(timeout=20)
    assert teller.tell_button.disabled and not teller.stop_button.disabled and teller.tree_select.disabled
    assert "<progress" in teller.status.value and teller.status.text == "Sentence 4 of at most 6"
    for refused in (teller.back, teller.propose, lambda: teller.go(0), lambda: teller.edit("Tom slept.")):
        refused()
        assert teller.status.text == "Still working; that has to end first." and len(teller.tree.nodes) == 4
    teller.sentence.value = "What I am typing."
    teller.stop_button.click()
    assert teller.status.text == "Stopping after this sentence …"
    slow.allowed.release()
    teller.wait()
    assert (counts, len(teller.tree.nodes)) == ([2, 3], 5)
    assert teller.status.text == "Stopped; Tell goes on from here." and teller.sentence.value == "What I am typing."
    assert not teller.tell_button.disabled and teller.stop_button.disabled
    teller.back()
    assert teller.sentence.value == teller.tree.nodes[3].sentence


def test_a_search_for_candidates_does_not_promise_to_stop(model: SonarLLM) -> None:
    slow = Slow(model)
    teller = StoryTeller(slow, PROMPT, config=CONFIG)
    teller.propose()
    assert slow.asked.acquire(timeout=20)
    assert teller.stop_button.disabled and teller.status.text == "Looking for candidates …"
    teller.stop()
    assert teller.status.text == "Looking for candidates …"
    slow.allowed.release()
    teller.wait()
    assert teller.proposed and teller.stop_button.disabled and not teller.propose_button.disabled


def test_candidates_can_be_taken_one_beside_the_other(teller: StoryTeller) -> None:
    teller.noise.value = 1.0
    teller.propose()
    teller.wait()
    expected = candidates(teller.model, HEAD, config=teller.tree.config, seed=0)
    assert [c.sentence for c in teller.proposed] == [c.sentence for c in expected] and len(expected) > 1
    assert teller.candidates.options[0][0].startswith(expected[0].sentence) and "[end " in teller.candidates.options[0][0]
    teller.candidates.value = 1
    teller.take_button.click()
    assert told(teller) == [*HEAD, expected[1].sentence]
    teller.choose(0)
    assert told(teller) == [*HEAD, expected[0].sentence] and len(teller.tree.children(1)) == 2
    teller.choose(99)
    assert teller.status.text.startswith("There is no candidate 99")


def test_edit_back_and_branch(teller: StoryTeller) -> None:
    teller.tell()
    teller.wait()
    first = told(teller)
    teller.go(2)
    teller.sentence.value = "Tom found a map."
    teller.replace_button.click()
    assert told(teller) == [*HEAD, "Tom found a map."]
    assert "<i>(yours)</i>" in teller.story.value and len(teller.tree.nodes) == 7
    teller.say("He laughed.")
    teller.back_button.click()
    assert told(teller)[-1] == "Tom found a map."
    teller.tree_select.value = 5  # as a click or a key does
    assert told(teller) == first
    teller.prompt.value = "One bear sang."
    teller.tell()
    teller.wait()
    assert told(teller)[0] == "One bear sang." and len(teller.tree.children(None)) == 2
    teller.edit(" ")
    assert teller.status.text == "The sentence is blank; write at least a word."


def test_another_language(teller: StoryTeller) -> None:
    teller.output_lang.value = "fra_Latn"
    teller.max_sentences.value = 4
    teller.tell()
    teller.wait()
    steps = tell(teller.model, [HEAD], config=teller.tree.config, output_lang="fra_Latn", seed=0)
    assert told(teller)[2:] == [step.sentence for step in steps]
    assert [node.lang for node in teller.tree.path()] == ["eng_Latn"] * 2 + ["fra_Latn"] * 2


def test_only_the_controls_that_apply_can_be_used(teller: StoryTeller) -> None:
    def state() -> list[bool]:
        return [c.disabled for c in (teller.beam_size, teller.temperature, teller.top_k, teller.top_p)]

    assert state() == [False, True, True, True]
    teller.decoding.value = "sampling"
    assert state() == [True, False, False, False]
    assert all(control.description for control in [*teller._settings, teller.prompt, teller.sentence, teller.tree_select])


def test_errors_are_sentences(teller: StoryTeller, model: SonarLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    teller.prompt.value = "  "
    teller.tell()
    teller.wait()
    assert teller.status.text.startswith("The prompt holds no sentence; begin with one")
    teller.back()
    assert teller.status.text.startswith("There is nothing to go back to yet")
    teller.choose(0)
    assert teller.status.text == "There are no candidates yet; press Candidates."
    teller.prompt.value = PROMPT
    monkeypatch.setattr(model, "advance", lambda *_: 1 / 0)
    teller.propose()
    teller.wait()
    assert "ZeroDivisionError" in teller.status.text and "report" in teller.status.text
    assert not teller.tell_button.disabled
    with pytest.raises(ValueError, match="eng_Latn"):
        StoryTeller(model, lang="englsh")
    assert StoryTeller(model, lang="English").tree.lang == "eng_Latn"


def test_what_is_told_is_never_html(teller: StoryTeller) -> None:
    teller.prompt.value = "<script>alert(1)</script> ran & hid."
    teller.max_sentences.value = 3
    teller.tell()
    teller.wait()
    assert "<script>" not in teller.story.value and "&lt;script&gt;alert(1)&lt;/script&gt; ran &amp; hid." in teller.story.value
    end = Node(0, None, "End <b>", "eng_Latn", "model", 0.991, -0.1, "end")
    assert "End &lt;b&gt; (the end)</td><td>0.99</td><td>90%</td>" in story_html([end])
    assert "Nothing is told" in story_html([])


def test_saved_and_loaded_it_goes_on_where_it_was(teller: StoryTeller, model: SonarLLM, tmp_path: Path) -> None:
    teller.decoding.value, teller.top_k.value, teller.seed.value, teller.output_lang.value = "sampling", 3, 5, "deu_Latn"
    teller.tell()
    teller.wait()
    teller.back()
    teller.save(tmp_path / "story.json")
    assert teller.status.text == f"Saved as {tmp_path / 'story.json'}."
    other = StoryTeller(model)
    other.load(tmp_path / "story.json")
    assert other.tree == teller.tree and other.tree.config.stop_on_loop is False
    assert (other.prompt.value, other.decoding.value, other.top_k.value, other.seed.value) == (PROMPT, "sampling", 3, 5)
    assert other.story.value == teller.story.value and other.tree_select.value == 4
    link = re.search(r'base64,([^"]+)"', other.link.value)
    assert link and StoryTree.from_json(base64.b64decode(link[1]).decode()) == teller.tree

    uploaded = StoryTeller(model)
    content = (tmp_path / "story.json").read_bytes()
    uploaded._upload({"new": [{"name": "<story>.json", "content": memoryview(content)}]})
    assert uploaded.tree == teller.tree and "&lt;story&gt;.json" in uploaded.status.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<script>alert(1)</script>", "not a story tree: Expecting value"),
        (StoryTree(lang="<b>x</b>").to_json(), "Unknown language '<b>x</b>'"),
        (StoryTree(nodes=(Node(0, None, "A.", "xxx_Latn", "person"),)).to_json(), "Unknown language 'xxx_Latn'"),
    ],
)
def test_a_hostile_file_is_a_sentence_and_changes_nothing(
    teller: StoryTeller, tmp_path: Path, content: str, message: str
) -> None:
    teller.say("Tom slept.")
    before = teller.tree
    (tmp_path / "story.json").write_text(content)
    teller.load(tmp_path / "story.json")
    assert message in teller.status.text and teller.tree is before
    assert "<script>" not in teller.status.value and "<b>x" not in teller.status.value
    teller.load(tmp_path / "nothing.json")
    assert "No such file" in teller.status.text


def test_a_closed_teller_lets_go_of_its_model_and_keeps_its_tree(sonar: Sonar, tmp_path: Path) -> None:
    model = SonarLLM(SonarLLMConfig(BackboneConfig(24, 48, 2, 3, 8), 32, "tiny", sonar.fingerprint()), sonar).eval()
    teller = StoryTeller(model, PROMPT, config=CONFIG)
    teller.tell()
    teller.wait()
    story, held = told(teller), weakref.ref(model)
    del model
    teller.close()
    gc.collect()
    assert held() is None
    teller.save(tmp_path / "story.json")
    assert [node.sentence for node in StoryTree.load(tmp_path / "story.json").path()] == story
    teller.back()
    teller.tell()
    teller.wait()
    assert teller.status.text == "This StoryTeller is closed; run its cell again, or make another one."
