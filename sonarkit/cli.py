"""The `sonarkit` command: a story, SONAR's three verbs, or a codec and models measured, from the shell."""

from __future__ import annotations

import errno
import gzip
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, cast

import numpy as np
import tyro

from sonarkit.core.errors import discard_output, printable, user_errors
from sonarkit.core.foreign import LONGEST_LINE, bounded_lines, parse_json
from sonarkit.core.paths import notebooks_folder

if TYPE_CHECKING:
    import torch

    from sonarkit.codec.pipeline import Sonar

EXAMPLES = """examples:
  sonarkit story "Once upon a time there was a little fox named Mia."
  sonarkit story --output-lang fra_Latn "One day, Tom found an old key."
  echo "One day, Tom found an old key." | sonarkit story --json
  sonarkit translate --source-lang eng_Latn --target-lang deu_Latn "Zoe came to the lake too and waved at Otto."
  sonarkit encode sentences.txt --out vectors.npy
  sonarkit decode vectors.npy --lang spa_Latn
  sonarkit convert codec --encoder sonar_text_encoder.pt --decoder sonar_text_decoder.pt --tokenizer sentencepiece.model
  sonarkit evaluate codec mini --on storyworld:test --every 10
  sonarkit evaluate stories mini runs/mse-lcm/final --on storyworld:test --count 100
  sonarkit evaluate speech sonar --speech fr --on speech.tsv
  sonarkit lab

Languages are FLORES-200 codes; the shipped mini model speaks eng_Latn, fra_Latn, deu_Latn and spa_Latn.
`sonarkit COMMAND --help` tells the options of a command."""

Texts = Annotated[tuple[str, ...], tyro.conf.Positional]
Dtype = Literal["float32", "bfloat16"]
AT_ONCE = 512  # sentences that are decoded, or files that are heard, before the first of them is told


def main() -> None:
    """Entry of the console script."""
    commands: dict[str, Callable[..., None]] = {
        "story": story,
        "encode": encode,
        "decode": decode,
        "translate": translate,
        "convert": convert,
        "evaluate": evaluate_codec,
        "lab": lab,
    }
    if isinstance(sys.stdout, io.TextIOWrapper):  # stories have letters that not every locale can print
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    with user_errors():
        if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
            print(__doc__ + "\n\n" + EXAMPLES)
        elif sys.argv[1] == "--version":
            from sonarkit import __version__

            print(__version__)
        elif sys.argv[1] == "evaluate":  # a command of commands
            what = "".join(sys.argv[2:3])
            if what in ("-h", "--help"):
                print("Measure a codec or models. `sonarkit evaluate WHAT --help` tells the options; WHAT is\n")
                print(
                    *(f"  {name:10} {inspect.cleandoc(one.__doc__ or '').splitlines()[0]}" for name, one in EVALUATIONS.items()),
                    sep="\n",
                )
                return
            if what not in EVALUATIONS:
                raise ValueError(f"evaluate what? {', '.join(EVALUATIONS)}; try sonarkit evaluate codec --help")
            _run(EVALUATIONS[what], f"evaluate {what}", sys.argv[3:])
        elif sys.argv[1] in commands:
            _run(commands[sys.argv[1]], sys.argv[1], sys.argv[2:])
        else:
            raise ValueError(f"unknown command {sys.argv[1]!r}; the commands are {', '.join(commands)}. Try sonarkit --help")


def _run(command: Callable[..., None], name: str, arguments: list[str]) -> None:
    """Parse the arguments and call the command. Its help begins with its docstring, line breaks kept."""
    description = inspect.cleandoc(command.__doc__ or "").split("\nArgs:")[0]
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.PositionalMetavarFromFieldName)
    tyro.cli(command, prog=f"sonarkit {name}", description=description, args=arguments, config=markers)


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
    audio: Path | None = None,
    speech: str = "mini",
    device: str = "cpu",
    json: bool = False,
) -> None:
    """Tell a story from its beginning, sentence by sentence as they are made.

    examples:

        sonarkit story "Once upon a time there was a little fox named Mia."
        sonarkit story --output-lang deu_Latn "One day, Tom found an old key."
        sonarkit story --noise 0.2 --seed 7 beginning.txt
        echo "One day, Tom found an old key." | sonarkit story --json
        sonarkit story --audio beginning.wav --lang eng_Latn

    Args:
        prompt: The beginning, one or more sentences; a file's name; or - or nothing for standard input
        model: "mini" or the folder of a trained SONAR-LLM.
        lang: Language of the beginning: a FLORES-200 code, or what means one, such as `fr` and `French`.
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
        audio: A recording of the beginning instead, cut at its silences and understood sentence by sentence.
        speech: For --audio; "mini" or the folder of a speech encoder, or a language beside Meta's weights.
        device: Where to compute: cpu, cuda.
        json: Print one JSON object with sentences, what stopped it, and each step's numbers.
    """
    if audio is not None and prompt:
        raise ValueError("the beginning is either a text or --audio, not both")
    if not sample and (temperature, top_k, top_p) != (1.0, 0, 1.0):
        raise ValueError("--temperature, --top-k and --top-p are of --sample, and beam search has no use for them: add --sample")
    text = "" if audio else " ".join(_texts(prompt))
    from sonarkit.codec.search import SearchConfig
    from sonarkit.core.distributed import checked_device
    from sonarkit.models.rollout import RolloutConfig, collect, split_prompt, tell
    from sonarkit.models.sonar_llm import SonarLLM
    from sonarkit.text.languages import resolve

    search = SearchConfig(beam_size, sample=sample, temperature=temperature, top_k=top_k, top_p=top_p)
    config = RolloutConfig(max_sentences, end_threshold, stop_on, noise=noise, search=search)
    llm = SonarLLM.from_pretrained(model, device=checked_device(device))
    lang = resolve(lang, llm.sonar.languages)
    output_lang = resolve(output_lang, llm.sonar.languages) if output_lang else lang
    head = _heard(llm.sonar, audio, speech, lang, beam_size) if audio else split_prompt(text, lang)
    text = text or " ".join(head)
    steps = []
    if not json:
        opening = llm.sonar.translate(head, lang, output_lang) if output_lang != lang else head
        _print_line(" ".join(opening))
    for step in tell(llm, [head], lang, config, output_lang=output_lang, seed=seed):
        steps.append(step)
        if not json and step.stopped_by in (None, "max_sentences"):
            _print_line(step.sentence)
    if json:
        told = collect(llm.sonar, text, head, lang, steps, output_lang)
        _print_json(
            {
                "prompt": text,
                "lang": lang,
                "output_lang": output_lang,
                "text": told.text,
                "sentences": told.sentences,
                "prompt_sentences": told.prompt_sentences,
                "stopped_by": told.stopped_by,
                "steps": [{"sentence": s.sentence, "end_cosine": s.end_cosine, "log_prob": s.log_prob} for s in steps],
            }
        )


