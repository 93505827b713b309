"""Files, names and prompts made to do harm: each ends in an error that says what is wrong, nothing runs, memory is bounded."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import torch.distributed.checkpoint

from sonarkit import cli
from sonarkit.codec import weights
from sonarkit.codec.config import CodecConfig
from sonarkit.codec.pipeline import Sonar, TruncationWarning
from sonarkit.core import checkpoint, config, foreign
from sonarkit.core.distributed import World
from sonarkit.core.errors import printable, user_errors
from sonarkit.evaluation.llm_judge import parse_scores
from sonarkit.explore.widgets.training_monitor import Runs, latest_html, sample_html
from sonarkit.models.official import read_config
from sonarkit.models.story_tree import StoryTree
from sonarkit.store.build import Coder, StoreStamp, arrow_bytes, build
from sonarkit.store.reader import Store
from sonarkit.text import bitext, corpora
from sonarkit.text.corpora import Corpus
from sonarkit.text.languages import SONAR_LANGUAGES, UnknownLanguageError, resolve
from sonarkit.text.tokenizer import Tokenizer
from sonarkit.training.metrics import read_metrics

ALONE = World(0, 1, 0, torch.device("cpu"))
DEEP = "[" * 100_000
ran: list[str] = []


def explode() -> None:
    ran.append("boom")


class Bomb:
    """Unpickled, it calls what it was given."""

    def __init__(self, call: Callable[..., object] = explode, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.arguments


@pytest.fixture(autouse=True)
def nothing_runs() -> Any:
    ran.clear()
    yield
    assert not ran


def test_the_bomb_is_live() -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert ran == ["boom"]
    ran.clear()


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that Python held during it."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- checkpoints of a run


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with checkpoint.Checkpoints(tmp_path, ALONE) as checkpoints:
        checkpoints.save(1, {"model": {"a": torch.arange(3.0)}, "lr": 0.5, "name": "x"}, {"step": 1}, {"lr": 0.5})
    return tmp_path / "step-00000001"


def load(path: Path) -> dict[str, Any]:
    """As a run that goes on does it, with checksums that fit: whoever made the bomb made them, too."""
    sums = {str(file.relative_to(path)): checkpoint._sha256(file) for file in path.rglob("*") if file.is_file()}
    sums.pop("checksums.json")
    (path / "checksums.json").write_text(json.dumps(sums))
    state = {"model": {"a": torch.zeros(3)}, "lr": 0.0, "name": ""}
    checkpoint.read(path).load_into(state, ALONE)
    return state


def test_the_index_of_a_checkpoint_runs_nothing(saved: Path) -> None:
    whole = load(saved)
    assert (whole["model"]["a"].tolist(), whole["lr"], whole["name"]) == ([0.0, 1.0, 2.0], 0.5, "x")
    index = saved / "state" / ".metadata"
    sound = index.read_bytes()
    for bomb in (Bomb(), {"state_dict_metadata": Bomb()}, Bomb(eval, "1"), Bomb(torch.load, "x")):
        index.write_bytes(pickle.dumps(bomb))
        with pytest.raises(ValueError, match="it names .*, which no index does, and sonarkit runs no code of a file"):
            load(saved)
    for damaged in (b"", sound[:-9], pickle.dumps([1]), b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no index of a checkpoint"):
            load(saved)
    index.write_bytes(b"\x80\x04]r" + (1 << 28).to_bytes(4, "little") + b".")  # as found by fuzzing: 4 GB for one object

    def refused() -> None:
        with pytest.raises(ValueError, match="is no index of a checkpoint .it numbers an object 268435456 in 9 bytes"):
            load(saved)

    assert peak_of(refused) < 1e6
    for place in ("../../../secret", "/etc/passwd", "../state/__0_0.distcp"):
        metadata = pickle.loads(sound)
        for info in metadata.storage_data.values():
            info.relative_path = place
        index.write_bytes(pickle.dumps(metadata))
        with pytest.raises(ValueError, match=f"points to {re.escape(place)}, out of its folder"):
            load(saved)


def test_values_of_a_checkpoint_run_nothing(saved: Path) -> None:
    """A tensor that the index calls something else is unpickled, too."""
    for value in ({"lr": Bomb()}, {"name": Bomb()}, {"model": {"a": Bomb()}}):
        state = {"model": {"a": torch.zeros(3)}, "lr": 0.5, "name": "x"} | value
        shutil.rmtree(saved / "state")
        torch.distributed.checkpoint.save(state, checkpoint_id=saved / "state", no_dist=True)
        with pytest.raises(
            ValueError, match="do not fit this run: rank 0: .*(lr|name|model.a) holds more than numbers and texts"
        ):
            load(saved)


def test_a_trainer_state_or_configuration_that_is_none(saved: Path) -> None:
    for data in (b"", b"\x80\x02(((", pickle.dumps({"step": Bomb()}, 2)):
        (saved / "trainer.pt").write_bytes(data)
        with pytest.raises(ValueError, match="was not written by sonarkit .*; delete"):
            load(saved)
    torch.save({"step": 1}, saved / "trainer.pt")
    for told in ("[]", "{", DEEP):
        (saved / "config.json").write_text(told)
        with pytest.raises(ValueError, match="config.json.*; delete"):
            load(saved)


# ---------------------------------------------------------------------- weights of others


def pt(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A PyTorch file whose pickle is `data`."""
    whole = io.BytesIO()
    torch.save({"model": {"a": torch.zeros(1)}}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, data if name.endswith("data.pkl") else source.read(name))
    return path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps({"model": {"a": Bomb()}}, 2), "runs no code of a file"),
        (pickle.dumps({"model": {"a": Bomb(eval, "1")}}, 2), "runs no code of a file"),
        (pickle.dumps({"embed_tokens": Bomb(torch.nn.Embedding, 1 << 40, 1 << 20)}, 2), "takes no arguments"),
        (pickle.dumps({"model": {"a": Bomb(torch.FloatTensor, 1 << 50)}}, 2), "is no PyTorch checkpoint"),
        (b"\x80\x02" + b"(" * 1_000_000 + b"N.", "holds no dictionary of tensors"),
        (b"\x80\x02N" + b"\x85" * 100_000 + b".", "holds no dictionary of tensors"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "is no PyTorch checkpoint"),
        (b"\x80\x02c" + b"os\nsystem\n" + b".", "runs no code of a file"),
        (b"\x80\x02h\x07.", "is no PyTorch checkpoint"),
        (b"", "is no PyTorch checkpoint"),
    ],
    ids=["call", "eval", "table", "tensor", "marks", "tuples", "string", "system", "memo", "empty"],
)
def test_a_pickle_that_is_no_dictionary_of_tensors(data: bytes, message: str, tmp_path: Path) -> None:
    for path in (pt(tmp_path / "a.pt", data), tmp_path / "b.bin"):
        if path.suffix == ".bin":
            path.write_bytes(data)  # as torch wrote before 1.6, or not at all
        with pytest.raises(ValueError, match=message if path.suffix == ".pt" else r"b\.bin"):
            weights.read_weights(path)


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    path = pt(tmp_path / "a.pt", b"\x80\x02X\x00\x00\x00\x01" + b"a" * (1 << 24) + b".", zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ValueError, match="it is compressed, which PyTorch never does"):
        assert peak_of(lambda: weights.read_weights(path)) < 1 << 20


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(1 << 20, 1 << 20), torch.zeros(1 << 20, 1 << 20, device="meta"), torch.zeros(3).to_sparse()],
    ids=["expanded", "meta", "sparse"],
)
def test_a_tensor_that_is_larger_than_its_file(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"model": {"a": tensor}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a is no plain tensor whose numbers are all in the file"):
        weights.read_weights(tmp_path / "a.pt")


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": torch.zeros(1)}
    state["model"] = state
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds no dictionary of tensors"):
        weights.read_weights(tmp_path / "a.pt")


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"a": ONE}, 2**63),
        ({"a": ONE}, 2**64 - 1),
        ({"a": ONE}, 10**8 + 1),
        ({}, 0),
        ([1], None),
        ({"a": ONE | {"shape": [2**40, 2**40]}}, None),
        ({"a": ONE | {"shape": [-1]}}, None),
        ({"a": ONE | {"data_offsets": [4, 0]}}, None),
        ({"a": ONE | {"data_offsets": [0, 2**40], "shape": [2**38]}}, None),
        ({"a": ONE, "b": ONE}, None),
        ({"a": ONE | {"dtype": "F99"}}, None),
        ({"__metadata__": {"format": 1}, "a": ONE}, None),
        ({"a": ONE, "b": ONE | {"data_offsets": [1 << 30, (1 << 30) + 4]}}, None),
    ],
)  # fmt: skip
def test_a_safetensors_header_that_cannot_be(header: object, length: int | None, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(4))
    for read in (weights.read_weights, checkpoint.read_safetensors):
        with pytest.raises(ValueError, match="a.safetensors is damaged or cut short"):
            assert peak_of(lambda read=read: read(path)) < 1 << 20


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": {"a": "../b.bin"}}, {"weight_map": {"a": "/b"}}],
)
def test_an_index_of_shards_stays_in_its_folder(index: object, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.bin")
    (tmp_path / "inner" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index.json: expected .*; download it again"):
        weights.weight_files(tmp_path / "inner")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 2**70}, "width must be between 1 and 16777216"),
        ({"vocab_size": 2**62}, "vocab_size must be"),
        ({"max_tokens": 2**62}, "max_tokens must be between 3 and 65536"),
        ({"encoder": {"layers": 10**9}}, "layers must be between 1 and 1000"),
        ({"encoder": {"ffn": 2**62}}, "ffn must be"),
        ({"encoder": {"first_position": -1}}, "first_position must be"),
        ({"decoder": {"dropout": float("nan")}}, "dropout is a probability"),
    ],
)
def test_sizes_that_no_codec_has(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """They are believed before the weights are seen: a layer's modules take time, a table of positions memory."""
    (tmp_path / "config.json").write_text(json.dumps({"languages": ["eng_Latn"]} | changes))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        config.load(CodecConfig, tmp_path / "config.json")


@pytest.mark.parametrize(
    "told",
    [
        [], {"llama_config": "x"}, {"num_attention_heads": 0}, {"num_hidden_layers": 10**9}, {"head_dim": "x"},
        {"rms_norm_eps": []},
        {"rope_theta": "x"}, {"rope_theta": -1}, {"rope_scaling": [1]}, {"rope_parameters": "x"}, {"hidden_size": 10**30},
    ],
)  # fmt: skip
def test_the_configuration_of_a_llama_that_is_none(told: Any, tmp_path: Path) -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(shape | told if isinstance(told, dict) else told))
    with pytest.raises(ValueError, match="config.json: "):
        read_config(path)
    path.write_text(DEEP)
    with pytest.raises(ValueError, match="config.json is no JSON .it is nested too deeply"):
        read_config(path)


