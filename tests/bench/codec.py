"""Ours against Meta's sonar-space and Hugging Face's M2M100: the same weights, the same sentences, in turns.

    python tests/bench/codec.py                   # 6 + 6 layers, and mini; some 15 minutes on two cores
    python tests/bench/codec.py --full            # 24 + 24 layers, 256 206 pieces: parity and speed; 10 GB of memory
    python tests/bench/codec.py --device cuda     # bfloat16 on a GPU, ours and M2M100's `generate`

in an environment with `pip install -e ".[sonar,hf]"`. Peers run at the best of several batch sizes and get their sentences
sorted by length. Each number is the best of `--rounds` rounds in which the libraries take turns; ratios are ours to the better
peer's. Memory is the peak of a process of its own that does nothing else.
"""

from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "parity"))

from layouts import fairseq_layout  # noqa: E402

from sonarkit.codec.config import codec_config  # noqa: E402
from sonarkit.codec.pipeline import Sonar  # noqa: E402
from sonarkit.codec.reference import ReferenceSonar  # noqa: E402
from sonarkit.codec.search import SearchConfig  # noqa: E402
from sonarkit.codec.weights import meta_tensors  # noqa: E402
from sonarkit.text.corpora import open_corpus  # noqa: E402
from sonarkit.text.sentences import split_sentences  # noqa: E402

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinystories_sample.jsonl"
LANG = "eng_Latn"
Size = Literal["bench", "full", "mini"]
Row = dict[str, Any]


@dataclass
class Options:
    full: bool = False
    device: str = "cpu"
    threads: int = 2
    rounds: int = 3
    sentences: int = 512
    vectors: int = 128
    out: Path | None = None
    only: tuple[str, ...] = ()  # encode, decode, trained, memory, load
    measure: tuple[str, ...] = ()  # for the processes that measure memory: library, size, what


# ---------------------------------------------------------------------- the three libraries


def build(size: Size) -> Sonar:
    """A codec of random weights, or the shipped one. The full vocabulary is wider than the tokenizer at hand."""
    mini = Sonar.from_pretrained("mini")
    if size == "mini":
        return mini
    torch.manual_seed(0)
    tokenizer = copy.copy(mini.tokenizer)
    if size == "bench":
        config = codec_config(mini.languages, tokenizer.size, 1024, 6, 6, 16, 4096, 0.0)
    else:
        tokenizer.size = 256_206
        config = codec_config(mini.languages, 256_206, 1024, 24, 24, 16, 8192, 0.0)
    sonar = Sonar(config, tokenizer).eval()
    with torch.no_grad():
        sonar.decoder.embedding.weight[tokenizer.eos_id] = 0  # a sentence never ends before the limit
        sonar.decoder.embedding.weight[mini.tokenizer.size :] = 0  # pieces that no tokenizer here can write
    return sonar


