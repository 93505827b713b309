"""Train anything here, on one process or many.

    python sonarkit/train.py sonar-llm --size mini --data stores/train --valid stores/valid --out runs/mine
    torchrun --nproc-per-node 2 sonarkit/train.py codec --size mini --bitext pairs.jsonl.gz --steps 2000

    python sonarkit/train.py sonar-llm --size 900M --plan --gpus 1 8 --gpu H100

FAMILY is codec or sonar-llm; --size names the recipe, every field of which is an option (--help lists them).
A run that was stopped goes on when the same command is given again. With --plan nothing is trained: parameters, memory a GPU,
FLOPs and days are printed instead, for a store that may not be there yet (TinyStories' size is taken for it); --gpus, --gpu
(A100, H100, H200, B200 or cpu), --gpu-memory-gb and --mfu say on what.
"""

from __future__ import annotations

import sys
from pathlib import Path

# torchrun puts this file's own folder first on sys.path, where our file names would shadow libraries: use its parent.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dataclasses import dataclass, replace  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from sonarkit import recipes  # noqa: E402
from sonarkit.codec.pipeline import SHIPPED, Sonar  # noqa: E402
from sonarkit.codec.published import PUBLISHED  # noqa: E402
from sonarkit.core import config as configs  # noqa: E402
from sonarkit.core.distributed import World, barrier, print0, start, stop  # noqa: E402
from sonarkit.core.errors import user_errors  # noqa: E402
from sonarkit.evaluation.codec import codec_report  # noqa: E402
from sonarkit.evaluation.stories import story_report  # noqa: E402
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig  # noqa: E402
from sonarkit.recipes import CodecRun, MixturePart, SonarLLMRun  # noqa: E402
from sonarkit.store.reader import Store  # noqa: E402
from sonarkit.text import storyworld  # noqa: E402
from sonarkit.text.bitext import held_out, read_aligned  # noqa: E402
from sonarkit.text.tokenizer import Tokenizer, train_tokenizer  # noqa: E402
from sonarkit.training.codec_task import CodecTask, Row, Source  # noqa: E402
from sonarkit.training.concept_task import ConceptTask, LossOptions  # noqa: E402
from sonarkit.training.loop import Evaluation, train  # noqa: E402
from sonarkit.training.plan import TINY_STORIES, CorpusSize, codec_shape, plan  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    with user_errors():
        if "--plan" in arguments:
            print(dry_run([argument for argument in arguments if argument != "--plan"]))
            return
        run = parse(arguments)
        world = start()
        try:
            if isinstance(run, CodecRun):
                train_codec(run, world)
            else:
                train_sonar_llm(run, world)
        finally:
            stop()