@pytest.mark.parametrize(
    "told", [{"encoder_attention_heads": "x"}, {"dropout": None}, {"max_position_embeddings": "x"}, {"scale_embedding": 3}, []]
)
def test_the_configuration_of_an_m2m100_that_is_none(told: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="config.json.*: expected"):
        weights.hints_of_huggingface(tmp_path)


@pytest.mark.parametrize("told", [{"languages": 5}, {"languages": [1]}, {"languages": [["a"]]}, {"languages": ["\ud800"]}, [1]])
def test_the_languages_of_a_tokenizer_that_are_none(told: object, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="tokenizer.json: expected"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------------- stores


TOLD = ["The fox ran. Mia slept. The fox ran.", "Mia slept.", "Tom found a map. Mia slept."]


def make_store(folder: Path) -> bytes:
    """A store of two shards; the bytes of the first."""
    corpus = Corpus("mine", lambda: ((text, f"mine:{i}") for i, text in enumerate(TOLD)))
    coder = Coder(lambda texts: torch.ones(len(texts), 4), lambda texts: [list(text.encode()) for text in texts])
    stamp = StoreStamp("mine", "eng_Latn", "dots", "none", "0" * 12, 4, 2)
    build(corpus, folder, stamp, coder, lambda text: re.findall(r"[^. ][^.]*\.", text), "The end.", ALONE)
    return (folder / "shard-00000.arrow").read_bytes()


def read_all(folder: Path) -> None:
    store = Store(folder)
    store.document_tokens()
    for i in range(len(store)):
        store[i], store.document(i, 5, 3)


def test_a_shard_cut_anywhere(tmp_path: Path) -> None:
    whole = make_store(tmp_path)
    for length in range(0, len(whole), 7):
        (tmp_path / "shard-00000.arrow").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="shard-00000.arrow is damaged .*; delete it and shard-00000.json"):
            read_all(tmp_path)