class HuggingFace:
    """M2M100 with our weights, mean-pooled; `generate` from one encoder state."""

    def __init__(self, sonar: Sonar, dtype: torch.dtype, device: str) -> None:
        from transformers import M2M100Config, M2M100ForConditionalGeneration

        c = sonar.config
        config = M2M100Config(
            vocab_size=c.vocab_size,
            d_model=c.width,
            encoder_layers=c.encoder.layers,
            decoder_layers=c.decoder.layers,
            encoder_attention_heads=c.encoder.heads,
            decoder_attention_heads=c.decoder.heads,
            encoder_ffn_dim=c.encoder.ffn,
            decoder_ffn_dim=c.decoder.ffn,
            max_position_embeddings=c.max_tokens,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
        )
        with torch.device("meta"):
            self.model = M2M100ForConditionalGeneration(config)
        encoder = fairseq_layout(meta_tensors(sonar, c, "encoder"), "encoder")
        decoder = fairseq_layout(meta_tensors(sonar, c, "decoder"), "decoder")
        state = {f"model.encoder.{k}": v for k, v in encoder.items()} | {f"model.decoder.{k}": v for k, v in decoder.items()}
        state["lm_head.weight"] = decoder["embed_tokens.weight"]
        state["model.shared.weight"] = encoder["embed_tokens.weight"]
        state.pop("model.decoder.final_proj.weight", None)
        self.model.config.tie_word_embeddings = False
        missing, unexpected = self.model.load_state_dict(state, strict=False, assign=True)
        assert not unexpected and not [m for m in missing if "embed_positions" not in m], (missing, unexpected)
        for side in (self.model.model.encoder, self.model.model.decoder):
            positions = side.embed_positions  # computed, not loaded: made on the meta device they hold nothing
            table = positions.get_embedding(c.max_tokens + 2, c.width, 1)
            positions.register_buffer("weights", table, persistent=False)
        self.model = self.model.to(device, dtype).eval()
        self.sonar, self.device = sonar, device
        self.order = torch.tensor([1, 3, 0, 2, *range(4, c.vocab_size)])

    @torch.inference_mode()
    def encode(self, ids: list[list[int]], batch_size: int) -> Tensor:
        """Length-sorted, padded batches of `__lang__ pieces </s>` -> (n, D) means."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = torch.empty(len(ids), self.sonar.config.width, device=self.device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            longest = max(len(ids[i]) for i in rows)
            batch = torch.tensor([[*self.order[ids[i]].tolist(), *[1] * (longest - len(ids[i]))] for i in rows])
            batch = batch.to(self.device)
            mask = batch != 1
            hidden = self.model.model.encoder(batch, attention_mask=mask.long()).last_hidden_state
            vectors[rows] = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return vectors

    @torch.inference_mode()
    def decode(self, z: Tensor, tokens: int, batch_size: int) -> list[list[int]]:
        from transformers.modeling_outputs import BaseModelOutput

        found = []
        language = self.sonar.tokenizer.language_id(LANG)
        for start in range(0, len(z), batch_size):
            part = z[start : start + batch_size].to(self.model.dtype)[:, None]
            rows = self.model.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=part),
                attention_mask=torch.ones(len(part), 1, dtype=torch.long, device=self.device),
                forced_bos_token_id=language,
                num_beams=5,
                max_new_tokens=tokens + 2,
                do_sample=False,
            )
            found += rows.tolist()
        return found


def peers(sonar: Sonar, dtype: torch.dtype) -> tuple[ReferenceSonar, HuggingFace]:
    meta = ReferenceSonar(sonar)
    if dtype != torch.float32:
        meta.encoder.to(dtype), meta.decoder.to(dtype)
    return meta, HuggingFace(sonar, dtype, "cpu")


# ---------------------------------------------------------------------- timing


def sentences(count: int) -> tuple[list[str], str]:
    """Real sentences where they are at hand, else StoryWorld's."""
    corpus, name = (str(REAL), "TinyStories") if REAL.is_file() else ("storyworld:test", "StoryWorld test")
    found: list[str] = []
    for document in open_corpus(corpus):
        found += split_sentences(document.text)
        if len(found) >= count:
            break
    return found[:count], name


