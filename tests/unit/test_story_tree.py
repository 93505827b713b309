"""The tree of what was tried: steering, branching, and files that are whole, broken or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sonarkit.codec.search import SearchConfig
from sonarkit.explore.widgets.story_teller import story_html
from sonarkit.models.rollout import Candidate, RolloutConfig, Step
from sonarkit.models.story_tree import FORMAT, StoryTree

EN = "eng_Latn"


def grown() -> StoryTree:
    """Ants ran. Bees hummed. -> Cats slept. -> (the end); -> Dogs barked. (edited)."""
    tree = StoryTree(
        output_lang="fra_Latn", seed=7, config=RolloutConfig(9, noise=0.1, search=SearchConfig(sample=True, top_k=3))
    )
    tree.begin("Ants ran. Bees hummed.", EN)
    tree.add("Cats slept.", "fra_Latn", "model", end_cosine=0.1, log_prob=-0.2)
    tree.add("End of sequence.", "fra_Latn", "model", end_cosine=0.99, log_prob=-0.1, stopped_by="end")
    tree.back()
    tree.edit("Dogs barked.")
    return tree


def texts(tree: StoryTree) -> list[str]:
    return [node.sentence for node in tree.path()]


def test_an_edit_makes_a_branch_and_nothing_is_lost() -> None:
    tree = grown()
    assert texts(tree) == ["Ants ran.", "Bees hummed.", "Dogs barked."]
    assert [(node.sentence, node.by) for node in tree.children(1)] == [("Cats slept.", "model"), ("Dogs barked.", "person")]
    assert tree.path()[-1].lang == "fra_Latn", "an edit is in the language of what it replaces"
    tree.go(3)
    assert tree.as_text() == "Ants ran. Bees hummed. Cats slept." and not tree.path()[-1].told
    with pytest.raises(ValueError, match="the story has ended here; go back"):
        tree.add("Eels swam.", EN)
    tree.edit("Eels swam.")  # in place of the end
    assert texts(tree)[2:] == ["Cats slept.", "Eels swam."] and len(tree.nodes) == 6


def test_what_was_tried_before_is_gone_to_and_not_doubled() -> None:
    tree = grown()
    before = tree.nodes
    tree.begin("Ants ran. Bees hummed.", EN)
    assert tree.current == 1
    tree.add("Cats slept.", "fra_Latn", "model")
    tree.edit("Dogs barked.")
    tree.edit(" Dogs barked. ")
    assert tree.current == 4 and tree.nodes == before
    tree.begin("Foxes sang.", EN)
    assert [node.sentence for node in tree.children(None)] == ["Ants ran.", "Foxes sang."]


def test_what_cannot_be_done_says_why_and_changes_nothing() -> None:
    tree = StoryTree()
    for action, message in [(tree.back, "nothing to go back to"), (lambda: tree.edit("a"), "no sentence to edit")]:
        with pytest.raises(ValueError, match=message):
            action()
    with pytest.raises(ValueError, match="no sentence"):
        tree.begin("  ", EN)
    tree.begin("Ants ran.", EN)
    for action, message in [
        (tree.back, "no sentence before it"),
        (lambda: tree.edit(" "), "blank"),
        (lambda: tree.go(1), "no sentence 1 .* has 1"),
        (lambda: tree.go(-1), "no sentence -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            action()
        assert tree.current == 0


def test_steps_and_candidates_bring_their_numbers() -> None:
    tree = StoryTree()
    tree.begin("Ants ran.", EN)
    z = torch.zeros(4)
    tree.add_step(Step(0, z, "Bees hummed.", z, 0.25, -0.5, "max_sentences"), EN)
    assert (tree.path()[-1].end_cosine, tree.path()[-1].log_prob, tree.path()[-1].by) == (0.25, -0.5, "model")
    tree.add_candidate(Candidate("End of sequence.", z, z, 0.99, -0.1, ends=True), EN)
    assert tree.path()[-1].stopped_by == "end" and tree.as_text() == "Ants ran. Bees hummed."


def test_the_outline_is_indented_only_at_branches() -> None:
    lines = [line for line, _ in grown().outline()]
    assert lines == [
        "● 1. Ants ran. (prompt)",
        "● 2. Bees hummed. (prompt)",
        "    · 3. Cats slept.",
        "    · 4. End of sequence. (the end)",
        "    → 3. Dogs barked. (yours)",
    ]
    assert [node for _, node in grown().outline()] == [0, 1, 2, 3, 4]


def test_a_very_long_story_has_an_outline() -> None:
    tree = StoryTree()
    for i in range(1500):
        tree.add(f"Sentence {i}.", EN)
    assert len(tree.outline()) == len(tree.path()) == 1500 and tree.rows()[-1][0] == 0


def test_a_tree_survives_its_file(tmp_path: Path) -> None:
    tree = grown()
    tree.edit('<script>alert("x")</script> & "$5" \\ \n🦊')
    tree.save(tmp_path / "story.json")
    assert StoryTree.load(tmp_path / "story.json") == tree
    assert StoryTree.from_json(StoryTree().to_json()) == StoryTree()
    assert [path.name for path in tmp_path.iterdir()] == ["story.json"]
    with pytest.raises(OSError, match="could not write"):
        tree.save(tmp_path / "nowhere" / "story.json")
    with pytest.raises(FileNotFoundError):
        StoryTree.load(tmp_path / "other.json")


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(grown().to_json()) | changes)


def changed_node(place: int, **changes: Any) -> str:
    nodes = json.loads(grown().to_json())["nodes"]
    nodes[place] |= changes
    return changed(nodes=nodes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        (grown().to_json()[:-40], "not a story tree: "),
        ("[]", f'"format": "{FORMAT}"'),
        ('{"format": "sonarkit-story-tree-0"}', f'"format": "{FORMAT}"'),
        ("[" * 100_000, "nested too deeply"),
        (changed(colour="red"), "unknown field colour"),
        (changed(nodes={}), "nodes: expected"),
        (changed(current=99), "current node 99 is not among its 5"),
        (changed(current=True), "current: expected int"),
        (changed(seed=-1), "seed must lie"),
        (changed(config={"max_sentences": 1}), "max_sentences must be at least 2"),
        (changed(config={"noise": 1e999}), "must be finite"),
        (changed(config={"noise": 10**400}), "not a story tree: "),
        (changed(prompt="\ud800"), "Unicode"),
        (changed_node(1, id=7), "node 1 has the id 7"),
        (changed_node(1, parent=1), "node 1 follows node 1"),
        (changed_node(1, parent=-1), "node 1 follows node -1"),
        (changed_node(4, parent=3), "where the story has ended"),
        (changed_node(4, sentence=" "), "node 4 has a sentence that is blank"),
        (changed_node(2, sentence="\udfff"), "no Unicode"),
        (changed_node(2, sentence=["Cats"]), r"nodes\[2\].sentence: expected str"),
        (changed_node(2, end_cosine=float("nan")), "not finite"),
        (changed_node(2, by="nobody"), "one of 'prompt', 'model', 'person'"),
        (changed_node(2, stopped_by={}), r"nodes\[2\].stopped_by"),
        (changed_node(2, lang="x" * 10_000_000, parent="y" * 10_000_000), "not a story tree: "),
    ],
)
def test_a_file_that_is_no_tree_is_refused_with_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        StoryTree.from_json(text)
    assert len(str(refused.value)) < 400
    (tmp_path / "story.json").write_text(text)
    with pytest.raises(ValueError, match="story.json: "):
        StoryTree.load(tmp_path / "story.json")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "story.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="story.json: "):
        StoryTree.load(tmp_path / "story.json")


def test_whatever_stopped_a_story_in_a_file_can_be_shown() -> None:
    kept = json.loads(grown().to_json())
    for why in ("end", "loop", "max_sentences", "max_tokens"):
        kept["nodes"][3]["stopped_by"] = why
        tree = StoryTree.from_json(json.dumps(kept))
        tree.go(3)
        assert any("End of sequence." in line for line, _ in tree.outline()) and "End of sequence." in story_html(tree.path())