def test_a_shard_with_a_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    """Without its checksum looked at: no other error, and no step out of the file, whatever an offset says."""
    whole = bytearray(make_store(tmp_path))
    for place in range(0, len(whole), 9):
        for value in (0xFF, whole[place] ^ 1):
            (tmp_path / "shard-00000.arrow").write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                read_all(tmp_path)
            except ValueError:
                continue


def test_a_shard_of_other_columns_or_numbers(tmp_path: Path) -> None:
    make_store(tmp_path)
    path = tmp_path / "shard-00000.arrow"
    without_text = pa.ipc.open_file(path.read_bytes()).read_all().drop_columns("text")
    tables = [
        without_text,
        pa.table({"x": [1]}),
        pa.table({name: [[1]] for name in ("vectors", "numbers", "tokens", "text", "source")}),
    ]
    for table in tables:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(ValueError, match="shard-00000.arrow is damaged .its columns are"):
            Store(tmp_path)
    texts = ["The fox ran.", "Mia slept.", "The fox ran.", "Mia slept."]
    vectors, tokens = np.ones((2, 4), np.float16), [list(text.encode()) for text in texts]
    for wrong in (99, -1, 2**62):
        numbers = np.array([0, 1, wrong, 1])
        path.write_bytes(arrow_bytes(vectors, np.array([0, 1]), numbers, tokens, texts, [3, 1], ["a", "b"]))
        store = Store(tmp_path)
        with pytest.raises(ValueError, match="shard-00000.arrow is damaged .it points out of itself"):
            store[0]
        assert store[2].texts == ["Tom found a map.", "Mia slept."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "4"}, "expected width to be int, got 4"),
        ({"shards": {}}, "expected shards to be list"),
        ({"shards": [1]}, r"expected shards\[0\].file to be str, got None"),
        ({"end_of_sequence": {"text": "a", "tokens": [], "vector": [1.0]}}, "4 of them as its vector"),
        ({"documents": -3}, "expected documents to be int, got -3"),
        ({"file": "../outside.arrow"}, "a file of the store's folder .* got '../outside.arrow'"),
        ({"file": "/etc/passwd"}, "a file of the store's folder"),
        ({"sha256": "../../x"}, "and its SHA-256, got"),
    ],
)
def test_a_manifest_of_another_shape(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    make_store(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    if change.keys() <= manifest["shards"][0].keys() - manifest.keys():
        manifest["shards"][0] |= change
    path.write_text(json.dumps(manifest | change))
    with pytest.raises(ValueError, match=f"manifest.json is damaged .*{message}"):
        Store(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "3", DEEP, "\ud800".encode("utf-8", "surrogatepass")])
def test_a_manifest_that_is_none(text: str | bytes, tmp_path: Path) -> None:
    make_store(tmp_path)
    (tmp_path / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        Store(tmp_path)


# ---------------------------------------------------------------------- corpora and bitext

MIB = 1 << 20


@pytest.fixture
def short_lines(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bounds of 1 MiB, so that what goes beyond takes no time to write."""
    for module in (foreign, corpora, cli):
        monkeypatch.setattr(module, "LONGEST_LINE", MIB)
    monkeypatch.setattr(bitext, "LONGEST_UNIT", MIB)
    return MIB


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.tsv", "a.tsv.gz"])
def test_a_line_without_end(name: str, short_lines: int, tmp_path: Path) -> None:
    """20 times the bound, in 20 KB where it is packed: little more of it than the bound is held."""
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else open(path, "wb") as file:
        file.write(b"en\tde\n" if "tsv" in name else b'{"text": "One."}\n')
        for _ in range(20):
            file.write(b"a" * short_lines)

    def refused() -> None:
        with pytest.raises(ValueError, match=f"{name}:2: a line of more than 1 MiB; expected a text a line"):
            list(bitext.read_bitext(path) if "tsv" in name else corpora.open_corpus(path))

    assert peak_of(refused) < 6 * short_lines


def test_a_line_without_end_behind_a_url(short_lines: int) -> None:
    with fsspec.filesystem("memory").open("/hostile/a.jsonl", "wb") as file:
        file.write(b'{"text": "One."}\n' + b"a" * 2 * short_lines)
    with pytest.raises(ValueError, match="memory://hostile/a.jsonl:2: a line of more than 1 MiB"):
        list(corpora.open_corpus("memory://hostile/a.jsonl"))


def test_a_document_without_end(short_lines: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\n" + "A line.\n" * (short_lines // 4))
    with pytest.raises(ValueError, match="a.txt:3: a document of more than 1 MiB; put blank lines between documents"):
        list(corpora.open_corpus(tmp_path / "a.txt"))


@pytest.mark.parametrize("row", [DEEP, '{"text": ' + DEEP, '{"text": ' + "9" * 5000 + "}", '{"text": nul}'])
def test_json_that_no_parser_likes(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "One."}\n' + row + "\n")
    with pytest.raises(ValueError, match="a.jsonl:2: not valid JSON"):
        list(corpora.open_corpus(tmp_path / "a.jsonl"))


def test_parquet_cut_or_changed_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": ["One.", "Two."]}), path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="a.parquet is no whole Parquet file"):
            list(corpora.open_corpus(path))
    for place in range(4, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            list(corpora.open_corpus(path))
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<tu><tuv xml:lang='en'><seg>" + "a" * (MIB + 1), "a unit of more than 1 MiB"),
        ("<note/>" * (MIB // 6), "a unit of more than 1 MiB"),
        ("<tu>" + "<a>" * 200, "more than 100 elements within each other"),
        ("<tu><tuv xml:lang='en'><seg>" + "<hi>" * 5000 + "</hi>" * 5000 + "</seg></tuv></tu>", "more than 100 elements"),
    ],
    ids=["text", "elements", "depth", "closed depth"],
)
def test_a_unit_without_end(inside: str, message: str, short_lines: int, tmp_path: Path) -> None:
    (tmp_path / "a.tmx").write_text(f"<tmx><body>{inside}")
    with pytest.raises(ValueError, match=f"a.tmx:1: {message}"):
        list(bitext.read_bitext(tmp_path / "a.tmx"))


def test_units_outside_of_a_body_are_let_go(tmp_path: Path) -> None:
    unit = '<tu><tuv xml:lang="en"><seg>Go.</seg></tuv><tuv xml:lang="de"><seg>Geh!</seg></tuv></tu>\n'
    for way in ("{}", "<body><x>{}</x></body>"):
        (tmp_path / "a.tmx").write_text("<tmx>" + way.format(unit * 4000) + "</tmx>")
        assert peak_of(lambda: sum(1 for _ in bitext.read_bitext(tmp_path / "a.tmx"))) < 1e6


def test_a_table_of_too_many_columns_and_a_language_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\t" * 100_000 + "\n")
    with pytest.raises(ValueError, match="a.tsv:1: expected at most 1000 columns .* got 100001"):
        list(bitext.read_bitext(tmp_path / "a.tsv"))
    for typed in ("x" * 10**6, "word " * 10**5, "-" * 10**6, "é-" * 10**6):
        with pytest.raises(UnknownLanguageError, match=r"unknown language '.{40,110}'\.\.\.") as refused:
            resolve(typed, SONAR_LANGUAGES)
        assert len(str(refused.value)) < 400


# ---------------------------------------------------------------------- script tags

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def test_metrics_with_script_tags_are_text_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / SCRIPT.replace("/", "") / "metrics.jsonl"
    path.parent.mkdir()
    train = {"kind": "train", "step": 1, "seconds": 1.0, "lr": 1e-3, "tokens_per_s": 9.0, "seconds_left": 0.0, SCRIPT: SCRIPT}
    path.write_text(json.dumps(train) + "\n" + json.dumps({"kind": "eval", "step": 1, "seconds": 1.0, "sample": SCRIPT}) + "\n")
    runs = Runs(tmp_path)
    runs.read()
    ((name, (_, judged)),) = runs.records.items()
    for shown in (latest_html(runs.records, SCRIPT), sample_html(judged)):
        assert "&lt;script&gt;" in shown and "<script" not in shown and "<img" not in shown
    assert SCRIPT.replace("/", "") == name
    for record in ([], {}, train | {"kind": []}, train | {"step": SCRIPT}, train | {"lr": None}, train | {"lr": 10**400}):
        path.write_text(json.dumps(record) + "\n")
        with pytest.raises(ValueError, match="line 1: expected a JSON object, got"):
            read_metrics(path)
    path.write_text(DEEP + "\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object, got"):
        read_metrics(path)


@pytest.mark.parametrize("answer", ['{"grammar": ' + DEEP + "}", '{"grammar": ' + "9" * 5000 + "}", DEEP])
def test_a_judge_that_answers_with_a_bomb(answer: str) -> None:
    with pytest.raises(ValueError, match="score missing: grammar"):
        parse_scores(answer)


# ---------------------------------------------------------------------- prompts


HOSTILE = {
    "NUL": "A fox\0 ran.",
    "escape codes": "A \x1b[2J\x1b]0;title\x07fox ran.",
    "C1 codes": "A \x9b2Jfox ran.",
    "bidi overrides": "A \u202efox\u202c \u2066ran\u2069.",
    "half a pair": "A \ud83d fox ran.",
    "zero width": "A\u200b\u2060\ufeff fox ran.",
    "private and unassigned": "A \ue000\U0010ffff\u0378 fox ran.",
    "combining": "A " + "e" + "\u0301" * 5000 + " fox ran.",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_control_characters_in_a_text(text: str, sonar: Sonar) -> None:
    with pytest.warns(TruncationWarning) if len(text) > 1000 else nullcontext():
        z = sonar.encode([text, "A fox ran."])
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z[1], sonar.encode(["A fox ran."])[0], rtol=0, atol=1e-5)
    shown = printable(text)
    assert shown.encode() and not re.search(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]", shown)
    assert "fox" in shown and "ran" in shown
    if text == HOSTILE["bidi overrides"]:
        assert shown == text  # a text may need them


def test_what_steers_a_terminal_is_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_line("Mia \x1b[31mran\x1b[0m\x00 home.\r\nThen \x9b1mTom \ud83d")
    assert capsys.readouterr().out == "Mia \\x1b[31mran\\x1b[0m\\x00 home. Then \\x9b1mTom \\ud83d\n"
    for error in (ValueError("a\x1b[2J\nb"), FileNotFoundError(2, "not there", "a\x1b[2J\nb")):
        with pytest.raises(SystemExit), user_errors():
            raise error
        assert "a\\x1b[2J b" in capsys.readouterr().err


def test_a_text_of_a_command_is_bounded(short_lines: int, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 2 * short_lines)
    with pytest.raises(ValueError, match="a.txt: a text of more than 1 MiB"):
        cli._texts([str(tmp_path / "a.txt")])
    with pytest.raises(ValueError, match="a.txt:1: a line of more than 1 MiB"):
        list(cli._lines([str(tmp_path / "a.txt")]))


def test_vectors_of_a_shape_that_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 1024)})
    with pytest.raises(ValueError, match="a.npy is no whole .npy file"):
        cli._read_vectors(str(path))
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="a.npy is no whole .npy file"):
        cli._read_vectors(str(path))


def test_half_a_pair_does_not_enter_a_story() -> None:
    tree = StoryTree()
    tree.begin("Mia slept.", "eng_Latn")
    before = tree.to_json()
    for refused in (
        lambda: tree.add("Tom \ud83d ran.", "eng_Latn"),
        lambda: tree.begin("\udfff", "eng_Latn"),
        lambda: tree.edit("\ud83d"),
    ):
        with pytest.raises(ValueError, match="half a character"):
            refused()
    assert tree.to_json() == before
    tree.add("Tom \0\x1b[2J\u202e ran.", "eng_Latn")
    assert StoryTree.from_json(tree.to_json()) == tree
