"""A training step of SONAR-LLM: ours against the published one, rebuilt from its description, on the same weights in turns.

    python tests/bench/train_step.py                     # 100M, 6-layer decoder, 32 005 pieces; some 10 minutes on two cores
    python tests/bench/train_step.py --vocab 256206      # the peer with `--peer-documents 2`, so that it fits 24 GB
    python tests/bench/train_step.py --quick             # tiny, seconds: does it run, do both agree

in an environment with `pip install -e ".[sonar,hf]"`. Both read the same documents of `--sentences` real sentences and "End of
sequence.". A step here is forward and backward pass; the optimizer's, the same for both, is left out.

The peer (arXiv 2508.05305 and its public trainer): `LlamaForCausalLM` reads the vectors as `inputs_embeds` and computes its
128 256-wide head, which nobody uses; the last hidden state goes through `reverse_proj` to the frozen SONAR decoder, Meta's
where sonar-space is installed, else ours given padded rows; every target is padded to the longest of the batch, the logits of
all of them are stored, and `F.cross_entropy` ignores the padding. It is spared a padding mask, which a causal decoder does not
need. Language tokens are not counted in either loss, so that both can be compared.

In bfloat16 both run under autocast; ours also with the frozen decoder held in bfloat16, where autocast has nothing to convert.
Each time is the best of `--rounds` rounds in which the two take turns; memory is the peak of a
process of its own during one step, beyond the weights that stood before it: gradients are in it, and what the allocator keeps
of freed tensors (glibc 2.36 cannot use the holes left by tensors of up to 32 MiB again, which costs ours, whose tensors are
smaller, some 700 MiB; with MALLOC_MMAP_THRESHOLD_=16777216 in the environment they are given back at once).
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from sonarkit.codec.config import codec_config
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.core.packing import packing_of
from sonarkit.encode import max_pieces
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.sonar_llm import END_OF_SEQUENCE, SonarLLM, SonarLLMConfig
from sonarkit.store.build import Coder, StoreStamp, build
from sonarkit.store.reader import Document, Store
from sonarkit.text.corpora import Corpus, open_corpus
from sonarkit.text.sentences import split_sentences
from sonarkit.training.concept_task import ConceptDataConfig, ConceptTask

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "tinystories_sample.jsonl"
LANG = "eng_Latn"
HEAD = 128_256  # of the Llama that the published trainer starts from
Row = dict[str, Any]


@dataclass
class Options:
    vocab: int = 32_005  # pieces
    documents: int = 16
    sentences: int = 20
    peer_documents: int | None = None  # fewer for the peer where its logits do not fit; tokens/s are compared
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    threads: int = 2
    rounds: int = 3
    quick: bool = False
    out: Path | None = None
    only: tuple[str, ...] = ()  # speed, memory, loading
    measure: str | None = None  # for the processes that measure memory: ours, held or published


# ---------------------------------------------------------------------- what both work on


def build_model(options: Options) -> SonarLLM:
    """100M on a decoder of 6 layers, all random. The table is wider than the tokenizer at hand, as a larger one's would be."""
    mini = Sonar.from_pretrained("mini")
    torch.manual_seed(0)
    tokenizer = copy.copy(mini.tokenizer)
    tokenizer.size = options.vocab
    width, layers, ffn = (64, 2, 128) if options.quick else (1024, 6, 4096)
    sonar = Sonar(codec_config(mini.languages, options.vocab, width, 1, layers, 16, ffn, 0.0), tokenizer)
    backbone = BackboneConfig(32, 64, 2, 4, 8) if options.quick else BackboneConfig(512, 2048, 8, 16, 32)
    return SonarLLM(SonarLLMConfig(backbone, width), sonar)


def build_store(model: SonarLLM, folder: Path, options: Options) -> tuple[Store, str]:
    """An embedding store of documents that have enough sentences: real ones where they are at hand, else StoryWorld's."""
    source, name = (str(REAL), "TinyStories") if REAL.is_file() else ("storyworld:test", "StoryWorld test")
    long = (d for d in open_corpus(source) if len(split_sentences(d.text)) >= options.sentences)
    texts = [text for text, _ in zip(long, range(options.documents))]
    sonar = model.sonar
    coder = Coder(lambda sentences: sonar.encode(sentences, LANG), sonar.tokenizer.pieces_batch, max_pieces(sonar))
    stamp = StoreStamp(name, LANG, "punkt", "random", sonar.fingerprint(), sonar.config.width)
    corpus = Corpus(name, lambda: iter((t.text, t.source) for t in texts))
    build(corpus, folder, stamp, coder, split_sentences, END_OF_SEQUENCE, World(0, 1, 0, torch.device("cpu")))
    return Store(folder), name


def read(model: SonarLLM, store: Store, options: Options) -> list[Document]:
    tokenizer = model.sonar.tokenizer
    language = tokenizer.language_id(LANG)
    return [store.document(i, language, tokenizer.eos_id, options.sentences) for i in range(len(store))]


def tokens(documents: list[Document]) -> int:
    """What both losses count: pieces and `</s>` of every sentence but the first."""
    return sum(len(target) - 2 for d in documents for target in d.targets[1:])


