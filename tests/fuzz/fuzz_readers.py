"""Coverage-guided fuzzing (atheris, libFuzzer) of everything here that reads what others wrote.

    pip install atheris                                  # a wheel for Python 3.11; nothing else here needs it
    python tests/fuzz/fuzz_readers.py                    # 10 minutes, shared by all readers; then the counts
    python tests/fuzz/fuzz_readers.py jsonl tmx --minutes 2
    python tests/fuzz/fuzz_readers.py shard --input /tmp/fuzz/shard/crash-1f2e...        # again, with the traceback
    python tests/fuzz/fuzz_readers.py --without-atheris  # mutations of the seeds without guidance, where there is no wheel

Bytes go into a file and the reader reads it. ValueError and OSError are answers; any other exception, a hang of more than 20 s
and more than 2 GiB of memory are crashes, and the input is kept in `--out`. Each reader runs in a process of its own, so that a
crash in C++ ends only that one; it is begun again until its time is over. libFuzzer's words are in `--out`/READER/log.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

HANG, MEMORY = 20, 2048  # seconds and MiB
ROOT = Path(__file__).resolve().parents[2]
Reader = Callable[[bytes], object]
WORK = Path(tempfile.gettempdir())


def consume(items: Iterable[object], most: int = 10_000) -> int:
    return sum(1 for _, _ in zip(items, range(most)))


def file_reader(name: str, read: Callable[[Path], object]) -> Callable[[Path], Reader]:
    """Puts the bytes into a file of this name in a folder of its own."""

    def make(folder: Path) -> Reader:
        path = folder / name

        def reader(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return reader

    return make


# ---------------------------------------------------------------------- the readers, each with seeds


def corpus(ending: str) -> Callable[[Path], Reader]:
    from sonarkit.text.corpora import open_corpus

    return file_reader(f"a{ending}", lambda path: consume(open_corpus(path)))


def bitext(ending: str) -> Callable[[Path], Reader]:
    from sonarkit.text.bitext import read_bitext

    return file_reader(f"a{ending}", lambda path: consume(read_bitext(path)))


def moses(folder: Path) -> Reader:
    from sonarkit.text.bitext import read_bitext

    def reader(data: bytes) -> object:
        english, _, german = data.partition(b"\0")
        (folder / "a.en").write_bytes(english)
        (folder / "a.de").write_bytes(german)
        return consume(read_bitext(folder / "a"))

    return reader


def shard(folder: Path) -> Reader:
    """The first shard of a store of two; the rest is sound."""
    from sonarkit.store.reader import Store

    make_store(folder)

    def reader(data: bytes) -> object:
        (folder / "shard-00000.arrow").write_bytes(data)
        store = Store(folder)
        store.document_tokens()
        return [(store[i], store.document(i, 5, 3)) for i in range(len(store))]

    return reader


def manifest(folder: Path) -> Reader:
    from sonarkit.store.reader import Store

    make_store(folder)

    def reader(data: bytes) -> object:
        (folder / "manifest.json").write_bytes(data)
        store = Store(folder)
        return [store[i] for i in range(min(len(store), 9))]

    return reader


def make_store(folder: Path) -> None:
    import torch

    from sonarkit.core.distributed import World
    from sonarkit.store.build import Coder, StoreStamp, build
    from sonarkit.text.corpora import Corpus

    told = ["The fox ran. Mia slept. The fox ran.", "Mia slept.", "Tom found a map. Mia slept."]
    corpus = Corpus("mine", lambda: ((text, f"mine:{i}") for i, text in enumerate(told)))
    coder = Coder(lambda texts: torch.ones(len(texts), 4), lambda texts: [list(text.encode()) for text in texts])
    stamp = StoreStamp("mine", "eng_Latn", "dots", "none", "0" * 12, 4, 2)
    alone = World(0, 1, 0, torch.device("cpu"))
    build(corpus, folder, stamp, coder, lambda text: re.findall(r"[^.]+\.", text), "The end.", alone)


def story_tree(folder: Path) -> Reader:
    from sonarkit.explore.widgets.story_teller import story_html
    from sonarkit.models.story_tree import StoryTree

    def read(path: Path) -> object:
        tree = StoryTree.load(path)
        assert StoryTree.from_json(tree.to_json()) == tree
        assert "<script" not in story_html(tree.path())
        return tree.outline(), tree.as_text()

    return file_reader("story.json", read)(folder)


def weights(ending: str) -> Callable[[Path], Reader]:
    """Meta's and Hugging Face's layouts, as far as the shape is read off the tensors."""
    from sonarkit.codec.weights import open_side, read_shape

    def read(path: Path) -> object:
        side = open_side(path, "encoder")
        return read_shape(side, side, ("eng_Latn",))

    return file_reader(f"a{ending}", read)


def our_weights(folder: Path) -> Reader:
    from sonarkit.core.checkpoint import read_safetensors
    from sonarkit.models.family import family_of

    def read(path: Path) -> object:
        return read_safetensors(path), family_of(path.parent)

    return file_reader("model.safetensors", read)(folder)


def checkpoint_index(folder: Path) -> Reader:
    from sonarkit.core.shards import Reader as ShardReader

    return file_reader(".metadata", lambda path: ShardReader(path.parent).read_metadata())(folder)


def tokenizer(folder: Path) -> Reader:
    from sonarkit.text.tokenizer import Tokenizer

    def read(path: Path) -> object:
        tokenizer = Tokenizer(path, ("eng_Latn",))
        return tokenizer.decode(tokenizer.pieces("The fox ran home, 3 times: é 🦊"))

    return file_reader("a.spm", read)(folder)


def configuration(name: str) -> Callable[[Path], Reader]:
    from sonarkit.codec.config import CodecConfig
    from sonarkit.codec.speech import SpeechConfig
    from sonarkit.core import config
    from sonarkit.models.diffusion_lcm import DiffusionLCMConfig
    from sonarkit.models.sonar_llm import SonarLLMConfig

    kinds = {"codec": CodecConfig, "speech": SpeechConfig, "sonar-llm": SonarLLMConfig, "diffusion-lcm": DiffusionLCMConfig}
    return file_reader("config.json", lambda path: config.load(kinds[name], path))


def foreign_configuration(folder: Path) -> Reader:
    from sonarkit.codec.weights import hints_of_huggingface
    from sonarkit.models.official import read_config

    def reader(path: Path) -> None:
        for read in (read_config, lambda path: hints_of_huggingface(path.parent)):
            with suppress(ValueError):
                read(path)

    return file_reader("config.json", reader)(folder)


def speech(ending: str) -> Callable[[Path], Reader]:
    from sonarkit.text.speech_data import open_speech

    def make(folder: Path) -> Reader:
        (folder / "a.wav").write_bytes(wave())  # that the manifest names
        return file_reader(f"a{ending}", lambda path: open_speech(path, skip_missing=True))(folder)

    return make


def wave() -> bytes:
    import soundfile

    sink = io.BytesIO()
    soundfile.write(sink, [0.0, 0.5, -0.5] * 600, 8000, format="WAV")
    return sink.getvalue()


def sound(folder: Path) -> Reader:
    from sonarkit.codec.audio import load

    return file_reader("a.wav", load)(folder)


def metrics(folder: Path) -> Reader:
    from sonarkit.explore.widgets.training_monitor import Runs, latest_html

    def read(path: Path) -> object:
        runs = Runs(path.parent)
        runs.read()
        return latest_html(runs.records)

    return file_reader("metrics.jsonl", read)(folder)


def judge(folder: Path) -> Reader:
    from sonarkit.evaluation.llm_judge import parse_scores

    return lambda data: parse_scores(data.decode("utf-8", "replace"))


def verdicts(folder: Path) -> Reader:
    from sonarkit.evaluation.llm_judge import _read

    return file_reader("verdicts.jsonl", _read)(folder)


def text(folder: Path) -> Reader:
    """Sentences, pieces and names of languages out of any text; half of a surrogate pair may be in it."""
    from sonarkit.core.errors import printable
    from sonarkit.core.paths import asset
    from sonarkit.text.languages import SONAR_LANGUAGES, resolve
    from sonarkit.text.sentences import split_sentences
    from sonarkit.text.tokenizer import Tokenizer

    spm = Tokenizer.load(asset("mini/sonar"))

    def reader(data: bytes) -> None:
        told = data.decode("utf-8", "surrogatepass" if data[:1] == b"s" else "replace")
        for lang in ("eng_Latn", "deu_Latn", "zho_Hans"):
            sentences = split_sentences(told, lang)
            assert "".join("".join(sentences).split()) == "".join(told.split()), "text was lost"
        spm.decode(spm.pieces(told))
        printable(told).encode()
        resolve(told[:120], SONAR_LANGUAGES)

    return reader


READERS: dict[str, Callable[[], Callable[[Path], Reader]]] = {
    **{f"corpus{ending}": lambda ending=ending: corpus(ending) for ending in (".jsonl", ".jsonl.gz", ".txt", ".parquet")},
    **{f"bitext{ending}": lambda ending=ending: bitext(ending) for ending in (".jsonl", ".tsv", ".tmx", ".parquet")},
    "moses": lambda: moses,
    "shard": lambda: shard,
    "manifest": lambda: manifest,
    "story-tree": lambda: story_tree,
    **{f"weights{ending}": lambda ending=ending: weights(ending) for ending in (".pt", ".safetensors")},
    "our-weights": lambda: our_weights,
    "checkpoint-index": lambda: checkpoint_index,
    "tokenizer": lambda: tokenizer,
    **{f"config-{name}": lambda name=name: configuration(name) for name in ("codec", "speech", "sonar-llm", "diffusion-lcm")},
    "foreign-config": lambda: foreign_configuration,
    **{f"speech{ending}": lambda ending=ending: speech(ending) for ending in (".tsv", ".jsonl")},
    "sound": lambda: sound,
    "metrics": lambda: metrics,
    "judge": lambda: judge,
    "verdicts": lambda: verdicts,
    "text": lambda: text,
}


def seeds(name: str, folder: Path) -> list[bytes]:
    """Sound files of the kind, small: mutations begin from them."""
    kind, _, ending = name.partition(".")
    if kind == "corpus" and ending.startswith("jsonl"):
        import gzip

        plain = b'{"text": "The fox ran home."}\n\n{"text": "Mia slept \\ud83e\\udd8a", "id": 3}\n'
        return [gzip.compress(plain, mtime=0) if ending.endswith("gz") else plain]
    if kind == "corpus" and ending == "txt":
        return ["The fox ran.\nMia slept.\n\nÉté \ufeff\r\n".encode()]
    if ending == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        sink = io.BytesIO()
        columns = {"text": ["The fox ran.", None]} if kind == "corpus" else {"eng_Latn": ["Go."], "deu_Latn": ["Geh!"]}
        pa.parquet.write_table(pa.table(columns), sink)
        nested = io.BytesIO()
        pa.parquet.write_table(pa.table({"translation": [{"en": "Go.", "de": "Geh!"}]}), nested)
        return [sink.getvalue(), nested.getvalue()]
    if kind == "bitext":
        unit = '<tu><tuv xml:lang="en"><seg>Go <hi>on</hi>.</seg></tuv><tuv xml:lang="de"><seg>Geh!</seg></tuv></tu>'
        return {
            "jsonl": [b'{"eng_Latn": "Go.", "fra_Latn": "Va !"}\n', b'{"translation": {"en": "Go.", "de": "Geh!"}}\n'],
            "tsv": [b"en\tde\nGo.\tGeh!\n"],
            "tmx": [f'<?xml version="1.0"?><tmx><header/><body>{unit}</body></tmx>'.encode()],
        }[ending]
    if name in ("shard", "manifest"):
        make_store(folder / "seed")
        return [(folder / "seed" / {"shard": "shard-00000.arrow", "manifest": "manifest.json"}[name]).read_bytes()]
    if name == "story-tree":
        from sonarkit.models.story_tree import StoryTree

        tree = StoryTree()
        tree.begin("Mia <script>slept</script>. Tom ran.", "eng_Latn")
        tree.add("He fell.", "eng_Latn", "model", end_cosine=0.5, log_prob=-0.25)
        return [tree.to_json().encode()]
    if kind in ("weights", "our-weights", "checkpoint-index"):
        return weight_seeds(name)
    if name == "tokenizer":
        from sonarkit.text.tokenizer import train_tokenizer

        return [train_tokenizer(["The fox ran home.", "Mia slept."] * 5, 277, ("eng_Latn",)).model]
    if kind.startswith("config-"):
        from sonarkit.core.paths import asset

        backbone = {"hidden": 8, "ffn": 8, "layers": 1, "heads": 2, "head_dim": 4}
        told: dict[str, Any] = {
            "config-codec": json.loads((asset("mini/sonar") / "config.json").read_text()),
            "config-speech": {"width": 8, "body": {"width": 8, "heads": 2, "layers": 1}, "pooling": "mean", "pooler": None},
            "config-sonar-llm": {"backbone": backbone, "embedding": 8, "codec": "mini"},
            "config-diffusion-lcm": {"backbone": backbone, "denoiser_layers": 2, "noise": {"timesteps": 10}},
        }
        return [json.dumps(told[kind]).encode()]
    if name == "foreign-config":
        llama = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5}
        rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaled = llama | {"rope_scaling": rope | {"original_max_position_embeddings": 8192}}
        m2m = {"model_type": "m2m_100", "encoder_attention_heads": 4, "activation_function": "relu", "dropout": 0.1}
        return [json.dumps(each).encode() for each in (scaled, {"llama_config": llama}, m2m)]
    if kind == "speech":
        return [
            b"path\ttext\tlanguage\na.wav\tGo.\ten\n"
            if ending == "tsv"
            else b'{"path": "a.wav", "text": "Go.", "language": "en"}\n'
        ]
    if name == "sound":
        return [wave()]
    if name == "metrics":
        train = '{"kind": "train", "step": 10, "seconds": 3.0, "loss_nats_per_token": 1.5, "lr": 1e-3, "tokens_per_s": 9.5, '
        return [
            (train + '"seconds_left": 9.0}\n{"kind": "eval", "step": 10, "seconds": 4.0, "bleu": 3, "sample": "Mia."}\n').encode()
        ]
    if name == "judge":
        return [b'Sure: {"grammar": 8, "creativity": "7/10", "consistency": 6.5, "plot": 5}', b"Grammar: 8/10\nPlot = 3"]
    if name == "verdicts":
        return [b'{"key": "a", "scores": {}, "failure": "timeout", "usage": {"requests": 1}}\n']
    if name == "moses":
        return [b"The fox ran.\nMia slept.\n\0Der Fuchs lief.\nMia schlief.\n"]
    assert name == "text", name
    sentences = "“Where is it?” asked Tom. Mr. Fox… ran! « Oui », dit-il. 3. Mai\n\n你好。再见！"
    return [sentences.encode(), b"s\xed\xa0\xbd deu_Latn", b"deu_Latn"]


def weight_seeds(name: str) -> list[bytes]:
    import safetensors.torch
    import torch

    from sonarkit.codec.config import codec_config
    from sonarkit.codec.pipeline import Sonar
    from sonarkit.codec.weights import meta_tensors
    from sonarkit.text.tokenizer import train_tokenizer

    tokens = train_tokenizer(["The fox ran home.", "Mia slept."] * 5, 277, ("eng_Latn",))
    config = codec_config(("eng_Latn",), tokens.size, 16, 1, 1, 1, 2)
    if name == "checkpoint-index":
        from torch.distributed import checkpoint

        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save({"model": {"a": torch.zeros(2)}, "lr": 0.5}, checkpoint_id=folder, no_dist=True)
            return [(Path(folder) / ".metadata").read_bytes()]
    sonar = Sonar(config, tokens)
    tensors = meta_tensors(sonar, config, "encoder") | meta_tensors(sonar, config, "decoder")
    if name == "our-weights":
        return [safetensors.torch.save({"a": torch.zeros(2)}, {"format": "sonarkit-sonar-llm-1"})]
    if name == "weights.safetensors":
        apart = {name: tensor.clone() for name, tensor in tensors.items()}  # embedding and output share one
        return [safetensors.torch.save(apart)]
    found = []
    for saved in ({"model": tensors}, {"state_dict": tensors, "embed_tokens": torch.nn.Embedding(3, 2)}):
        for zipped in (True, False):
            sink = io.BytesIO()
            torch.save(saved, sink, _use_new_zipfile_serialization=zipped)
            found.append(sink.getvalue())
    return found


# ---------------------------------------------------------------------- one reader, in this process


def guarded(reader: Reader) -> Callable[[bytes], None]:
    def one(data: bytes) -> None:
        with suppress(ValueError, OSError):
            reader(data)

    return one


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few changes of the kinds that libFuzzer makes."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, many = draw.randint(0, len(found)), draw.choice((1, 1, 2, 4, 8, 64))
        change = draw.randrange(5)
        if change == 0:
            found[at : at + many] = draw.randbytes(many)
        elif change == 1:
            del found[at : at + many]
        elif change == 2:
            found[at:at] = found[draw.randint(0, len(found)) :][:many]
        elif change == 3:
            found[at : at + many] = draw.choice((b"\0", b"\xff", b"9", b"[", b"{", b'"', b"-")) * many
        else:
            del found[at:]
    return bytes(found)


def fuzz(name: str, folder: Path, seconds: int) -> None:
    """With atheris, from the seeds in `folder`; ends with libFuzzer's words."""
    import atheris

    with tempfile.TemporaryDirectory(dir=WORK) as place:
        with atheris.instrument_imports(include=["sonarkit"]):  # what a reader imports
            one = guarded(READERS[name]()(Path(place)))
        options = [
            f"-max_total_time={seconds}",
            f"-timeout={HANG}",
            f"-rss_limit_mb={MEMORY}",
            "-max_len=8192",
            "-len_control=0",
            "-verbosity=1",
        ]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", str(folder / "seeds")], one)
        atheris.Fuzz()