def parse(arguments: list[str]) -> CodecRun | SonarLLMRun:
    """FAMILY [--size SIZE] and overrides of the recipe's fields -> the run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0)
    family, rest, size = arguments[0], arguments[1:], "mini"
    if "--size" in rest:
        place = rest.index("--size")
        if place + 1 == len(rest):
            raise ValueError("--size needs a name, such as --size mini")
        size, rest = rest[place + 1], rest[:place] + rest[place + 2 :]
    base = recipes.recipe(family, size)
    if "--steps" in rest and isinstance(base, SonarLLMRun):
        if "--epochs" in rest:
            raise ValueError("--steps and --epochs both say how long to train; give one of them")
        base = replace(base, epochs=None)
    prog = f"train.py {family} --size {size}"
    return tyro.cli(type(base), prog=prog, args=rest, default=base, config=(tyro.conf.OmitArgPrefixes,))


@dataclass(frozen=True)
class Machine:
    """On what a dry run should be planned."""

    gpus: tuple[int, ...] = (1, 8)
    gpu: str = "H100"
    gpu_memory_gb: float | None = None
    mfu: float = 0.4


def dry_run(arguments: list[str]) -> str:
    """What the run of this command would take, as a table; nothing is allocated, loaded or downloaded."""
    machine, rest = tyro.cli(Machine, args=arguments, return_unknown_args=True, add_help=False)
    run = parse(rest)
    if isinstance(run, CodecRun):
        raise ValueError("--plan is for sonar-llm; a codec's run is not planned yet")
    parts = run.mixture or (MixturePart(run.data),)
    sizes = [CorpusSize.of(Store(part.store).manifest) for part in parts if (Path(part.store) / "manifest.json").is_file()]
    corpus = sum_of(sizes) if sizes else TINY_STORIES
    settings = run.train
    if run.epochs is not None:
        settings = replace(settings, steps=recipes.steps_of(run.epochs, corpus.documents, run.batches.documents_per_step))
    found = plan(
        run.backbone,
        run.batches,
        settings,
        codec_shape(run.codec),
        corpus,
        gpus=machine.gpus,
        device=machine.gpu,
        device_memory=machine.gpu_memory_gb and machine.gpu_memory_gb * 1e9,
        mfu=machine.mfu,
        train_decoder=run.train_decoder,
        frozen=torch.float32,  # as `train_sonar_llm` holds the codec
        shard_decoder=run.shard_decoder,
        checkpointing=run.activation_checkpointing,
    )
    return found.table()


def sum_of(sizes: list[CorpusSize]) -> CorpusSize:
    """Several stores as one corpus."""
    documents, sentences, pieces = (sum(getattr(size, what) for size in sizes) for what in ("documents", "sentences", "pieces"))
    return CorpusSize(documents, sentences, pieces, sizes[0].end_pieces, ", ".join(size.name for size in sizes))


def train_sonar_llm(run: SonarLLMRun, world: World) -> Evaluation:
    """Train a SONAR-LLM on the store `run.data`, or on those of `run.mixture`."""
    sonar = Sonar.from_pretrained(run.codec)
    fingerprint = sonar.fingerprint()
    parts = run.mixture or (MixturePart(run.data),)
    stores, valid = [Store(part.store, fingerprint) for part in parts], Store(run.valid, fingerprint)
    weights = [part.weight * len(store) for part, store in zip(parts, stores)]
    documents = sum(map(len, stores))
    settings = run.train
    if run.epochs is not None:
        settings = replace(settings, steps=recipes.steps_of(run.epochs, documents, run.batches.documents_per_step))
    torch.manual_seed(run.train.seed)
    codec = run.codec if run.codec in (*SHIPPED, *PUBLISHED) else str(Path(run.codec).resolve())  # to be found from any folder
    config = SonarLLMConfig(run.backbone, sonar.config.width, codec, fingerprint, run.train_decoder)
    model = SonarLLM(config, sonar) if not run.init else _begun(run.init, config, sonar)
    model.use(activation_checkpointing=run.activation_checkpointing, compile=run.compile)
    print0(
        world,
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {documents} documents, "
        f"{settings.steps} steps, {world.size} rank(s)",
    )
    openings = [" ".join(valid[i].texts[:2]) for i in range(min(8, len(valid)))]

    def samples(model: SonarLLM) -> Evaluation:
        stories = model.generate(openings, valid.lang, beam_size=1)
        return {**story_report(stories), "sample": stories[0].text}

    task = ConceptTask(
        model,
        stores,
        valid,
        run.batches,
        settings.seed,
        samples,
        weights=weights,
        options=LossOptions(run.as_published, run.context_noise),
        shard_decoder=run.shard_decoder,
    )
    return train(task, settings, world)


def _begun(name: str, config: SonarLLMConfig, sonar: Sonar) -> SonarLLM:
    """The SONAR-LLM to go on from; ValueError when its shape or its codec is another."""
    model = SonarLLM.from_pretrained(name, sonar=sonar)
    if model.config != config:
        told = "; ".join(configs.difference(configs.to_dict(model.config), configs.to_dict(config)))
        raise ValueError(f"{name} cannot be gone on from, since its configuration is another: {told}")
    return model.train()


def train_codec(run: CodecRun, world: World) -> Evaluation:
    """Train a SONAR codec on StoryWorld and bitext; the tokenizer is trained first, or found in the run's folder."""
    rows = storyworld_rows(run.stories, run.train.seed)
    sources = [Source("storyworld", rows, 1 - run.bitext_share if run.bitext else 1.0)]
    for path in run.bitext:
        pairs = [row for row in read_aligned(path) if not held_out(row.get("eng_Latn", ""))]
        sources.append(Source(path.name, pairs, run.bitext_share / len(run.bitext)))
    torch.manual_seed(run.train.seed)
    if run.init:
        sonar = Sonar.from_pretrained(run.init)
    else:
        tokenizer = _tokenizer(run, sources, world)
        sonar = Sonar(run.codec_config(tokenizer.size), tokenizer)
    print0(
        world,
        f"{sum(p.numel() for p in sonar.parameters()) / 1e6:.1f}M parameters, "
        + ", ".join(f"{len(s.rows)} rows of {s.name}" for s in sources),
    )
    valid = [row for story in storyworld.stories(20, split="valid") for row in storyworld.aligned(story.sentences)]

    task = CodecTask(
        sonar,
        sources,
        run.objective,
        pairs_per_step=run.pairs_per_step,
        micro_pairs=run.micro_pairs,
        seed=run.train.seed,
        evaluate=lambda sonar: codec_report(sonar, valid, beam_size=1),
    )
    return train(task, run.train, world)


def storyworld_rows(stories: int, seed: int) -> list[Row]:
    """Every sentence of that many training stories, in its four languages; repeated rows once."""
    unique = {
        row["eng_Latn"] + "\n" + row["deu_Latn"]: row
        for s in storyworld.stories(stories, seed=seed)
        for row in storyworld.aligned(s.sentences)
    }
    return list(unique.values())


def _tokenizer(run: CodecRun, sources: list[Source], world: World) -> Tokenizer:
    """Train the tokenizer on a sample of every source, once a run: a resumed run finds it in its folder."""
    folder = run.train.out / "tokenizer"
    if world.rank == 0 and not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        sample = [
            text for source in sources for row in source.rows[:: max(1, len(source.rows) // 40_000)] for text in row.values()
        ]
        train_tokenizer(sample, run.pieces, recipes.STORYWORLD_LANGUAGES).save(folder)
    barrier(world)
    return Tokenizer.load(folder)


if __name__ == "__main__":
    main()