# ---------------------------------------------------------------------- the published step


class Published(nn.Module):
    """The step of the published trainer with our weights, copied; Meta's decoder shares the tensors of ours."""

    def __init__(self, ours: SonarLLM) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        c = ours.config.backbone
        config = LlamaConfig(
            vocab_size=HEAD,
            hidden_size=c.hidden,
            intermediate_size=c.ffn,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            head_dim=c.head_dim,
            rms_norm_eps=c.norm_eps,
            rope_theta=c.rope_theta,
            rope_scaling={
                "rope_type": "llama3",
                "factor": c.rope_factor,
                "low_freq_factor": c.rope_low_frequency_factor,
                "high_freq_factor": c.rope_high_frequency_factor,
                "original_max_position_embeddings": c.rope_original_positions,
            },
            max_position_embeddings=131_072,
            tie_word_embeddings=True,
        )
        self.llama = LlamaForCausalLM(config)
        missing, unexpected = self.llama.model.load_state_dict(ours.backbone.state_dict(), strict=False)
        assert not unexpected and missing == ["embed_tokens.weight"], (missing, unexpected)
        self.forward_proj, self.reverse_proj = copy.deepcopy(ours.forward_proj), copy.deepcopy(ours.reverse_proj)
        self.sonar = (ours.sonar,)
        self.logits, self.decoder_name = self._decoder(ours.sonar)

    @staticmethod
    def _decoder(sonar: Sonar) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
        """`logits(z_ND, padded inputs_NL)` -> (N, L, V) of Meta's decoder, or of ours without its cross-attention's cost."""
        try:
            from fairseq2.nn import BatchLayout

            from sonarkit.codec.reference import ReferenceSonar

            meta = ReferenceSonar(sonar).decoder.requires_grad_(False)

            def theirs(z_ND: Tensor, inputs_NL: Tensor) -> Tensor:
                z_N1D = z_ND[:, None]
                return meta(z_N1D, BatchLayout.of(z_N1D), inputs_NL, BatchLayout.of(inputs_NL))

            return theirs, "sonar-space's decoder"
        except ImportError:

            def padded(z_ND: Tensor, inputs_NL: Tensor) -> Tensor:
                packing = packing_of([inputs_NL.shape[1]] * len(inputs_NL))
                hidden_TH = sonar.decoder(z_ND, inputs_NL.flatten(), packing)
                return (hidden_TH @ sonar.decoder.embedding.weight.T).unflatten(0, inputs_NL.shape)

            return padded, "our decoder, padded (sonar-space is not installed)"

    def loss(self, documents: list[Document]) -> Tensor:
        """Mean nats per counted token. The documents have equally many sentences, so the backbone needs no padding."""
        context_BSD = torch.stack([d.vectors_SD[:-1] for d in documents])
        seen = self.llama(inputs_embeds=self.forward_proj(context_BSD), output_hidden_states=True, use_cache=False)
        predicted_BSD = self.reverse_proj(seen.hidden_states[-1])  # `seen.logits` is what nobody uses
        targets = [torch.tensor(target) for d in documents for target in d.targets[1:]]
        inputs_NL = nn.utils.rnn.pad_sequence([t[:-1] for t in targets], batch_first=True)
        labels_NL = nn.utils.rnn.pad_sequence([t[1:] for t in targets], batch_first=True, padding_value=-100)
        labels_NL[:, 0] = -100  # the language token
        logits_NLV = self.logits(predicted_BSD.flatten(0, 1), inputs_NL)
        return F.cross_entropy(logits_NLV.flatten(0, 1), labels_NL.flatten())


# ---------------------------------------------------------------------- a step of each

Step = Callable[[], Tensor]  # forward and backward -> mean nats per token; the gradients of the step before are dropped


def ours(model: SonarLLM, documents: list[Document], dtype: torch.dtype) -> Step:
    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(documents)
        mean = loss.total / loss.count
        mean.backward()
        return mean.detach()

    return step


def published(peer: Published, documents: list[Document], dtype: torch.dtype) -> Step:
    def step() -> Tensor:
        peer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = peer.loss(documents)
        loss.backward()
        return loss.detach()

    return step


def held(model: SonarLLM) -> SonarLLM:
    """The same weights, with the frozen decoder in bfloat16."""
    other = SonarLLM(model.config, copy.copy(model.sonar))
    other.load_state_dict(model.state_dict())
    other.sonar.decoder = copy.deepcopy(model.sonar.decoder).to(torch.bfloat16)
    return other