def encode(
    texts: Texts = (),
    /,
    model: str = "mini",
    lang: str = "eng_Latn",
    out: Path | None = None,
    audio: bool = False,
    speech: str = "mini",
    json: bool = False,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Sentences to vectors, one per line of the input, which may be of any length; blank lines are left out.

    What must not be begun again after an hour belongs into a store: sonarkit/encode.py.

    examples:

        sonarkit encode sentences.txt --out vectors.npy
        sonarkit encode --json "Zoe came to the lake too and waved at Otto." "Mia found a red kite."
        sonarkit encode --lang fra_Latn --json < phrases.txt
        sonarkit encode --audio --out vectors.npy *.wav

    Args:
        texts: Sentences, or a file with one a line; - or nothing for standard input.
        model: "mini", "sonar", "sonar-finetuned" or the folder of a codec.
        lang: Their language.
        out: Write the vectors there, (n, D) float32 in NumPy's format.
        audio: The texts are names of sound files, an utterance each; "text" in the output is the name.
        speech: For --audio; "mini" or the folder of a speech encoder, or a language beside Meta's weights.
        json: Print one JSON object a sentence: {"text": ..., "embedding": [...]}.
        device: Where to compute: cpu, cuda, mps.
        dtype: In what; bfloat16 is several times faster where the device has it, with a cosine of 0.9999 to float32's vectors.
    """
    _ready(out)
    if out is None and not json:
        raise ValueError("where should the vectors go? --out vectors.npy writes a file, --json prints them")
    lines = iter(texts) if audio else _lines(texts)
    if audio and not texts:
        raise ValueError("--audio needs the names of sound files")
    lines = chain([next(lines)], lines)  # no model is loaded for want of a line
    from sonarkit.codec.pipeline import Sonar

    sonar = Sonar.from_pretrained(model, *_where(device, dtype), speech=speech if audio else None)
    lines, printed = tee(lines)
    progress = sys.stderr.isatty() and not (json and sys.stdout.isatty())

    def blocks() -> Iterator[np.ndarray]:
        """The vectors, in the memory that a few thousand take; printed as they come."""
        heard = (sonar.encode_speech(names, progress=progress) for names in _blocks(lines, AT_ONCE))
        show = json
        for block in heard if audio else sonar.encode_stream(lines, lang, progress=progress):
            vectors = block.cpu().numpy()
            for text, vector in zip(islice(printed, len(vectors)), vectors):
                try:
                    if show:
                        _print_json({"text": text, "embedding": [round(float(x), 6) for x in vector]})
                except BrokenPipeError:  # `| head`; a file is to be written all the same
                    if out is None:
                        raise
                    discard_output()
                    show = False
            yield vectors

    if out is None:
        deque(blocks(), maxlen=0)
    else:
        count = _save_npy(out, sonar.config.width, blocks())
        print(f"{out}: {count} vectors of width {sonar.config.width}", file=sys.stderr)


def _heard(sonar: Sonar, audio: Path, speech: str, lang: str, beam_size: int) -> list[str]:
    """The sentences of a recording, as the codec understands them in `lang`."""
    from sonarkit.codec.pipeline import load_speech

    sonar.add_speech(load_speech(speech, sonar.config.width, sonar.device))
    return sonar.decode(sonar.encode_recording(audio).vectors, lang, beam_size=beam_size)


def decode(
    vectors: Annotated[str, tyro.conf.Positional] = "-",
    /,
    model: str = "mini",
    lang: str = "eng_Latn",
    beam_size: int = 5,
    json: bool = False,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Vectors to sentences, one a line, as they come.

    examples:

        sonarkit decode vectors.npy --lang spa_Latn
        sonarkit encode --json "Zoe came to the lake too and waved at Otto." | sonarkit decode --lang fra_Latn

    Args:
        vectors: A .npy file of shape (n, D), or JSON lines with "embedding" (- or nothing for standard input).
        model: "mini", "sonar", "sonar-finetuned" or the folder of a codec.
        lang: The language to decode into.
        beam_size: Beams; 1 is greedy.
        json: Print one JSON object a vector: {"text": ..., "log_prob": ...}.
        device: Where to compute: cpu, cuda, mps.
        dtype: In what; bfloat16 is several times faster where the device has it.
    """
    array = _read_vectors(vectors)
    import torch

    from sonarkit.codec.pipeline import Sonar
    from sonarkit.codec.search import SearchConfig

    sonar, config = Sonar.from_pretrained(model, *_where(device, dtype)), SearchConfig(beam_size)
    for start in range(0, len(array), AT_ONCE):
        block = torch.from_numpy(array[start : start + AT_ONCE].astype(np.float32))
        for hypotheses in sonar.search(block, lang, config, progress=sys.stderr.isatty()):
            text = sonar.tokenizer.decode(hypotheses[0].ids)
            _print_json({"text": text, "log_prob": hypotheses[0].mean_log_prob}) if json else _print_line(text)


def translate(
    texts: Texts = (),
    /,
    source_lang: str = "eng_Latn",
    target_lang: str = "fra_Latn",
    model: str = "mini",
    beam_size: int = 5,
    json: bool = False,
    device: str = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Translate sentences by encoding them in one language and decoding in another; blank lines are left out.

    examples:

        sonarkit translate --target-lang deu_Latn "Zoe came to the lake too and waved at Otto."
        sonarkit translate --source-lang fra_Latn --target-lang eng_Latn < phrases.txt

    Args:
        texts: Sentences, or a file with one a line; - or nothing for standard input.
        source_lang: Their language.
        target_lang: The language wanted.
        model: "mini", "sonar", "sonar-finetuned" or the folder of a codec.
        beam_size: Beams; 1 is greedy.
        json: Print one JSON object a sentence: {"source": ..., "text": ...}.
        device: Where to compute: cpu, cuda, mps.
        dtype: In what; bfloat16 is several times faster where the device has it.
    """
    lines = _lines(texts)
    lines = chain([next(lines)], lines)  # no model is loaded for want of a line
    from sonarkit.codec.pipeline import Sonar

    sonar, progress = Sonar.from_pretrained(model, *_where(device, dtype)), sys.stderr.isatty()
    for block in _blocks(lines, AT_ONCE):
        told = sonar.translate(block, source_lang, target_lang, beam_size=beam_size, progress=progress)
        for source, text in zip(block, told):
            _print_json({"source": source, "text": text}) if json else _print_line(text)


def convert(
    out: Annotated[Path, tyro.conf.Positional],
    /,
    codec: str | None = None,
    encoder: str | None = None,
    decoder: str | None = None,
    nllb: str | None = None,
    tokenizer: Path | None = None,
    heads: int | None = None,
    pooling: Literal["mean", "max", "last"] | None = None,
    to: Literal["sonarkit", "meta"] = "sonarkit",
    dtype: Literal["float32", "float16", "bfloat16"] = "float16",
) -> None:
    """Turn the weights of a SONAR codec from any published layout into ours, or into Meta's.

    examples:

        sonarkit convert codec --encoder sonar_text_encoder.pt --decoder sonar_text_decoder.pt --tokenizer sentencepiece.model
        sonarkit convert codec --encoder cointegrated/SONAR_200_text_encoder --decoder raxtemur/SONAR_200_text_decoder
        sonarkit convert start --nllb facebook/nllb-200-distilled-600M
        sonarkit convert for-meta --codec mini --to meta

    Args:
        out: The folder to write.
        codec: "mini", "sonar", "sonar-finetuned" or a folder of ours.
        encoder: Meta's .pt file, or a Hugging Face folder or repository.
        decoder: The other half, alike.
        nllb: A Hugging Face folder or repository of NLLB, as the beginning of a codec.
        tokenizer: The SentencePiece model; Hugging Face folders have their own.
        heads: Attention heads of Meta's files, which do not tell them; 16 unless told.
        pooling: How the encoder of Meta's files pools, which they tell of attention only; mean unless told.
        to: "sonarkit" writes config.json, model.safetensors and the tokenizer; "meta" what sonar-space reads.
        dtype: Of the weights in our layout; Meta's are float32.
    """
    if sum(source is not None for source in (codec, encoder, nllb)) != 1 or (encoder is None) != (decoder is None):
        raise ValueError("name one source: --codec NAME, or --encoder E with --decoder D, or --nllb N")
    if encoder is not None and Path(encoder).is_file() and tokenizer is None:
        raise ValueError("Meta's .pt files come without their tokenizer: add --tokenizer sentencepiece.source.256000.model")
    if (heads or pooling) and not (encoder is not None and Path(encoder).is_file()):
        raise ValueError("--heads and --pooling are for Meta's .pt files; every other source tells its own")
    import torch

    from sonarkit.codec.pipeline import Sonar
    from sonarkit.codec.weights import ShapeHints

    kept = torch.float32 if to == "meta" else getattr(torch, dtype)
    if codec is not None:
        sonar = Sonar.from_pretrained(codec, dtype=kept)
    elif nllb is not None:
        sonar = Sonar.from_nllb(nllb, tokenizer, dtype=kept)
    elif encoder is not None and decoder is not None and Path(encoder).is_file():
        assert tokenizer is not None
        sonar = Sonar.from_meta(encoder, decoder, tokenizer, hints=ShapeHints(heads or 16, pooling=pooling or "mean"), dtype=kept)
    else:
        assert encoder is not None and decoder is not None
        sonar = Sonar.from_huggingface(encoder, decoder, tokenizer, dtype=kept)
    sonar.save_meta(out) if to == "meta" else sonar.save_pretrained(out, kept)
    shape = f"{sonar.config.encoder.layers} + {sonar.config.decoder.layers} layers, D = {sonar.config.width}"
    print(f"{out}: {sum(p.numel() for p in sonar.parameters()) / 1e6:.1f}M parameters, {shape}", file=sys.stderr)


def evaluate_codec(
    model: Annotated[str, tyro.conf.Positional] = "mini",
    /,
    on: str = "storyworld:test",
    langs: tuple[str, ...] = (),
    pivot: str = "eng_Latn",
    every: int = 1,
    beam_size: int = 5,
    noise: tuple[float, ...] = (),
    every_direction: bool = False,
    seed: int = 0,
    no_spbleu: bool = False,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Measure a codec: what comes back, translation from and into a pivot language, xsim and xsim++, and its space.

    examples:

        sonarkit evaluate codec mini --on storyworld:test --every 10
        sonarkit evaluate codec mini --on handwritten --langs en de --noise 0 0.1 0.2 0.5
        sonarkit evaluate codec sonar --on flores200_dataset --device cuda --out sonar.json
        sonarkit evaluate codec mini --on tatoeba_eng_deu.jsonl.gz@held-out
        sonarkit evaluate codec mini --every 20 --every-direction

    Args:
        model: "mini", "sonar", "sonar-finetuned" or the folder of a codec.
        on: storyworld:test, :valid or :unseen; handwritten; an aligned file, or FILE@held-out for what training leaves out
            of it; a folder of FLORES-200 or FLORES+, or FOLDER@dev.
        langs: Only these languages; else all of the set that the codec has.
        pivot: The language that is translated from and into and searched for. xsim++ needs English.
        every: Take every n-th row.
        beam_size: Beams when decoding; 1 is greedy.
        noise: Also decode the pivot's vectors with such noise, relative to their size; must begin with 0.
        every_direction: Instead of the table: BLEU from every language into every other, and xsim of each pair.
        seed: For --noise and for the hard negatives of xsim++.
        no_spbleu: BLEU by sacrebleu's own tokenizers, and nothing is fetched.
        device: Where to compute: cpu, cuda.
        out: Also write all numbers there as JSON, with signatures, the codec's fingerprint and the time it took.
    """
    _ready(out)
    from sonarkit.core.distributed import checked_device
    from sonarkit.evaluation.sets import rows_of, spoken

    if noise and (noise[0] != 0 or list(noise) != sorted(noise)):
        raise ValueError(f"noise levels must begin with 0 and rise, got {' '.join(map(str, noise))}")
    of_the_table = {"--noise": bool(noise), "--pivot": pivot != "eng_Latn", "--seed": seed != 0}
    if every_direction and any(of_the_table.values()):
        which = " and ".join(option for option, given in of_the_table.items() if given)
        raise ValueError(f"{which}: of the table that --every-direction replaces; ask for one after the other")
    rows = rows_of(on, langs, every)  # no model is loaded for want of a row
    from sonarkit.codec.pipeline import Sonar
    from sonarkit.evaluation.codec import codec_report
    from sonarkit.evaluation.report import evaluate_codec, table_of

    sonar = Sonar.from_pretrained(model, checked_device(device))
    rows, began = rows if langs else spoken(rows, sonar.languages), time.monotonic()
    if every_direction:
        found = codec_report(sonar, rows, beam_size=beam_size)
        shown = "\n".join(f"{name:32s} {value:8.3f}" for name, value in found.items())
        report: dict[str, Any] = {"fingerprint": sonar.fingerprint(), "beam_size": beam_size, **found}
    else:
        asked: dict[str, Any] = {"pivot": pivot, "beam_size": beam_size, "spbleu": not no_spbleu, "noise": noise, "seed": seed}
        report = evaluate_codec(sonar, rows, **asked, tell=_tell)
        shown = table_of(report)
        _tell("")
    head, seconds = {"on": on, "every": every}, time.monotonic() - began
    print(f"{model} ({report['fingerprint']}) on {len(rows)} sentences of {on}, beam {beam_size}, {seconds:.0f} s")
    print(shown)
    _write_json(out, head | {"seconds": round(seconds, 1)} | report)


def evaluate_stories(
    models: Texts = ("mini",),
    /,
    on: str = "storyworld:test",
    count: int = 100,
    lang: str = "eng_Latn",
    beam_size: int = 0,
    guidance: float | None = None,
    max_sentences: int = 32,
    novelty_against: int = 0,
    show: int = 0,
    seed: int = 0,
    device: str = "cpu",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Let models of any family go on from two sentences, and judge their stories: a table with a row for each model.

    The judge is StoryWorld's grammar read backwards: grammar, consistency, plot, creativity and repetition, from 0 to 10. Beside
    it: how stories end, bits per byte of the true stories, and how near the told ones come to them. Further models are
    compared with the first by paired permutation tests.

    examples:

        sonarkit evaluate stories mini --show 20
        sonarkit evaluate stories mini runs/mse-lcm/final runs/token-llm/final --on storyworld:test --count 100 --out stories.json
        sonarkit evaluate stories mini --on storyworld:unseen --lang fr --beam-size 1 --json

    Args:
        models: "mini" (SONAR-LLM), mini-FAMILY for what is shipped of another, or the folders of trained models.
        on: storyworld:test, :valid or :unseen, or handwritten, which the judge cannot read.
        count: How many stories.
        lang: The language of the stories.
        beam_size: Beams; 0 leaves each family its own, 5 to decode a vector and 1 for a token-level model.
        guidance: Of a diffusion LCM, whose default is 3 (sonarkit/study.py families chooses it on validation stories).
        max_sentences: Stories are stopped here, the beginning included.
        novelty_against: Hold the stories against this many training stories for creativity, too (44 s for 20 000).
        show: Print this many of each model's stories.
        seed: For what models draw, and for the intervals.
        device: Where to compute: cpu, cuda.
        json: Print one JSON object with everything, the stories included, instead of the tables.
        out: Also write that there; `sonarkit evaluate judge` reads it.
    """
    _ready(out)
    from sonarkit.core.distributed import checked_device
    from sonarkit.evaluation import story_evaluation
    from sonarkit.text.languages import SONAR_LANGUAGES, resolve

    prompts = story_evaluation.prompts_for(on, count, resolve(lang, SONAR_LANGUAGES))
    if len(models) > 1 and len(prompts.beginnings) < 2:
        raise ValueError(f"{len(models)} models are compared on two stories at least, got one; raise --count")
    from sonarkit.evaluation.story_judge import training_elements
    from sonarkit.models.family import guided_by, load_model

    training = training_elements(novelty_against) if novelty_against else None
    found = []
    for name in models:
        _tell(f"{name} goes on with {len(prompts.beginnings)} stories")
        model = load_model(name, device=checked_device(device))
        evaluation = story_evaluation.evaluate_stories(
            model,
            prompts,
            name,
            training=training,
            beam_size=beam_size or None,
            max_sentences=max_sentences,
            seed=seed,
            **guided_by(model, guidance),
        )
        found.append(evaluation)
    _tell("")
    report = story_evaluation.report_of(found, seed=seed)
    _write_json(out, report)
    if json:
        _print_json(report)
        return
    for one in found:
        for story in one.stories[:show]:
            _print_line(f"{one.model} [{story['stopped_by']}] {story['prompt']} || {' '.join(story['told'])}")
            print()
    tables = (story_evaluation.table(found), story_evaluation.comparison_table(found, seed=seed))
    print("\n\n".join([*filter(None, tables), "\n".join(story_evaluation.notes(found))]))


def evaluate_judge(
    stories: Annotated[Path, tyro.conf.Positional],
    /,
    endpoint: str = "https://api.openai.com/v1",
    judge: str = "gpt-4o",
    key_variable: str = "OPENAI_API_KEY",
    verdicts: Path = Path("verdicts.jsonl"),
    workers: int = 8,
    price_in: float | None = None,
    price_out: float | None = None,
    seed: int = 0,
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Have the stories of `evaluate stories --out` graded by a language model behind an OpenAI-compatible endpoint.

    Each story is sent to the endpoint, and to nothing else. Verdicts are kept as they come: the same command asks only for those
    that are missing.

    examples:

        sonarkit evaluate judge stories.json --judge gpt-4o --price-in 2.5 --price-out 10
        sonarkit evaluate judge stories.json --endpoint http://localhost:8000/v1 --judge my-model --key-variable ""

    Args:
        stories: The file that sonarkit evaluate stories --out wrote.
        endpoint: The API's address.
        judge: The name that the endpoint knows the judge by.
        key_variable: The environment variable that has the key; "" for an endpoint that needs none.
        verdicts: Where the verdicts are kept.
        workers: How many stories are asked for at once.
        price_in: Money for a million tokens in, to tell the cost.
        price_out: And out.
        seed: Of the intervals.
        json: Print one JSON object instead of the tables.
        out: Also write that there.
    """
    _ready(out)
    from sonarkit.evaluation.llm_judge import JudgeConfig, judge_stories
    from sonarkit.evaluation.story_evaluation import told_in

    config = JudgeConfig(base_url=endpoint, model=judge, key_variable=key_variable, workers=workers)
    reports = {
        model: judge_stories(told, verdicts, config, price_in=price_in, price_out=price_out, seed=seed, tell=_tell)
        for model, told in told_in(stories).items()
    }
    _tell("")
    found = {model: report.to_dict() for model, report in reports.items()}
    _write_json(out, found)
    _print_json(found) if json else print("\n\n".join(f"{model}\n{report.table()}" for model, report in reports.items()))


def evaluate_concepts(
    model: Annotated[str, tyro.conf.Positional] = "mini",
    /,
    store: Path = Path("stores/storyworld-valid"),
    limit: int = 100,
    beam_size: int = 5,
    guidance: float | None = None,
    no_decode: bool = False,
    seed: int = 0,
    device: str = "cpu",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """How well a model over sentence vectors predicts the next one: the metrics of Meta's LCM paper, and bits per byte.

    examples:

        sonarkit evaluate concepts mini --store stores/storyworld-valid
        sonarkit evaluate concepts runs/mse-lcm/final --store stores/storyworld-valid --limit 500 --no-decode --json

    Args:
        model: "mini" (SONAR-LLM), mini-FAMILY, or the folder of a trained model; not a token-level one.
        store: An embedding store that the model's codec made (sonarkit/encode.py).
        limit: How many of its documents; 0 is all.
        beam_size: Beams when decoding predictions.
        guidance: Of a diffusion LCM, whose default is 3 (sonarkit/study.py families chooses it on validation stories).
        no_decode: Leave out what needs the decoder.
        seed: Of the intervals, and of what a diffusion LCM draws.
        device: Where to compute: cpu, cuda.
        json: Print one JSON object instead of the table.
        out: Also write that there.
    """
    _ready(out)
    from sonarkit.core.distributed import checked_device
    from sonarkit.store.reader import Store

    opened, most = Store(store), limit or None
    from sonarkit.evaluation.bits_per_byte import bits_per_byte
    from sonarkit.evaluation.concept_metrics import concept_report
    from sonarkit.models.family import guided_by, load_model
    from sonarkit.models.token_llm import TokenLLM

    loaded = load_model(model, device=checked_device(device))
    if isinstance(loaded, TokenLLM):
        raise ValueError(f"{model} is a token-level model, which predicts no vectors; sonarkit evaluate stories has its numbers")
    drawn = guided_by(loaded, guidance)
    report = concept_report(loaded, opened, limit=most, decode=not no_decode, beam_size=beam_size, seed=seed, **drawn)
    bits = None if no_decode else bits_per_byte(loaded, opened, most, seed=seed, **drawn)
    found = {"model": model, "store": str(store)} | report.to_dict() | ({} if bits is None else {"bits_per_byte": bits.to_dict()})
    _write_json(out, found)
    if json:
        _print_json(found)
        return
    print(f"{model} on {store}\n{report.table()}")
    if bits is not None:
        print(f"bits per byte {bits}")


def evaluate_summaries(
    model: Annotated[str, tyro.conf.Positional] = "mini",
    /,
    on: str = "xsum",
    document: str = "document",
    summary: str = "summary",
    limit: int = 100,
    lang: str = "eng_Latn",
    max_sentences: int = 32,
    summary_sentences: int = 8,
    cue: str = "",
    beam_size: int = 0,
    guidance: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Let a model of any family summarize documents, and compare with their summaries, beside the first sentences.

    examples:

        sonarkit evaluate summaries mini --on pairs.jsonl --document article --summary highlights
        sonarkit evaluate summaries runs/summarizer/final --on cnn_dailymail --limit 1000 --out summaries.json

    Args:
        model: "mini" (SONAR-LLM), mini-FAMILY, or the folder of a trained model.
        on: xsum, cnn_dailymail, hf:NAME[:CONFIG][@SPLIT], or a .jsonl or .jsonl.gz file.
        document: The column of the documents, in a set that is not named above.
        summary: The column of the summaries.
        limit: How many pairs; 0 is all.
        lang: Their language.
        max_sentences: What the model takes, document and summary together.
        summary_sentences: A summary is stopped here.
        cue: A sentence to put between document and summary, such as "In short:".
        beam_size: Beams; 0 leaves each family its own.
        guidance: Of a diffusion LCM, whose default is 3 (sonarkit/study.py families chooses it on validation stories).
        seed: For what models draw, and for the intervals.
        device: Where to compute: cpu, cuda.
        json: Print one JSON object with everything, the summaries included, instead of the table.
        out: Also write that there.
    """
    _ready(out)
    from sonarkit.core.distributed import checked_device
    from sonarkit.evaluation.summarization import PAPER, SummaryConfig, read_pairs, summary_report
    from sonarkit.text.languages import SONAR_LANGUAGES, resolve

    config = SummaryConfig(max_sentences, summary_sentences, cue)
    pairs, dropped = read_pairs(on, document=document, summary=summary, limit=limit or None)
    from sonarkit.evaluation.story_evaluation import own_beam
    from sonarkit.models.family import guided_by, load_model

    loaded = load_model(model, device=checked_device(device))
    lang, beam = resolve(lang, SONAR_LANGUAGES), beam_size or own_beam(loaded)
    report = summary_report(loaded, pairs, lang, config, seed=seed, beam_size=beam, **guided_by(loaded, guidance))
    found = {"model": model, "on": on, "beam_size": beam, "dropped": dict(dropped)} | report.to_dict()
    found["summaries"] = [{"source": pair.source, "summary": told} for pair, told in zip(pairs, report.summaries)]
    _write_json(out, found)
    if json:
        _print_json(found)
        return
    if dropped:
        warnings.warn(f"{on}: rows left out: {', '.join(f'{count} {why}' for why, count in dropped.items())}", stacklevel=1)
    print(f"{model} on {on}, beam {beam}\n{report.table(on if on in PAPER else None)}")


def evaluate_speech(
    model: Annotated[str, tyro.conf.Positional] = "mini",
    /,
    on: str = "synthetic:200",
    speech: str = "mini",
    translations: tuple[str, ...] = (),
    into: tuple[str, ...] = (),
    beam_size: int = 5,
    synthetic: Path = Path("stores/speech"),
    skip_missing: bool = False,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Measure a speech encoder: transcription, zero-shot translation, and the search for its sentences among texts.

    examples:

        sonarkit evaluate speech mini --on synthetic:200@test-unheard
        sonarkit evaluate speech mini --speech runs/speech/final --on speech.tsv --out speech.json
        sonarkit evaluate speech sonar --speech fr --on fleurs/data/fr_fr@test --translations flores200_dataset@dev --into en

    Args:
        model: "mini", "sonar", "sonar-finetuned" or the folder of a codec.
        on: synthetic:COUNT of StoryWorld by espeak-ng, :COUNT@valid or @test-unheard; a manifest; FOLDER@SPLIT of Common Voice
            or FLEURS.
        speech: "mini" or the folder of a speech encoder, or a language beside Meta's weights.
        translations: Sets of aligned rows, as --on of sonarkit evaluate codec, in which utterances are found by their text;
            synthetic speech has its own.
        into: Only these languages beside the spoken ones; else all that there are translations in.
        beam_size: Beams when decoding; 1 is greedy.
        synthetic: Where synthetic speech is kept, and made if it is not there.
        skip_missing: Leave out utterances whose sound files are not there, and tell how many.
        device: Where to compute: cpu, cuda.
        out: Also write all numbers there as JSON.
    """
    _ready(out)
    from sonarkit.core.distributed import checked_device
    from sonarkit.evaluation.sets import rows_of
    from sonarkit.evaluation.speech import evaluate_speech, speech_set, table_of, translations_of

    terminal = sys.stderr.isatty()
    dropped = Counter[str]()  # no model is loaded for want of a sound
    opened = speech_set(on, "test", synthetic, progress=terminal, skip_missing=skip_missing, dropped=dropped)
    if dropped:
        warnings.warn(f"{on}: utterances left out: {', '.join(f'{n} {why}' for why, n in dropped.items())}", stacklevel=1)
    rows = opened.translations
    if translations:
        wanted = [*{u.language for u in opened.utterances}, *into] if into else []
        rows = translations_of(opened.utterances, [row for spec in translations for row in rows_of(spec, wanted)])
    from sonarkit.codec.pipeline import Sonar

    report = evaluate_speech(
        Sonar.from_pretrained(model, checked_device(device), speech=speech),
        opened.utterances,
        rows,
        into=into,
        beam_size=beam_size,
        tell=lambda what: print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True) if terminal else None,
    )
    if terminal:
        print("\r\x1b[K", end="", file=sys.stderr)
    many = f"{report['utterances']} utterances of {on}"
    print(f"{model} ({report['fingerprint']}) with {speech} on {many}, beam {beam_size}, {report['seconds']:.0f} s")
    print(table_of(report))
    _write_json(out, {"on": on, "dropped": dict(dropped), **report})


EVALUATIONS: dict[str, Callable[..., None]] = {
    "codec": evaluate_codec,
    "speech": evaluate_speech,
    "stories": evaluate_stories,
    "judge": evaluate_judge,
    "concepts": evaluate_concepts,
    "summaries": evaluate_summaries,
}


def lab(folder: Path = Path("sonarkit-notebooks"), no_browser: bool = False, allow_root: bool = False) -> None:
    """Open JupyterLab on a working copy of the notebooks.

    examples:

        sonarkit lab
        sonarkit lab --folder ~/my-notebooks --no-browser

    Args:
        folder: Where the working copy lies; notebooks that are there already are kept.
        no_browser: Print the address instead of opening a browser window.
        allow_root: Let JupyterLab run as root, as in a container; it refuses otherwise.
    """
    folder = folder.expanduser()
    copied = copy_notebooks(notebooks_folder(), folder)
    print(f"{folder}: {copied} notebooks copied; those that were there are kept", file=sys.stderr)
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}"]
    command += ["--no-browser"] * no_browser + ["--allow-root"] * allow_root
    with tempfile.TemporaryDirectory(prefix="sonarkit-lab-") as data:
        write_kernel(Path(data))
        jupyter_path = os.pathsep.join(filter(None, [data, os.environ.get("JUPYTER_PATH")]))
        with subprocess.Popen(command, env={**os.environ, "JUPYTER_PATH": jupyter_path}) as server:
            before = signal.signal(signal.SIGTERM, lambda *_: server.terminate())
            while server.poll() is None:
                try:
                    server.wait()
                except KeyboardInterrupt:  # JupyterLab got it too: it asks back, or stops its kernels and ends
                    continue
            signal.signal(signal.SIGTERM, before)
    raise SystemExit(server.returncode)


def copy_notebooks(source: Path, target: Path) -> int:
    """Copy the notebooks that `target` does not have yet, and the pictures they show; returns how many notebooks."""
    target.mkdir(parents=True, exist_ok=True)
    missing = [path for path in sorted(source.glob("*.ipynb")) if not (target / path.name).exists()]
    for path in missing:
        shutil.copyfile(path, target / path.name)
    if (source / "figures").is_dir():
        shutil.copytree(source / "figures", target / "figures", dirs_exist_ok=True)
    return len(missing)


def write_kernel(data: Path) -> None:
    """Write a Jupyter data folder whose kernel `python3` is this interpreter, the one that has sonarkit.

    First on JUPYTER_PATH it wins over every other kernel of that name, such as one that another Python has left in
    the user's folder.
    """
    from ipykernel.kernelspec import write_kernel_spec

    write_kernel_spec(data / "kernels" / "python3")


# ---------------------------------------------------------------------- input and output


def _sources(arguments: Sequence[str]) -> Iterator[tuple[BinaryIO, str]]:
    """What a command works on and its name: its arguments, the file that one names, or standard input."""
    if list(arguments) in ([], ["-"]):
        if sys.stdin.isatty():
            raise ValueError("no text: give it as an argument, name a file, or pipe it in")
        yield sys.stdin.buffer, "standard input"
        return
    for text, named in [(text, _names_a_file(text)) for text in arguments]:  # all are there before the first is read
        if named:
            with open(text, "rb") as file:
                yield (cast(BinaryIO, gzip.GzipFile(fileobj=file)) if text.endswith(".gz") else file), text
        else:
            yield io.BytesIO(text.encode("utf-8", "surrogateescape")), "argument"  # what the shell passed, byte for byte


def _blocks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    lines = iter(lines)
    while block := list(islice(lines, size)):
        yield block


def _where(device: str, dtype: Dtype) -> tuple[torch.device, torch.dtype]:
    import torch

    from sonarkit.core.distributed import checked_device

    return checked_device(device), getattr(torch, dtype)


def _texts(arguments: Sequence[str]) -> list[str]:
    """The texts of the sources, each whole."""
    return [_utf8(_whole(source, name), name) for source, name in _sources(arguments)]


def _whole(source: BinaryIO, name: str) -> bytes:
    data = source.read(LONGEST_LINE + 1)
    if len(data) > LONGEST_LINE:
        raise ValueError(f"{name}: a text of more than {LONGEST_LINE >> 20} MiB; give its beginning, or its parts one by one")
    return data


def _lines(arguments: Sequence[str]) -> Iterator[str]:
    """The lines of the sources, read as they are asked for; blank ones are left out and counted aloud."""
    kept = blank = 0
    for source, name in _sources(arguments):
        number = 0
        for number, line in bounded_lines(source, name):
            for part in io.StringIO(_utf8(line, name, number), newline=None):  # a lone \r ends a line, too
                kept, blank = (kept + 1, blank) if part.strip() else (kept, blank + 1)
                if part.strip():
                    yield part.rstrip("\n")
        blank += number == 0  # an empty source
    if not kept:
        raise ValueError("there is no text to work on: every line is blank")
    if blank:
        warnings.warn(f"{blank} blank lines were left out", stacklevel=1)


def _names_a_file(text: str) -> bool:
    if len(text) < 4096 and os.path.isfile(text):
        return True
    if len(text) < 4096 and os.sep in text and os.path.isdir(text):
        raise ValueError(f"{text} is a folder; name the files in it")
    if re.fullmatch(r"\S+\.(txt|md|jsonl?|csv|tsv|npy|npz|parquet)(\.gz)?", text):
        raise ValueError(f"no file {text!r} here; name one that is there, or give the text itself")
    return False


def _utf8(data: bytes, source: str, line: int = 1) -> str:
    """Bytes from `line` of a source on as text, without a byte order mark; ValueError names the line that is not UTF-8."""
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line, byte = line + error.object[: error.start].count(b"\n"), error.object[error.start]
        raise ValueError(f"{source}:{line}: not valid UTF-8 (byte {byte:#04x}); convert it, such as with iconv") from error


def _read_vectors(name: str) -> np.ndarray:
    if name.endswith(".npy"):
        try:
            array = np.load(name, mmap_mode="r", allow_pickle=False)
        except (ValueError, MemoryError, EOFError, OverflowError) as error:  # a header may claim any shape
            raise ValueError(f"{name} is no whole .npy file of numbers ({error}); write it again") from error
    else:
        lines = list(_lines([name]))
        try:
            array = np.array([parse_json(line)["embedding"] for line in lines])
        except (KeyError, TypeError, ValueError) as error:  # JSON's errors are ValueErrors
            raise ValueError(
                f'{name}: expected a .npy file, or JSON lines with an "embedding" of the same width each ({error!r})'
            ) from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name}: expected numbers of shape (n, D), got shape {array.shape} and type {array.dtype}")
    return array


def _save_npy(path: Path, width: int, blocks: Iterable[np.ndarray]) -> int:
    """Write float32 blocks (n, width), one after the other, as one array in NumPy's format; returns its length."""
    from sonarkit.core.checkpoint import write_atomically

    count = 0

    def header(file: BinaryIO) -> int:
        shape = (count, width)  # NumPy's header keeps room for a first axis that grows
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return file.tell()

    def write(temporary: Path) -> None:
        nonlocal count
        with open(temporary, "wb") as file:
            began = header(file)
            for block in _own_errors(blocks):
                file.write(block.astype("<f4", copy=False).tobytes())
                count += len(block)
            file.seek(0)
            assert header(file) == began

    try:
        write_atomically(path, write)
    except _OfInput as error:
        raise error.args[0] from None
    return count


class _OfInput(Exception):
    """An OSError of what is to be written, such as a sound file that is not there: not one of the place it is written to."""


def _own_errors(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    try:
        yield from blocks
    except OSError as error:
        raise _OfInput(error) from error


def _print_line(text: str) -> None:
    """One text, one line: byte pieces could spell a line end, and a prompt what steers the terminal."""
    print(" ".join(printable(text).split()), flush=True)


def _tell(what: str) -> None:
    """What is being done, on one line of a terminal; "" clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def _ready(out: Path | None) -> None:
    """Make the folder of --out, before hours are spent on what is to lie there. OSError where nothing can be written."""
    if out is None:
        return
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; --out names a file", str(out))
    if out.exists() and not out.is_file():
        return  # a device or a pipe is written to as it is
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def _write_json(out: Path | None, value: object) -> None:
    """A report to the file that --out names, if it names one; see `_ready`."""
    if out is not None:
        from sonarkit.core.checkpoint import write_atomically

        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        write_atomically(out, lambda path: path.write_text(text, encoding="utf-8"))


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
