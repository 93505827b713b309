"""The story teller: let a model tell a story sentence by sentence, and steer it.

Wiring only: what it does is `models.rollout` (tell, candidates) and `models.story_tree`.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from sonarkit.explore.widgets.common import Caught, Panel, Status, Work
from sonarkit.models.rollout import Candidate, ConceptModel, RolloutConfig, candidates, tell
from sonarkit.models.story_tree import Node, StoryTree
from sonarkit.text.languages import check_language, resolve

PROMPT = "Once upon a time there was a little fox named Mia. She lived in the cottage, where the days were long and peaceful."
STOPS = {
    None: "Stopped; Tell goes on from here.",
    "end": "The end. Back and Candidates show other ways.",
    "loop": "Stopped at a sentence that was said before. Back and Candidates show other ways.",
    "max_sentences": "As long as allowed; raise the maximum to go on.",
}
STYLE = """<style>
.sk-teller .sk-candidates { flex-direction: column; align-items: stretch; }
.sk-teller .sk-candidates > .widget-label { font-weight: bold; text-align: left; margin: 8px 0 2px; }
.sk-teller .widget-radio-box label {
  display: flex; flex-direction: row-reverse; justify-content: flex-end; align-items: flex-start; gap: 8px;
  height: auto; white-space: normal; line-height: 1.4; margin-bottom: 4px;
}
.sk-teller .widget-radio-box input { flex: none; height: 18px; margin: 0; }
.sk-teller .sk-story table { width: 100%; border-collapse: collapse; line-height: 1.4; }
.sk-teller .sk-story th { font-weight: normal; opacity: 0.75; text-align: right; padding: 2px 8px; white-space: nowrap; }
.sk-teller .sk-story td { padding: 2px 8px; vertical-align: top; text-align: right; font-variant-numeric: tabular-nums; }
.sk-teller .sk-story .sk-said { text-align: left; width: 100%; }
.sk-teller .sk-story .sk-untold { opacity: 0.65; font-style: italic; }
.sk-teller .sk-story tr[aria-current] { box-shadow: inset 3px 0 #0072B2; }
.sk-teller a { text-decoration: underline; margin-left: 8px; }
.sk-teller h4 { margin: 8px 0 2px; }
</style>"""


class StoryTeller(Panel):
    """Tells a story with `model` as it is made, and lets its reader steer it.

    `tree` holds everything tried, `proposed` the candidates last asked for. Each button calls the method of its name;
    `tell` and `propose` work in the background, `wait` waits for them. What goes wrong is a sentence in `status`.
    A closed teller keeps its `tree`, which `save` still writes.
    UnknownLanguageError for a language that the model does not know.
    """

    let_go = ("model",)

    def __init__(
        self,
        model: ConceptModel,
        prompt: str = PROMPT,
        lang: str = "eng_Latn",
        output_lang: str | None = None,
        config: RolloutConfig = RolloutConfig(),
        seed: int = 0,
    ) -> None:
        lang = resolve(lang, model.sonar.languages)
        output_lang = resolve(output_lang, model.sonar.languages) if output_lang else None
        self.model = model
        self.tree = StoryTree(prompt, lang, output_lang, seed, config)
        self.proposed: list[Candidate] = []
        self._proposed_after: tuple[int, str] | None = None  # the node that they may follow, and their language
        self._showing = False  # we set the widgets now, not the user
        self._proposing = False
        self._shown = ""  # the sentence that stands in the box for it, unless the user has typed another
        self._build()
        self.status = Status()
        self.work = Work(self.status, self._enable)
        self._set_controls()
        super().__init__(self._layout())
        self.add_class("sk-teller")
        self._show()
        self._enable()

    # ------------------------------------------------------------------ what the buttons do

    def tell(self) -> None:
        """Tell on from the current sentence until the story ends or `stop` is called; from the prompt where it is new."""
        self.work.start(self._tell)

    def stop(self) -> None:
        """End telling after the sentence that is being made."""
        if self.work.busy and not self._proposing:
            self.status.say("Stopping after this sentence …")
        self.work.stop()

    def propose(self, count: int | None = None) -> None:
        """Look for several sentences that may come next; `choose` takes one."""
        self.work.start(lambda: self._propose(count or self.count.value))

    def choose(self, i: int) -> None:
        """Let candidate `i`, from 0, follow the sentence that it was proposed for, beside what already follows it."""
        self._do(lambda: self._choose(i), "Taken; another candidate makes another branch.")

    def edit(self, text: str) -> None:
        """Say `text` in place of the current sentence, which stays in the tree."""
        self._do(lambda: self.tree.edit(text), "Replaced; the old sentence stays among everything tried.")

    def say(self, text: str) -> None:
        """Let a sentence of one's own come next."""
        self._do(lambda: self._say(text), "Added; Tell goes on from here.")

    def back(self) -> None:
        """Go to the sentence before the current one."""
        self._do(self.tree.back, "One sentence back.")

    def go(self, node: int) -> None:
        """Go to any sentence of the tree, by its id."""
        self._do(lambda: self.tree.go(node), "Tell goes on from here.")

    def save(self, path: str | Path) -> None:
        """Write the tree to a JSON file."""
        self._do(lambda: self._save(path), f"Saved as {path}.")

    def load(self, path: str | Path) -> None:
        """Go on with the tree of a JSON file in place of the present one."""
        self._do(lambda: self._adopt(StoryTree.load(path)), f"Loaded {path}.")

    def wait(self, seconds: float = 60.0) -> None:
        """Until what was begun has ended; TimeoutError when it has not in `seconds`."""
        self.work.wait(seconds)

    # ------------------------------------------------------------------ how it is done

    def _do(self, action: Callable[[], object], said: str) -> None:
        """Something short, at once. An error becomes a sentence."""
        if self.work.busy:
            self.status.say("Still working; that has to end first.")
            return
        with Caught(self.status):
            action()
            self.status.say(said)
        self._show()

    def _begin(self) -> str:
        """Take over the settings, and the prompt where it is new. -> the language to tell in."""
        self._keep_settings()
        tree, prompt, lang = self.tree, self.prompt.value, self.lang.value
        if tree.current is None or (prompt, lang) != (tree.prompt, tree.lang):
            tree.begin(prompt, lang)
            self._show()
        if not tree.path()[-1].told:
            raise ValueError("the story has ended here; press Back to let it take another way")
        told, allowed = len(tree.story()), tree.config.max_sentences
        if told >= allowed:
            raise ValueError(f"the story has {told} sentences and may have {allowed}; raise the maximum or go back")
        return tree.output_lang or lang

    def _tell(self) -> None:
        self.status.say("Reading the story so far …")
        output_lang = self._begin()
        story, config = self.tree.story(), self.tree.config
        sentences, languages = [node.sentence for node in story], [node.lang for node in story]
        steps = tell(self.model, [sentences], [languages], config, output_lang=output_lang, seed=self.tree.seed)
        for number, step in enumerate(steps, len(story) + 1):
            self.tree.add_step(step, output_lang)
            self._show()
            if self.work.stopping or step.stopped_by:
                self.status.say(STOPS[step.stopped_by])
                return
            self.status.say(f"Sentence {number} of at most {config.max_sentences}", number, config.max_sentences)

    def _propose(self, count: int) -> None:
        self._proposing, self.stop_button.disabled = True, True  # it is one batch, and cannot be stopped
        try:
            self._look_for_candidates(count)
        finally:
            self._proposing = False

    def _look_for_candidates(self, count: int) -> None:
        self.status.say("Looking for candidates …")
        output_lang = self._begin()
        story, tree = self.tree.story(), self.tree
        self.proposed = candidates(
            self.model,
            [node.sentence for node in story],
            [node.lang for node in story],
            tree.config,
            count,
            output_lang=output_lang,
            seed=tree.seed,
        )
        self._proposed_after = (story[-1].id, output_lang)
        self._show()
        self._show_candidates(len(story) + 1)
        self.status.say(f"{len(self.proposed)} candidates; the first is what Tell would say.")

    def _choose(self, i: int) -> None:
        if self._proposed_after is None:
            raise ValueError("there are no candidates yet; press Candidates")
        if not 0 <= i < len(self.proposed):
            raise ValueError(f"there is no candidate {i}; there are {len(self.proposed)}, counted from 0")
        node, lang = self._proposed_after
        self.tree.go(node)
        self.tree.add_candidate(self.proposed[i], lang)

    def _say(self, text: str) -> None:
        output_lang = self._begin()
        self.tree.add(text.strip(), output_lang)

    def _save(self, path: str | Path) -> None:
        self._keep_settings()
        self.tree.save(path)

    def _adopt(self, tree: StoryTree) -> None:
        """Show another tree. ValueError, and nothing changes, for a language that this model does not know."""
        for code in {tree.lang, *filter(None, [tree.output_lang]), *(node.lang for node in tree.nodes)}:
            check_language(code, self.model.sonar.languages)
        self.tree, self.proposed, self._proposed_after = tree, [], None
        self._set_controls()
        self._show_candidates(0)

    def _upload(self, change: dict[str, Any]) -> None:
        if change["new"]:
            (file,) = change["new"]
            self._do(lambda: self._adopt(StoryTree.from_json(bytes(file["content"]).decode())), f"Loaded {file['name']}.")
            self.upload.value = ()  # so that the same file can be chosen again

    # ------------------------------------------------------------------ settings

    def _keep_settings(self) -> None:
        """From the controls into the tree. What has no control stays as it was."""
        search = replace(
            self.tree.config.search,
            beam_size=self.beam_size.value,
            sample=self.decoding.value == "sampling",
            temperature=self.temperature.value,
            top_k=self.top_k.value,
            top_p=self.top_p.value,
        )
        self.tree.config = replace(
            self.tree.config,
            max_sentences=self.max_sentences.value,
            end_threshold=self.threshold.value,
            noise=self.noise.value,
            search=search,
        )
        self.tree.output_lang, self.tree.seed = self.output_lang.value or None, self.seed.value

    def _set_controls(self) -> None:
        """From the tree into the controls."""
        tree, config, search = self.tree, self.tree.config, self.tree.config.search
        self.prompt.value, self.lang.value, self.output_lang.value = tree.prompt, tree.lang, tree.output_lang or ""
        self.decoding.value = "sampling" if search.sample else "beam search"
        self.beam_size.value, self.temperature.value = search.beam_size, search.temperature
        self.top_k.value, self.top_p.value = search.top_k, search.top_p
        self.threshold.value, self.max_sentences.value = config.end_threshold, config.max_sentences
        self.noise.value, self.seed.value = config.noise, tree.seed

    def _enable(self, busy: bool = False) -> None:
        """Only what applies can be used."""
        sampling = self.decoding.value == "sampling"
        self.beam_size.disabled = sampling
        self.temperature.disabled = self.top_k.disabled = self.top_p.disabled = not sampling
        for control in self._idle_only:
            control.disabled = busy
        self.stop_button.disabled = not busy
        self.take_button.disabled = busy or not self.proposed
        if not busy:
            self._show_file()

    # ------------------------------------------------------------------ showing

    def _show(self) -> None:
        """The story, the tree and the sentence to edit, as they are now."""
        self.story.value = story_html(self.tree.path())
        outline, current = self.tree.outline(), self.tree.current
        self._showing = True
        try:
            self.tree_select.options = outline
            self.tree_select.value = current
        finally:
            self._showing = False
        typed = self.sentence.value != self._shown
        self._shown = self.tree.nodes[current].sentence if current is not None else ""
        if not (typed and self.work.busy):
            self.sentence.value = self._shown
        if not self.work.busy:
            self._show_file()

    def _show_candidates(self, number: int) -> None:
        self.candidates.description = f"Candidates for sentence {number}"
        self.candidates.options = [(candidate_line(candidate), i) for i, candidate in enumerate(self.proposed)]
        self.candidates.value = 0 if self.proposed else None
        self.candidates.layout.display = None if self.proposed else "none"
        self.take_button.layout.display = None if self.proposed else "none"
        self.take_button.disabled = self.work.busy or not self.proposed

    def _show_file(self) -> None:
        """A link that holds the file: nothing is asked of the server."""
        data = base64.b64encode(self.tree.to_json().encode()).decode()
        self.link.value = f'<a download="story.json" href="data:application/json;base64,{data}">Download as story.json</a>'

    def _chosen(self, change: dict[str, Any]) -> None:
        if not self._showing and change["new"] is not None:
            self.go(change["new"])

    # ------------------------------------------------------------------ parts

    def _build(self) -> None:
        codes = self.model.sonar.languages
        self.prompt = _part("sk-prompt", widgets.Textarea(description="Prompt", rows=3, layout=_wide()))
        self.lang = _part("sk-lang", widgets.Dropdown(options=codes, description="Prompt language"))
        languages = [("as the prompt", ""), *((code, code) for code in codes)]
        self.output_lang = _part("sk-output-lang", widgets.Dropdown(options=languages, description="Told in"))
        self.decoding = _part("sk-decoding", widgets.Dropdown(options=["beam search", "sampling"], description="Decoding"))
        self.beam_size = widgets.BoundedIntText(min=1, max=64, description="Beam size")
        self.temperature = widgets.BoundedFloatText(min=0.05, max=10.0, step=0.05, description="Temperature")
        self.top_k = widgets.BoundedIntText(min=0, max=1_000_000, description="Top k (0: all)")
        self.top_p = widgets.BoundedFloatText(min=0.01, max=1.0, step=0.01, description="Top p")
        self.threshold = widgets.BoundedFloatText(min=-1.0, max=1.0, step=0.01, description="Stop threshold")
        self.max_sentences = widgets.BoundedIntText(min=2, max=1000, description="Max. sentences")
        self.noise = widgets.BoundedFloatText(min=0.0, max=5.0, step=0.05, description="Noise")
        self.seed = widgets.BoundedIntText(min=0, max=2**31 - 1, description="Seed")
        self.count = widgets.BoundedIntText(min=1, max=20, value=5, description="Candidates")
        self.threshold.tooltip = "The story ends when the cosine to the end vector exceeds this, or the prediction says the end"
        self.noise.tooltip = "Gaussian noise on each predicted vector, relative to its size"
        self._settings = [self.lang, self.output_lang, self.decoding, self.beam_size, self.temperature, self.top_k, self.top_p]
        self._settings += [self.threshold, self.max_sentences, self.noise, self.seed, self.count]
        for control in self._settings:
            control.style.description_width, control.layout.width = "115px", "auto"

        self.tell_button = _button("sk-tell", "Tell", self.tell, "primary")
        self.stop_button = _button("sk-stop", "Stop", self.stop, "warning")
        self.propose_button = _button("sk-propose", "Candidates", self.propose)
        self.back_button = _button("sk-back", "Back", self.back)
        self.candidates = _part("sk-candidates", widgets.RadioButtons(options=[], layout=_wide(display="none")))
        self.candidates.style.description_width = "initial"
        self.take_button = _button("sk-take", "Take this one", lambda: self.choose(self.candidates.value))
        self.take_button.layout.display = "none"
        self.story = _part("sk-story", widgets.HTML(layout=_wide()))
        self.sentence = _part("sk-edit", widgets.Textarea(description="Sentence", rows=2, layout=_wide()))
        self.replace_button = _button("sk-replace", "Say this instead", lambda: self.edit(self.sentence.value))
        self.say_button = _button("sk-say", "Say this next", lambda: self.say(self.sentence.value))
        self.tree_select = _part("sk-tree", widgets.Select(options=[], rows=10, description="Go to", layout=_wide()))
        self.file = _part("sk-file", widgets.Text("story.json", description="File"))
        self.save_button = _button("sk-save", "Save", lambda: self.save(self.file.value))
        self.load_button = _button("sk-load", "Load", lambda: self.load(self.file.value))
        self.upload = _part("sk-upload", widgets.FileUpload(accept=".json", description="Upload"))
        self.link = widgets.HTML()
        self._idle_only = [self.tell_button, self.propose_button, self.back_button, self.replace_button, self.say_button]
        self._idle_only += [self.tree_select, self.save_button, self.load_button, self.upload]

        self.decoding.observe(lambda change: self._enable(self.work.busy), "value")
        self.tree_select.observe(self._chosen, "value")
        self.upload.observe(self._upload, "value")

    def _layout(self) -> list[widgets.Widget]:
        columns = widgets.Layout(grid_template_columns="repeat(auto-fill, minmax(230px, 1fr))", width="99%")
        return [
            widgets.HTML(STYLE, layout=widgets.Layout(height="0", margin="0")),
            self.prompt,
            widgets.GridBox(self._settings, layout=columns),
            _row(self.tell_button, self.stop_button, self.propose_button, self.back_button),
            self.status,
            self.story,
            self.candidates,
            self.take_button,
            widgets.HTML("<h4>The sentence marked in blue</h4>"),
            self.sentence,
            _row(self.replace_button, self.say_button),
            widgets.HTML("<h4>Everything tried</h4>"),
            self.tree_select,
            _row(self.file, self.save_button, self.load_button, self.upload, self.link),
        ]


# ---------------------------------------------------------------------- what is written


def story_html(path: Sequence[Node]) -> str:
    """The story as a table: number, sentence, cosine to the end vector, and how sure the decoder was."""
    if not path:
        return "<p>Nothing is told yet.</p>"
    head = "<tr><th>#</th><th class='sk-said'>sentence</th><th>end cosine</th><th>sure</th></tr>"
    return f"<table>{head}{''.join(_row_html(number, node, path[-1]) for number, node in enumerate(path, 1))}</table>"


def _row_html(number: int, node: Node, current: Node) -> str:
    said = html.escape(node.sentence) + {"prompt": "", "person": " <i>(yours)</i>", "model": ""}[node.by]
    if not node.told:
        said += {"loop": " (a repetition)"}.get(node.stopped_by or "", " (the end)")
    cosine = "" if node.end_cosine is None else f"{node.end_cosine:z.2f}"
    sure = "" if node.log_prob is None else sureness(node.log_prob)
    here = " aria-current='true'" if node is current else ""
    kind = "sk-said" if node.told else "sk-said sk-untold"
    return f"<tr data-by='{node.by}'{here}><td>{number}</td><td class='{kind}'>{said}</td><td>{cosine}</td><td>{sure}</td></tr>"


def candidate_line(candidate: Candidate) -> str:
    """A candidate with its numbers, as plain text."""
    end = " (the end)" if candidate.ends else ""
    return f"{candidate.sentence}{end}  [end {candidate.end_cosine:z.2f}, sure {sureness(candidate.log_prob)}]"


def sureness(log_prob: float) -> str:
    """The (geometric) mean probability per token, in per cent."""
    return f"{math.exp(log_prob):.0%}"


# ---------------------------------------------------------------------- small parts


def _part(css_class: str, widget: Any) -> Any:
    widget.add_class(css_class)
    return widget


def _button(css_class: str, text: str, action: Callable[[], None], style: str = "") -> widgets.Button:
    button = widgets.Button(description=text, button_style=style)
    button.on_click(lambda _: action())
    return _part(css_class, button)


def _row(*parts: widgets.Widget) -> widgets.Box:
    return widgets.HBox(parts, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def _wide(**layout: str) -> widgets.Layout:
    return widgets.Layout(width="99%", **layout)