def in_turns(rounds: int, runs: dict[str, Step]) -> dict[str, float]:
    """The best time of each, in seconds, over rounds in which each runs once; an unmeasured round warms up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            gc.collect()
            began = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def difference(a: Tensor, b: Tensor) -> float:
    """Relative to the longer of both."""
    return ((a - b).norm() / max(a.norm(), b.norm())).item()


def compare_speed(rows: list[Row], model: SonarLLM, documents: list[Document], options: Options) -> None:
    peer = Published(model)
    fewer = documents[: options.peer_documents or len(documents)]
    print(f"peer: LlamaForCausalLM and {peer.decoder_name}, {len(fewer)} of {len(documents)} documents at once")
    for precision in options.precisions:
        dtype = getattr(torch, precision)
        runs = {"sonarkit": ours(model, documents, dtype)}
        if dtype == torch.bfloat16:
            runs["sonarkit, decoder held in bfloat16"] = ours(held(model), documents, dtype)
        same, theirs = ours(model, fewer, dtype)(), published(peer, fewer, dtype)()
        checked = {
            "loss": theirs.item(),
            "loss difference": (same - theirs).item(),
            "gradient difference": difference(model.forward_proj.weight.grad, peer.forward_proj.weight.grad),
        }
        if dtype == torch.float32:
            assert abs(checked["loss difference"]) < 1e-4 * theirs and checked["gradient difference"] < 1e-3, checked
        times = in_turns(options.rounds, runs | {"published": published(peer, fewer, dtype)})
        rates = {name: tokens(documents) / seconds for name, seconds in times.items()}
        rates["published"] *= tokens(fewer) / tokens(documents)
        ratios = {name: round(rate / rates["published"], 2) for name, rate in rates.items() if name != "published"}
        told = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
        print(f"step, {precision}: {told} target tokens/s; to the published step {ratios}; {checked}", flush=True)
        rows.append({"what": f"step, {precision}", "unit": "target tokens/s", **rates, "ratios": ratios, **checked})


# ---------------------------------------------------------------------- memory and loading


def measure(model: SonarLLM, documents: list[Document], options: Options) -> None:
    """Run in a process of its own: the peak memory of one step, beyond what stood before it."""
    (precision,) = options.precisions
    dtype = getattr(torch, precision)
    if options.measure == "published":
        step = published(Published(model), documents[: options.peer_documents], dtype)
    else:
        step = ours(held(model) if options.measure == "held" else model, documents, dtype)
    model.sonar.encoder = nn.Identity()  # type: ignore[assignment]  # its work is done
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building has freed must not be taken for free memory
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    step()
    print(json.dumps({"peak": _status("VmHWM") - before}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def compare_memory(rows: list[Row], options: Options) -> None:
    for precision in options.precisions:
        peaks = {}
        names = {"sonarkit": "ours", "sonarkit, decoder held in bfloat16": "held", "published": "published"}
        for name, what in names.items():
            if what == "held" and precision != "bfloat16":
                continue
            given = ["vocab", "documents", "sentences", "threads", *(["peer_documents"] if options.peer_documents else [])]
            numbers = [word for key in given for word in (f"--{key.replace('_', '-')}", str(getattr(options, key)))]
            command = [sys.executable, __file__, "--measure", what, "--precisions", precision, *numbers]
            printed = subprocess.run(
                [*command, *(["--quick"] if options.quick else [])], stdout=subprocess.PIPE, text=True, check=True
            ).stdout
            peaks[name] = json.loads(printed.splitlines()[-1])["peak"] / 2**20
        shares = {name: round(peak / peaks["published"], 3) for name, peak in peaks.items() if name != "published"}
        told = ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items())
        print(f"memory, {precision}: {told} MiB beyond weights; of the published step's {shares}", flush=True)
        rows.append({"what": f"memory, {precision}", "unit": "MiB", **peaks, "shares": shares})


def compare_loading(rows: list[Row], model: SonarLLM, store: Store, documents: list[Document], options: Options) -> None:
    """The step's batch as a training run gets it, drawn and read from the store, against the step in the fastest form."""
    data = ConceptDataConfig(len(documents), 1 << 20, options.sentences)
    batches = ConceptTask(model, [store], store, data, seed=0).batches(0, 1)
    next(batches)
    began = time.perf_counter()
    for _ in range(50):
        next(batches)
    loading = (time.perf_counter() - began) / 50
    step = in_turns(1, {"": ours(held(model), documents, torch.bfloat16)})[""]
    print(f"loading: {loading * 1000:.1f} ms, {loading / step:.2%} of a step of {step:.2f} s")
    rows.append({"what": "loading", "unit": "s", "loading": loading, "step": step, "share": loading / step})


# ---------------------------------------------------------------------- the whole


def main(options: Options) -> None:
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    model = build_model(options)
    with tempfile.TemporaryDirectory() as folder:
        store, source = build_store(model, Path(folder), options)
        documents = read(model, store, options)
        if options.measure:
            measure(model, documents, options)
            return
        print(
            f"{len(documents)} documents of {options.sentences} sentences of {source}, {tokens(documents)} target tokens; "
            f"{options.vocab} pieces; {options.threads} threads, torch {torch.__version__}"
        )
        rows: list[Row] = []
        wanted = set(options.only) or {"speed", "memory", "loading"}
        if "speed" in wanted:
            compare_speed(rows, model, documents, options)
        if "loading" in wanted:
            compare_loading(rows, model, store, documents, options)
    if "memory" in wanted:
        compare_memory(rows, options)
    if options.out:
        asked = {"torch": torch.__version__, "threads": options.threads, "vocab": options.vocab, "rows": rows}
        options.out.write_text(json.dumps(asked, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
