"""The `sonarkit` command: a story, or SONAR's three verbs, from the shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from sonarkit.core.errors import UserErrors
from sonarkit.core.paths import notebooks_folder

EXAMPLES = """examples:
  sonarkit story "Once upon a time there was a little fox named Mia."
  sonarkit story --output-lang fra_Latn "One day, Tom found an old key."
  echo "One day, Tom found an old key." | sonarkit story --json
  sonarkit translate --source-lang eng_Latn --target-lang deu_Latn "A fox ran home."
  sonarkit encode stories.txt --out vectors.npy
  sonarkit decode vectors.npy --lang spa_Latn
  sonarkit lab
Languages are FLORES-200 codes; the shipped mini model speaks eng_Latn, fra_Latn, deu_Latn and spa_Latn.
`sonarkit COMMAND --help` tells the options of a command."""

Texts = Annotated[tuple[str, ...], tyro.conf.Positional]


def main() -> None:
    """Entry of the console script."""
    warnings.showwarning = _warn_in_one_line  # type: ignore[assignment]
    commands: dict[str, Callable[..., None]] = {
        "story": story,
        "encode": encode,
        "decode": decode,
        "translate": translate,
        "lab": lab,
    }
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__ + "\n\n" + EXAMPLES)
        return
    if sys.argv[1] == "--version":
        from sonarkit import __version__

        print(__version__)
        return
    with UserErrors():
        if sys.argv[1] not in commands:
            raise ValueError(f"unknown command {sys.argv[1]!r}; the commands are {', '.join(commands)}. Try sonarkit --help")
        tyro.cli(commands[sys.argv[1]], prog=f"sonarkit {sys.argv[1]}", args=sys.argv[2:])


def _warn_in_one_line(message: Warning | str, *_: object) -> None:
    print(f"sonarkit: note: {message}", file=sys.stderr)


def story(
    prompt: Texts = (),
    /,
    model: str = "mini",
    lang: str = "eng_Latn",
    output_lang: str | None = None,
    beam_size: int = 5,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    noise: float = 0.0,
    max_sentences: int = 32,
    end_threshold: float = 0.98,
    stop_on: Literal["predicted", "reencoded"] = "predicted",
    seed: int = 0,
    json: bool = False,
) -> None:
    """Tell a story from its beginning, sentence by sentence as they are made.

    sonarkit story "Once upon a time there was a little fox named Mia."

    Args:
        prompt: The beginning, one or more sentences; a file's name; or - or nothing for standard input.
        model: "mini" or the folder of a trained SONAR-LLM.
        lang: Language of the beginning.
        output_lang: Language to tell the story in, if another.
        beam_size: Beams when decoding a vector; 1 is greedy.
        sample: Draw the words of a sentence at random instead.
        temperature: For --sample; below 1 bolder words are rarer.
        top_k: For --sample; draw among the k likeliest words only.
        top_p: For --sample; draw within this share of the probability.
        noise: Noise on each predicted vector, relative to its size (try 0.2): another story each seed.
        max_sentences: Stop here at the latest, the beginning included.
        end_threshold: Cosine to the end vector above which the story is over.
        stop_on: Which vector that cosine is of.
        seed: For --sample and --noise.
        json: One JSON object with sentences, what stopped it, and each step's numbers.
    """
    text = " ".join(_texts(prompt, lines=False))
    from sonarkit.codec.search import SearchConfig
    from sonarkit.models.rollout import RolloutConfig, collect, split_prompt, tell
    from sonarkit.models.sonar_llm import SonarLLM

    llm = SonarLLM.from_pretrained(model)
    search = SearchConfig(beam_size, sample=sample, temperature=temperature, top_k=top_k, top_p=top_p)
    config = RolloutConfig(max_sentences, end_threshold, stop_on, noise=noise, search=search)
    head = split_prompt(text, lang)
    steps = []
    if not json:
        opening = llm.sonar.translate(head, lang, output_lang) if output_lang not in (None, lang) else head
        print(" ".join(opening), flush=True)
    for step in tell(llm, [head], lang, config, output_lang=output_lang, seed=seed):
        steps.append(step)
        if not json and step.stopped_by in (None, "max_sentences"):
            print(step.sentence, flush=True)
    if json:
        told = collect(llm.sonar, text, head, lang, steps, output_lang)
        _print_json(
            {
                "prompt": text,
                "lang": lang,
                "output_lang": output_lang or lang,
                "text": told.text,
                "sentences": told.sentences,
                "prompt_sentences": told.prompt_sentences,
                "stopped_by": told.stopped_by,
                "steps": [{"sentence": s.sentence, "end_cosine": s.end_cosine, "log_prob": s.log_prob} for s in steps],
            }
        )


def encode(
    texts: Texts = (), /, model: str = "mini", lang: str = "eng_Latn", out: Path | None = None, json: bool = False
) -> None:
    """Sentences to vectors, one per line of the input.

    sonarkit encode "A fox ran home." --json
    sonarkit encode sentences.txt --out vectors.npy

    Args:
        texts: Sentences, or a file with one a line; - or nothing for standard input.
        model: "mini" or the folder of a codec.
        lang: Their language.
        out: Write the vectors there, (n, D) float32 in NumPy's format.
        json: One JSON object a sentence: {"text": ..., "embedding": [...]}.
    """
    if out is None and not json:
        raise ValueError("where should the vectors go? --out vectors.npy writes a file, --json prints them")
    lines = _texts(texts)
    from sonarkit.codec.pipeline import Sonar

    vectors = Sonar.from_pretrained(model).encode(lines, lang, progress=sys.stderr.isatty()).numpy()
    if out is not None:
        _save_npy(out, vectors)
        print(f"{out}: {len(lines)} vectors of width {vectors.shape[1]}", file=sys.stderr)
    if json:
        for text, vector in zip(lines, vectors):
            _print_json({"text": text, "embedding": [round(float(x), 6) for x in vector]})


def decode(
    vectors: Annotated[str, tyro.conf.Positional] = "-",
    /,
    model: str = "mini",
    lang: str = "eng_Latn",
    beam_size: int = 5,
    json: bool = False,
) -> None:
    """Vectors to sentences, one a line.

    sonarkit decode vectors.npy --lang spa_Latn
    sonarkit encode --json "A fox ran home." | sonarkit decode --lang fra_Latn

    Args:
        vectors: A .npy file of shape (n, D), or JSON lines with "embedding" (- or nothing for standard input).
        model: "mini" or the folder of a codec.
        lang: The language to decode into.
        beam_size: Beams; 1 is greedy.
        json: One JSON object a vector: {"text": ..., "log_prob": ...}.
    """
    array = _read_vectors(vectors)
    import torch

    from sonarkit.codec.pipeline import Sonar
    from sonarkit.codec.search import SearchConfig

    sonar = Sonar.from_pretrained(model)
    found = sonar.search(torch.from_numpy(array), lang, SearchConfig(beam_size), progress=sys.stderr.isatty())
    for best in (hypotheses[0] for hypotheses in found):
        text = sonar.tokenizer.decode(best.ids)
        _print_json({"text": text, "log_prob": best.score}) if json else print(text)


def translate(
    texts: Texts = (),
    /,
    source_lang: str = "eng_Latn",
    target_lang: str = "fra_Latn",
    model: str = "mini",
    beam_size: int = 5,
    json: bool = False,
) -> None:
    """Translate sentences by encoding them in one language and decoding in another.

    sonarkit translate --target-lang deu_Latn "A fox ran home."
    sonarkit translate --source-lang fra_Latn --target-lang eng_Latn < phrases.txt

    Args:
        texts: Sentences, or a file with one a line; - or nothing for standard input.
        source_lang: Their language.
        target_lang: The language wanted.
        model: "mini" or the folder of a codec.
        beam_size: Beams; 1 is greedy.
        json: One JSON object a sentence: {"source": ..., "text": ...}.
    """
    lines = _texts(texts)
    from sonarkit.codec.pipeline import Sonar

    for source, text in zip(lines, Sonar.from_pretrained(model).translate(lines, source_lang, target_lang, beam_size=beam_size)):
        _print_json({"source": source, "text": text}) if json else print(text)


def lab(folder: Path = Path("sonarkit-notebooks"), browser: bool = True) -> None:
    """Open JupyterLab on a working copy of the notebooks.

    sonarkit lab

    Args:
        folder: Where the working copy lies; notebooks that are there already are kept.
        browser: Open a browser window.
    """
    copied = copy_notebooks(notebooks_folder(), folder)
    print(f"{folder}: {copied} notebooks copied, those that were there are kept", file=sys.stderr)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={folder.resolve()}",
        *([] if browser else ["--no-browser"]),
    ]
    raise SystemExit(subprocess.call(command))


def copy_notebooks(source: Path, target: Path) -> int:
    """Copy the notebooks that `target` does not have yet; returns how many."""
    target.mkdir(parents=True, exist_ok=True)
    missing = [path for path in sorted(source.glob("*.ipynb")) if not (target / path.name).exists()]
    for path in missing:
        shutil.copyfile(path, target / path.name)
    return len(missing)


# ---------------------------------------------------------------------- input and output


def _texts(arguments: Sequence[str], lines: bool = True) -> list[str]:
    """The texts a command works on: its arguments, the file they name, or standard input; a text per line."""
    if list(arguments) in ([], ["-"]):
        if sys.stdin.isatty():
            raise ValueError("no text: give it as an argument, name a file, or pipe it in")
        text, source = sys.stdin.buffer.read(), "standard input"
    elif len(arguments) == 1 and len(arguments[0]) < 4096 and "\0" not in arguments[0] and os.path.isfile(arguments[0]):
        text, source = Path(arguments[0]).read_bytes(), arguments[0]
    else:
        return list(arguments)
    decoded = []
    for number, line in enumerate(text.splitlines(keepends=not lines), 1):
        try:
            decoded.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{source}:{number}: not valid UTF-8 (byte {line[error.start]:#04x}); convert it, such as with iconv"
            ) from error
    return [line for line in decoded if line.strip()] if lines else ["".join(decoded)]


def _read_vectors(name: str) -> np.ndarray:
    if name.endswith(".npy"):
        try:
            array = np.load(name, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{name} is no whole .npy file of numbers ({error})") from error
    else:
        try:
            array = np.array([json.loads(line)["embedding"] for line in _texts([name])])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'expected a .npy file or JSON lines with an "embedding" of one width each ({error})') from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers of shape (n, D), got shape {array.shape} and type {array.dtype}")
    return array.astype(np.float32)


def _save_npy(path: Path, array: np.ndarray) -> None:
    from sonarkit.core.checkpoint import write_atomically

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.save(file, array)

    write_atomically(path, write)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