def fuzz_without_guidance(name: str, folder: Path, seconds: int) -> None:
    draw, began, runs, data = random.Random(0), time.monotonic(), 0, b""
    sown = [path.read_bytes() for path in sorted((folder / "seeds").iterdir())]
    with tempfile.TemporaryDirectory(dir=WORK) as place:
        one = guarded(READERS[name]()(Path(place)))
        while time.monotonic() - began < seconds:
            data, runs = mutated(draw.choice(sown), draw), runs + 1
            try:
                one(data)
            except Exception as error:
                (folder / f"crash-{type(error).__name__}-{runs}").write_bytes(data)
    print(f"stat::number_of_executed_units: {runs}")


# ---------------------------------------------------------------------- all of them


def heavy() -> None:
    """What takes long to import, once for all forks."""
    import nltk.tokenize.punkt  # noqa: F401
    import plotly.graph_objects  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import scipy.signal  # noqa: F401
    import torch.distributed.checkpoint

    torch.set_num_threads(1)


def in_a_fork(work: Callable[[], None], log: Path) -> int:
    """Do it in a process of its own, which has the heavy packages already, but none of ours: those are instrumented there."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(words, 1)
    os.dup2(words, 2)
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def run(name: str, out: Path, seconds: float, guided: bool) -> tuple[int, list[Path]]:
    """How many inputs were tried, and those that crashed."""
    folder = out / name
    (folder / "seeds").mkdir(parents=True, exist_ok=True)

    def sow() -> None:
        with tempfile.TemporaryDirectory(dir=WORK) as place:
            for i, data in enumerate(seeds(name, Path(place))):
                (folder / "seeds" / f"seed-{i}").write_bytes(data)

    assert not in_a_fork(sow, folder / "log"), (folder / "log").read_text()
    tried, ends, log = 0, time.monotonic() + seconds, folder / "log"
    log.unlink(missing_ok=True)
    while (left := int(ends - time.monotonic())) > 0:
        begin = log.stat().st_size if log.exists() else 0
        ended = in_a_fork(lambda left=left: (fuzz if guided else fuzz_without_guidance)(name, folder, left), log)
        told = log.read_bytes()[begin:].decode(errors="replace")
        counts = re.findall(r"number_of_executed_units: (\d+)|^Done (\d+) runs|^#(\d+)\s", told, re.MULTILINE)
        tried += max((int("".join(count)) for count in counts), default=0)
        if not ended:
            break
        if not counts:
            raise RuntimeError(f"{name} did not run: {told[-2000:]}")
    return tried, sorted(path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "leak-")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"some of {', '.join(READERS)}; all by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=WORK / "fuzz")
    parser.add_argument("--input", type=Path, help="read this once, and show what comes")
    parser.add_argument("--without-atheris", action="store_true")
    options = parser.parse_args()
    names = options.readers or list(READERS)
    if unknown := set(names) - set(READERS):
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    if options.input:
        with tempfile.TemporaryDirectory(dir=WORK) as place:
            print(READERS[names[0]]()(Path(place))(options.input.read_bytes()))
    else:
        heavy()
        total, crashes = 0, 0
        for name in names:
            tried, found = run(name, options.out, 60 * options.minutes / len(names), not options.without_atheris)
            total, crashes = total + tried, crashes + len(found)
            print(f"{name}: {tried} inputs, {len(found)} crashes", *map(str, found), sep="\n  ", flush=True)
        print(f"{total} inputs, {crashes} crashes")
        sys.exit(crashes > 0)


if __name__ == "__main__":
    main()
