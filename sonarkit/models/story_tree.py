"""Everything that was tried while a story was steered: a tree of sentences, of which one path is the story.

A sentence told, typed or edited is a node under the sentence it follows. Nothing is ever taken away: going back and
saying something else makes a second branch. Several beginnings stand side by side.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sonarkit.core import config as configs
from sonarkit.core.checkpoint import write_atomically
from sonarkit.core.foreign import parse_json
from sonarkit.models.rollout import Candidate, RolloutConfig, Step, StoppedBy, split_prompt

FORMAT = "sonarkit-story-tree-1"
MESSAGE_LETTERS = 300
BROKEN = "the text holds half a character (of a surrogate pair); type it again"
By = Literal["prompt", "model", "person"]


@dataclass(frozen=True)
class Node:
    """A sentence, who said it, and the numbers of the model's own (see `rollout.Step`).

    A node that `stopped_by` "end" or "loop" is, as in a `Step`, not part of the story, and nothing follows it.
    """

    id: int
    parent: int | None  # None: a beginning
    sentence: str
    lang: str
    by: By
    end_cosine: float | None = None
    log_prob: float | None = None
    stopped_by: StoppedBy | None = None

    @property
    def told(self) -> bool:
        """Whether the sentence is part of the story."""
        return self.stopped_by in (None, "max_sentences")


@dataclass
class StoryTree:
    """The nodes in the order they came (a node's id is its place), the current one, and the settings last used."""

    prompt: str = ""
    lang: str = "eng_Latn"
    output_lang: str | None = None
    seed: int = 0
    config: RolloutConfig = field(default_factory=RolloutConfig)
    current: int | None = None
    nodes: tuple[Node, ...] = ()

    # ------------------------------------------------------------------ looking

    def path(self) -> list[Node]:
        """The nodes from a beginning to the current one."""
        found: list[Node] = []
        at = self.current
        while at is not None:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return found[::-1]

    def story(self) -> list[Node]:
        """The path without an end or a repetition on which it stopped."""
        return [node for node in self.path() if node.told]

    def children(self, node: int | None) -> list[Node]:
        """What was tried after a node, in the order it came; after None, the beginnings."""
        return [child for child in self.nodes if child.parent == node]

    def as_text(self) -> str:
        """The story on the current path."""
        return " ".join(node.sentence for node in self.story())

    def rows(self) -> list[tuple[int, int, Node]]:
        """The whole tree in reading order: indentation, number of the sentence in its story, node.

        The indentation grows only where there is more than one way on, so that a long story stays readable.
        """
        children: dict[int | None, list[Node]] = {}
        for node in self.nodes:
            children.setdefault(node.parent, []).append(node)
        found = []
        waiting = [(0, 1, node) for node in reversed(children.get(None, []))]
        while waiting:
            indent, number, node = waiting.pop()
            found.append((indent, number, node))
            ways = children.get(node.id, [])
            waiting += [(indent + (len(ways) > 1), number + 1, child) for child in reversed(ways)]
        return found

    def outline(self) -> list[tuple[str, int]]:
        """`rows` as lines of text with the id of their node; `●` marks the path that is the story, `→` its last sentence."""
        on_path = {node.id for node in self.path()}
        return [(_line(indent, number, node, self.current, on_path), node.id) for indent, number, node in self.rows()]

    # ------------------------------------------------------------------ growing

    def begin(self, prompt: str, lang: str) -> None:
        """Begin with the sentences of a prompt, beside earlier beginnings. ValueError when it holds none, or broken Unicode."""
        if not _is_unicode(prompt):
            raise ValueError(BROKEN)
        sentences = split_prompt(prompt, lang)
        self.prompt, self.lang, self.current = prompt, lang, None
        for sentence in sentences:
            self.add(sentence, lang, "prompt")

    def add(
        self,
        sentence: str,
        lang: str,
        by: By = "person",
        *,
        end_cosine: float | None = None,
        log_prob: float | None = None,
        stopped_by: StoppedBy | None = None,
    ) -> Node:
        """Let a sentence follow the current one and go there; where it already does, only go there.

        Raises ValueError for a blank sentence of a person's, for broken Unicode, and when the story has ended at the current one.
        """
        if not _is_unicode(sentence):
            raise ValueError(BROKEN)
        if by != "model" and not sentence.strip():  # a decoder may well say nothing
            raise ValueError("the sentence is blank; write at least a word")
        if self.current is not None and not self.nodes[self.current].told:
            raise ValueError("the story has ended here; go back a sentence to let it take another way")
        node = Node(len(self.nodes), self.current, sentence, lang, by, end_cosine, log_prob, stopped_by)
        for child in self.children(self.current):
            if (child.sentence, child.lang, child.told) == (node.sentence, node.lang, node.told):
                self.current = child.id
                return child
        self.nodes += (node,)
        self.current = node.id
        return node

    def add_step(self, step: Step, lang: str) -> Node:
        """Add what `rollout.tell` told."""
        return self.add(
            step.sentence, lang, "model", end_cosine=step.end_cosine, log_prob=step.log_prob, stopped_by=step.stopped_by
        )

    def add_candidate(self, candidate: Candidate, lang: str) -> Node:
        """Add one of `rollout.candidates`."""
        stopped: StoppedBy | None = "end" if candidate.ends else None
        return self.add(
            candidate.sentence, lang, "model", end_cosine=candidate.end_cosine, log_prob=candidate.log_prob, stopped_by=stopped
        )

    def edit(self, sentence: str) -> Node:
        """Say something else in place of the current sentence: a branch beside it, which stays. -> the new node.

        ValueError where there is no current sentence, and as in `add`.
        """
        old = self._here("there is no sentence to edit yet; tell one first")
        if sentence.strip() == old.sentence:
            return old
        self.current = old.parent
        try:
            return self.add(sentence.strip(), old.lang)
        except ValueError:
            self.current = old.id
            raise

    def back(self) -> Node:
        """Go to the sentence before the current one. ValueError at a beginning."""
        node = self._here("there is nothing to go back to yet; tell a sentence first")
        if node.parent is None:
            raise ValueError("this is where the story begins; there is no sentence before it")
        self.current = node.parent
        return self.nodes[node.parent]

    def go(self, node: int) -> Node:
        """Make any node the current one. ValueError for one that is not there."""
        if not 0 <= node < len(self.nodes):
            raise ValueError(f"there is no sentence {node} in this tree; it has {len(self.nodes)}, counted from 0")
        self.current = node
        return self.nodes[node]

    def _here(self, otherwise: str) -> Node:
        if self.current is None:
            raise ValueError(otherwise)
        return self.nodes[self.current]

    # ------------------------------------------------------------------ keeping

    def to_json(self) -> str:
        """The tree as JSON, one node a line."""
        data = {"format": FORMAT, **configs.to_dict(self)}
        nodes = data.pop("nodes")
        lines = ",\n".join("  " + json.dumps(node, ensure_ascii=False) for node in nodes)
        return f'{json.dumps(data, ensure_ascii=False, indent=1)[:-2]},\n "nodes": [\n{lines}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> StoryTree:
        """Read what `to_json` wrote. ValueError says what is wrong with anything else; text is only ever text."""
        try:
            data = parse_json(text)
            if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
                raise ValueError(f'expected an object with "format": "{FORMAT}"; this is not a story saved here')
            tree = configs.from_dict(cls, data)
        except (ValueError, OverflowError) as error:  # json's errors are ValueErrors too
            raise ValueError(f"not a story tree: {str(error)[:MESSAGE_LETTERS]}") from error
        tree._check()
        return tree

    def save(self, path: str | Path) -> None:
        """Write the tree as JSON, atomically. OSError as in `write_atomically`."""
        text = self.to_json()
        write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> StoryTree:
        """Read a tree from a file. OSError when it cannot be read, ValueError naming it and what is wrong in it."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:  # bytes that are no text, too
            raise ValueError(f"{path}: {error}") from error

    def _check(self) -> None:
        """What the types do not say: each node in its place, after its parent, and numbers that are some."""
        for place, node in enumerate(self.nodes):
            where = f"not a story tree: node {place}"
            if node.id != place:
                raise ValueError(f"{where} has the id {node.id}; a node's id is its place in the list")
            if node.parent is not None and not 0 <= node.parent < place:
                raise ValueError(f"{where} follows node {node.parent}; a node must follow one that stands before it")
            if node.parent is not None and not self.nodes[node.parent].told:
                raise ValueError(f"{where} follows node {node.parent}, where the story has ended")
            if (node.by != "model" and not node.sentence.strip()) or not _is_unicode(node.sentence + node.lang):
                raise ValueError(f"{where} has a sentence that is blank or no Unicode text")
            if not all(number is None or math.isfinite(number) for number in (node.end_cosine, node.log_prob)):
                raise ValueError(f"{where} has a cosine or a log-probability that is not finite")
        if self.current is not None and not 0 <= self.current < len(self.nodes):
            raise ValueError(f"not a story tree: the current node {self.current} is not among its {len(self.nodes)} nodes")
        if not math.isfinite(self.config.noise) or not math.isfinite(self.config.search.temperature):
            raise ValueError("not a story tree: noise and temperature must be finite")
        if not 0 <= self.seed < 2**63 or not _is_unicode(self.prompt + self.lang + (self.output_lang or "")):
            raise ValueError(
                "not a story tree: the seed must lie between 0 and 2**63 - 1, and prompt and languages be Unicode text"
            )


def _line(indent: int, number: int, node: Node, current: int | None, on_path: set[int]) -> str:
    mark = "→" if node.id == current else "●" if node.id in on_path else "·"
    notes = {"prompt": " (prompt)", "person": " (yours)", "model": ""}[node.by]
    stops = {None: "", "end": " (the end)", "loop": " (a repetition)"}.get(node.stopped_by, " (long enough)")
    sentence = " ".join(node.sentence.split())  # a line is a line
    return f"{'    ' * indent}{mark} {number}. {sentence}{notes}{stops}"


def _is_unicode(text: str) -> bool:
    """Whether text can be written as UTF-8; half of a surrogate pair cannot, and JSON can hold one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