def in_turns(rounds: int, runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The best time of each, in seconds, over rounds in which each runs once."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            gc.collect()
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def best_batch(run: Callable[[int], object], sizes: tuple[int, ...]) -> int:
    """The batch size at which `run` is fastest, tried once each."""
    times = {size: in_turns(1, {"": lambda size=size: run(size)})[""] for size in sizes}  # type: ignore[misc]
    return min(times, key=times.__getitem__)


def report(rows: list[Row], what: str, count: int, unit: str, times: dict[str, float], **more: Any) -> None:
    rates = {name: count / seconds for name, seconds in times.items()}
    ours = [name for name in rates if name.startswith("sonarkit")]
    peer = max(rate for name, rate in rates.items() if name not in ours)
    ratios = {name: round(rates[name] / peer, 2) for name in ours}
    told = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
    print(f"{what}: {told} {unit}/s; to the better peer {ratios}; {more or ''}", flush=True)
    rows.append({"what": what, "unit": f"{unit}/s", **rates, "ratios": ratios, **more})


def encode(rows: list[Row], sonar: Sonar, texts: list[str], options: Options, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    exact = sonar.encode(texts, LANG)
    ours = sonar if dtype == torch.float32 else copy.deepcopy(sonar).to(dtype)
    meta, hf = peers(sonar, dtype)
    ids = sonar.source_ids(texts, LANG)
    some = max(8, len(texts) // 4)
    meta_size = best_batch(lambda n: meta.encode(texts[:some], LANG, batch_size=n), sizes)
    hf_size = best_batch(lambda n: hf.encode(ids[:some], n), sizes)
    times = in_turns(
        options.rounds,
        {
            "sonarkit": lambda: ours.encode(texts, LANG),
            "sonar-space": lambda: meta.encode(texts, LANG, batch_size=meta_size),
            "M2M100": lambda: hf.encode(ids, hf_size),
        },
    )
    z = ours.encode(texts, LANG)
    if dtype == torch.float32:
        checked = {
            "largest difference to sonar-space": (meta.encode(texts, LANG) - z).abs().max().item(),
            "to M2M100": (hf.encode(ids, hf_size) - z).abs().max().item(),
        }
    else:
        checked = {"least cosine to float32": F.cosine_similarity(z, exact).min().item()}
    sizes_used = {"sonar-space": meta_size, "M2M100": hf_size}
    report(rows, f"encode, {_name(dtype)}", len(texts), "sentences", times, **checked, batch_sizes=sizes_used)


def decode(rows: list[Row], what: str, sonar: Sonar, z: Tensor, tokens: int, options: Options, sizes: tuple[int, ...]) -> None:
    """Float32 against the peers in float32, then ours in bfloat16 against the same."""
    config = SearchConfig(beam_size=5, max_tokens=tokens)
    meta, hf = peers(sonar, torch.float32)
    half = copy.deepcopy(sonar).to(torch.bfloat16)
    some = z[: max(4, len(z) // 4)]
    best = {
        "sonarkit": best_batch(lambda n: sonar.search(some, LANG, config, batch_size=n), sizes),
        "sonarkit, bfloat16": best_batch(lambda n: half.search(some, LANG, config, batch_size=n), sizes),
        "sonar-space": best_batch(lambda n: meta.decode(some, LANG, max_tokens=tokens, batch_size=n), sizes),
        "M2M100": best_batch(lambda n: hf.decode(some, tokens, n), sizes),
    }
    times = in_turns(
        max(1, options.rounds - 1),
        {
            "sonarkit": lambda: sonar.search(z, LANG, config, batch_size=best["sonarkit"]),
            "sonarkit, bfloat16": lambda: half.search(z, LANG, config, batch_size=best["sonarkit, bfloat16"]),
            "sonar-space": lambda: meta.decode(z, LANG, max_tokens=tokens, batch_size=best["sonar-space"]),
            "M2M100": lambda: hf.decode(z, tokens, best["M2M100"]),
        },
    )
    theirs = meta.decode(some, LANG, max_tokens=tokens)
    texts = [sonar.tokenizer.decode(found[0].ids) for found in sonar.search(some, LANG, config)]
    checked = {"same sentences as sonar-space": sum(a == b for a, b in zip(theirs, texts)) / len(some), "batch_sizes": best}
    report(rows, what, len(z), "vectors", times, **checked)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------------- memory and loading


def measure(library: str, size: Size, what: str, options: Options) -> None:
    """Run in a process of its own: the peak memory of one thing done by one library, beyond what stood before it."""
    sonar = build(size)
    texts, _ = sentences(options.sentences)
    z = torch.randn(options.vectors, sonar.config.width) if size != "mini" else sonar.encode(texts[: options.vectors], LANG)
    ids = sonar.source_ids(texts, LANG)
    tool: Any = sonar
    if library != "sonarkit":
        tool = ReferenceSonar(sonar) if library == "sonar-space" else HuggingFace(sonar, torch.float32, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    if what == "encode":
        tool.encode(ids, 32) if library == "M2M100" else tool.encode(texts, LANG)
    elif library == "M2M100":
        tool.decode(z, 64, 32)
    else:
        tool.decode(z, LANG, max_tokens=64, batch_size=32)
    print(json.dumps({"peak": _status("VmHWM") - before}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def compare_memory(rows: list[Row], options: Options) -> None:
    for size, what in (("bench", "encode"), ("bench", "decode"), ("mini", "decode")):
        peaks = {}
        for library in ("sonarkit", "sonar-space", "M2M100"):
            command = [sys.executable, __file__, "--measure", library, size, what, "--threads", str(options.threads)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            peaks[library] = json.loads(printed.splitlines()[-1])["peak"] / 2**20
        told = ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items())
        print(f"memory, {what} ({size}): {told} MiB beyond the weights", flush=True)
        rows.append({"what": f"memory, {what} ({size})", "unit": "MiB", **peaks})


LOAD = """
import sys, time
began = time.perf_counter()
import sonarkit as sk
sk.Sonar.from_pretrained("mini")
heavy = {"transformers", "datasets", "jupyterlab"}
print(time.perf_counter() - began, sorted({name.split(".")[0] for name in sys.modules} & heavy))
"""


def load_time(rows: list[Row]) -> None:
    printed = [subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True).stdout for _ in range(3)]
    seconds = min(float(line.split()[0]) for line in printed)
    print(f"import and load of mini: {seconds:.2f} s; heavy packages imported: {printed[0].split(' ', 1)[1].strip()}")
    rows.append({"what": "import and load of mini", "unit": "s", "sonarkit": seconds})


# ---------------------------------------------------------------------- the whole


def on_gpu(rows: list[Row], options: Options) -> None:
    """Full size, bfloat16: ours and M2M100's `generate`, with the share of the measured matrix peak."""
    sonar = build("full").to(options.device, torch.bfloat16)
    hf = HuggingFace(sonar, torch.bfloat16, options.device)
    texts, _ = sentences(4096)
    ids = sonar.source_ids(texts, LANG)
    tokens = sum(map(len, ids))
    a = torch.randn(8192, 8192, device=options.device, dtype=torch.bfloat16)
    torch.cuda.synchronize()
    seconds = in_turns(10, {"peak": lambda: (a @ a, torch.cuda.synchronize())})["peak"]
    peak = 2 * 8192**3 / seconds
    weights = sum(p.numel() for p in sonar.encoder.layers.parameters())
    size = best_batch(lambda n: (hf.encode(ids[:1024], n), torch.cuda.synchronize()), (64, 128, 256, 512))
    times = in_turns(
        options.rounds,
        {
            "sonarkit": lambda: (sonar.encode(texts, LANG, batch_tokens=65_536), torch.cuda.synchronize()),
            "M2M100": lambda: (hf.encode(ids, size), torch.cuda.synchronize()),
        },
    )
    share = 2 * weights * tokens / times["sonarkit"] / peak
    report(rows, "encode, full size on a GPU, bfloat16", tokens, "tokens", times, share_of_peak=share, peak_tflops=peak / 1e12)
    z = torch.randn(256, 1024, device=options.device)
    config = SearchConfig(beam_size=5, max_tokens=64)
    times = in_turns(
        options.rounds,
        {
            "sonarkit": lambda: (sonar.search(z, LANG, config, batch_size=128), torch.cuda.synchronize()),
            "M2M100": lambda: (hf.decode(z, 64, 128), torch.cuda.synchronize()),
        },
    )
    report(rows, "beam-5 decode, full size on a GPU, bfloat16", len(z) * 64, "tokens", times)


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.measure:
        library, size, what = options.measure
        measure(library, size, what, options)  # type: ignore[arg-type]
        return
    rows: list[Row] = []
    wanted = set(options.only) or {"encode", "decode", "trained", "memory", "load"}
    texts, source = sentences(options.sentences if not options.full else 48)
    print(f"{len(texts)} sentences of {source}, {options.threads} threads, torch {torch.__version__}")
    if options.device != "cpu":
        on_gpu(rows, options)
    elif options.full:
        sonar = build("full")
        for dtype in (torch.float32, torch.bfloat16):
            encode(rows, sonar, texts, options, (8, 16), dtype)
        decode(rows, "beam-5 decode to 16 tokens, full size", sonar, sonar.encode(texts[:4], LANG), 16, options, (4,))
    else:
        sonar = build("bench")
        for dtype in (torch.float32, torch.bfloat16) if "encode" in wanted else ():
            encode(rows, sonar, texts, options, (16, 32, 64, 128), dtype)
        if "decode" in wanted:
            z = sonar.encode(texts[: options.vectors], LANG)
            decode(rows, "beam-5 decode to 64 tokens, random weights", sonar, z, 64, options, (32, 64))
        if "trained" in wanted:
            mini = build("mini")
            story, _ = _story_sentences(options.vectors)
            decode(rows, "beam-5 decode of mini", mini, mini.encode(story, LANG), 64, options, (32, 64, 128))
        if "memory" in wanted:
            compare_memory(rows, options)
        if "load" in wanted:
            load_time(rows)
    if options.out:
        options.out.write_text(
            json.dumps({"torch": torch.__version__, "threads": options.threads, "rows": rows}, indent=1) + "\n"
        )


def _story_sentences(count: int) -> tuple[list[str], str]:
    found = [s for document in open_corpus("storyworld:test") for s in split_sentences(document.text)]
    return found[:: max(1, len(found) // count)][:count], "StoryWorld test"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
