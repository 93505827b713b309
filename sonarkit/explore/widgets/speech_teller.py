"""The speech teller: a recording is heard, read in several languages, and begins a story.

Wiring only: what it does is `codec.speech.encode_recording` and `Sonar.decode`; below it stands the story teller.
"""

from __future__ import annotations

import html
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np

from sonarkit.codec.audio import RATE, load
from sonarkit.codec.speech import Recording, encode_recording
from sonarkit.explore.widgets.common import Panel, Status, Work
from sonarkit.explore.widgets.story_teller import StoryTeller
from sonarkit.models.rollout import ConceptModel, RolloutConfig
from sonarkit.text.languages import resolve
from sonarkit.text.speech_data import soundfile


class SpeechTeller(Panel):
    """Hears recordings with the speech encoder of `model.sonar`, and lets the first of `languages` begin a story.

    `hear` works in the background, `wait` waits for it; `recording` is then what was heard, `said` its sentences by language,
    and the prompt of `teller`, a `StoryTeller`, the sentences in the first of them. What goes wrong is a sentence in `status`.
    ValueError for a codec without a speech encoder, UnknownLanguageError.
    """

    let_go = ("sonar", "encoder")

    def __init__(
        self, model: ConceptModel, languages: Sequence[str] = ("eng_Latn",), config: RolloutConfig = RolloutConfig()
    ) -> None:
        self.sonar, self.encoder = model.sonar, model.sonar.speech
        self.languages = [resolve(code, model.sonar.languages) for code in languages]
        self.recording: Recording | None = None
        self.said: dict[str, list[str]] = {}
        self.upload = widgets.FileUpload(accept="audio/*,.wav,.flac,.ogg,.mp3", description="A recording")
        self.upload.add_class("sk-recording")
        self.upload.observe(self._uploaded, "value")
        self.player = widgets.Audio(autoplay=False, loop=False, layout=widgets.Layout(display="none"))
        self.heard = widgets.HTML(layout=widgets.Layout(width="100%"))
        self.heard.add_class("sk-heard")
        self.status = Status()
        self.work = Work(self.status, self._enable)
        self.teller = StoryTeller(model, "", self.languages[0], config=config)
        super().__init__([self.upload, self.player, self.heard, self.status, self.teller])

    def hear(self, audio: str | Path | np.ndarray) -> None:
        """Listen to a sound file, or to samples at 16 kHz, in place of what was heard before."""
        self.work.start(lambda: self._hear(audio))

    def wait(self, seconds: float = 60.0) -> None:
        """Until what was begun has ended; TimeoutError when it has not in `seconds`."""
        self.work.wait(seconds)

    def _hear(self, audio: str | Path | np.ndarray) -> None:
        self.status.say("Listening …")
        samples = load(audio)
        recording = encode_recording(self.encoder, samples)
        said = {}
        for number, code in enumerate(self.languages):
            self.status.say(f"Reading it in {code} …", number, len(self.languages))
            said[code] = self.sonar.decode(recording.vectors, code)
        self.recording, self.said = recording, said
        self.player.value, self.player.format, self.player.layout.display = wav(samples), "wav", None
        self.heard.value = heard_html(recording.spans, said)
        self.teller.prompt.value, self.teller.lang.value = " ".join(said[self.languages[0]]), self.languages[0]
        many = len(recording.spans)
        self.status.say(f"{many} sentence{'s' * (many > 1)} heard; Tell goes on from there.")

    def _uploaded(self, change: dict[str, Any]) -> None:
        if not change["new"]:
            return
        (file,) = change["new"]
        self.upload.value = ()  # so that the same file can be chosen again
        self.work.start(lambda: self._hear_file(Path(file["name"]).name, bytes(file["content"])))

    def _hear_file(self, name: str, content: bytes) -> None:
        """The bytes of a sound file, under its name: errors tell it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._hear(path)

    def _enable(self, busy: bool) -> None:
        self.upload.disabled = busy


def wav(samples: np.ndarray) -> bytes:
    """(n,) samples at 16 kHz as a WAV file."""
    file = io.BytesIO()
    soundfile().write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def heard_html(spans: Sequence[tuple[float, float]], said: Mapping[str, Sequence[str]]) -> str:
    """A table: when each sentence was said, and what it says in each language."""
    head = "".join(f"<th scope='col'>{html.escape(code)}</th>" for code in ("seconds", *said))
    rows = ""
    for (start, end), sentences in zip(spans, zip(*said.values())):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in (f"{start:.1f} to {end:.1f}", *sentences))
        rows += f"<tr>{cells}</tr>"
    return f"<table><caption>What was heard</caption><tr>{head}</tr>{rows}</table>"
