"""Train anything here, on one process or many.

    python sonarkit/train.py sonar-llm --size mini --data stores/train --valid stores/valid --out runs/mine
    torchrun --nproc-per-node 2 sonarkit/train.py codec --size mini --bitext pairs.jsonl.gz --steps 2000

    python sonarkit/train.py sonar-llm --size 900M --plan --gpus 1 8 --gpu H100

FAMILY is codec, sonar-llm, mse-lcm, diffusion-lcm, token-llm or speech; --size names the recipe, every field of which is an
option (--help lists them). A run that was stopped goes on when the same command is given again.

With --plan nothing is trained: parameters, memory a GPU, FLOPs and days of a codec or a SONAR-LLM are printed instead, for a
store that may not be there yet (TinyStories' size is taken for it); --gpus, --gpu (A100, H100, H200, B200 or cpu),
--gpu-memory-gb and --mfu say on what, --mean-pieces how long a codec's sentences are.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

# torchrun puts this file's own folder first on sys.path, where our file names would shadow libraries: use its parent.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from dataclasses import dataclass, replace  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from sonarkit import recipes  # noqa: E402
from sonarkit.codec.config import CodecConfig  # noqa: E402
from sonarkit.codec.extend import extended  # noqa: E402
from sonarkit.codec.objectives import DecoderObjective  # noqa: E402
from sonarkit.codec.pipeline import SHIPPED, Sonar  # noqa: E402
from sonarkit.codec.published import PUBLISHED  # noqa: E402
from sonarkit.codec.speech import SpeechEncoder  # noqa: E402
from sonarkit.core import config as configs  # noqa: E402
from sonarkit.core.distributed import World, barrier, print0, start, stop  # noqa: E402
from sonarkit.core.errors import user_errors  # noqa: E402
from sonarkit.evaluation.codec import codec_report, space_alarms, space_report  # noqa: E402
from sonarkit.evaluation.speech import SpeechSet, Split, speech_set  # noqa: E402
from sonarkit.evaluation.stories import story_report  # noqa: E402
from sonarkit.models.concept_model import ConceptModule  # noqa: E402
from sonarkit.models.diffusion_lcm import DiffusionLCM, DiffusionLCMConfig, towers  # noqa: E402
from sonarkit.models.mse_lcm import MseLCM, MseLCMConfig  # noqa: E402
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig  # noqa: E402
from sonarkit.models.token_llm import CodecTokens, HuggingFaceTokens, SentencePieceTokens, TokenLLM, Tokens  # noqa: E402
from sonarkit.recipes import CodecRun, DiffusionLCMRun, MseLCMRun, SonarLLMRun, SpeechRun, StoreRun, TokenLLMRun  # noqa: E402
from sonarkit.store.normalizer import Normalizer  # noqa: E402
from sonarkit.store.reader import Store  # noqa: E402
from sonarkit.text import storyworld  # noqa: E402
from sonarkit.text.bitext import Bitext, Row, held_out, load_bitext, mixing_weights  # noqa: E402
from sonarkit.text.languages import SONAR_LANGUAGES  # noqa: E402
from sonarkit.text.tokenizer import Tokenizer, train_tokenizer  # noqa: E402
from sonarkit.training.codec_plan import codec_plan  # noqa: E402
from sonarkit.training.codec_task import CodecTask, Source  # noqa: E402
from sonarkit.training.concept_task import ConceptTask  # noqa: E402
from sonarkit.training.loop import Evaluation, TrainConfig, train  # noqa: E402
from sonarkit.training.plan import TINY_STORIES, CorpusSize, codec_shape, plan  # noqa: E402
from sonarkit.training.speech_task import SpeechTask, Targets, judge, teacher_vectors, vectors_beside  # noqa: E402
from sonarkit.training.token_task import TokenLossOptions, TokenTask  # noqa: E402

Model = TypeVar("Model", bound=ConceptModule)
VERIFIED = 16e9  # bytes: of a larger store the checksums are not looked at before each training


def main(arguments: list[str] | None = None) -> None:
    """Train, or plan, what the arguments say; by default those of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with user_errors():
        if "--plan" in arguments:
            print(dry_run([argument for argument in arguments if argument != "--plan"]))
            return
        run = parse(arguments)
        train_run(run, start())
        stop()  # not after an error: leaving NCCL's group waits for the others, and they for this rank


def parse(arguments: list[str]) -> CodecRun | StoreRun | SpeechRun:
    """FAMILY [--size SIZE] and overrides of the recipe's fields -> the run. ValueError for a family or size that there is not."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0)
    family, size = arguments[0], "mini"
    rest = [part for word in arguments[1:] for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if "--size" in rest:
        place = rest.index("--size")
        if place + 1 == len(rest):
            raise ValueError("--size needs a name, such as --size mini")
        size, rest = rest[place + 1], rest[:place] + rest[place + 2 :]
    base = recipes.recipe(family, size)
    if "--steps" in rest and isinstance(base, StoreRun):
        if "--epochs" in rest:
            raise ValueError("--steps and --epochs both say how long to train; give one of them")
        base = replace(base, epochs=None)
    prog = f"train.py {family} --size {size}"
    return tyro.cli(
        type(base), prog=prog, args=rest, default=base, config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)
    )


@dataclass(frozen=True)
class Machine:
    """On what a dry run should be planned; `gpu_memory_gb` counts 1e9 bytes, None is what the `gpu` has."""

    gpus: tuple[int, ...] = (1, 8)
    gpu: str = "H100"
    gpu_memory_gb: float | None = None
    mfu: float = 0.4
    mean_pieces: float = 25.0


def dry_run(arguments: list[str]) -> str:
    """What the run of this command would take, as a table; nothing is allocated, loaded or downloaded.

    Raises ValueError for families other than codec and sonar-llm, and as `plan` and `codec_plan` do.
    """
    machine, rest = tyro.cli(Machine, args=arguments, return_unknown_args=True, add_help=False)
    run = parse(rest)
    if isinstance(run, CodecRun):
        return _dry_codec_run(run, machine)
    if not isinstance(run, SonarLLMRun):
        raise ValueError("--plan is for codec and sonar-llm; the baselines of a size take less than its SONAR-LLM")
    sizes = [CorpusSize.of(Store(part.store).manifest) for part in run.parts if (Path(part.store) / "manifest.json").is_file()]
    corpus = sum_of(sizes) if sizes else TINY_STORIES
    found = plan(
        run.backbone,
        run.batches,
        run.settings(corpus.documents),
        codec_shape(run.codec),
        corpus,
        gpus=machine.gpus,
        device=machine.gpu,
        device_memory=machine.gpu_memory_gb and machine.gpu_memory_gb * 1e9,
        mfu=machine.mfu,
        train_decoder=run.train_decoder,
        frozen=None if run.holds_bfloat16(half=True) else torch.float32,
        shard_decoder=run.shard_decoder,
        checkpointing=run.activation_checkpointing,
    )
    return found.table()


NLLB_VOCABULARY = 256_206  # and SONAR's


def _dry_codec_run(run: CodecRun, machine: Machine) -> str:
    """A codec's; its shape is that of `init` where that is here, else the recipe's, then with NLLB's vocabulary."""
    here = run.init and (run.init in SHIPPED or (Path(run.init) / "config.json").is_file()) and "nllb:" not in run.init
    config = codec_shape(run.init) if here else run.codec_config(NLLB_VOCABULARY if run.init else run.pieces + 8)
    counted = 2 * (machine.mean_pieces + 1)  # target tokens of a pair
    return codec_plan(
        config,
        run.objective,
        run.train,
        pairs_per_step=run.tokens_per_step / counted if run.tokens_per_step else run.pairs_per_step,
        micro_pairs=run.micro_tokens / counted if run.micro_tokens else run.micro_pairs,
        pieces=machine.mean_pieces,
        gpus=machine.gpus,
        device=machine.gpu,
        device_memory=machine.gpu_memory_gb and machine.gpu_memory_gb * 1e9,
        mfu=machine.mfu,
    )


def sum_of(sizes: list[CorpusSize]) -> CorpusSize:
    """Several stores as one corpus."""
    documents, sentences, pieces = (sum(getattr(size, what) for size in sizes) for what in ("documents", "sentences", "pieces"))
    return CorpusSize(documents, sentences, pieces, sizes[0].end_pieces, ", ".join(size.name for size in sizes))


@dataclass(frozen=True)
class Opened:
    """What a run on stores begins with: the codec, named so that it is found from any folder, and the stores it made."""

    sonar: Sonar
    codec: str
    fingerprint: str
    stores: list[Store]
    weights: list[float]
    valid: Store
    settings: TrainConfig

    @classmethod
    def of(cls, run: StoreRun, world: World) -> Opened:
        """Load the codec and open the stores; rank 0 looks at the checksums of those that are not too large."""
        held = torch.bfloat16 if run.holds_bfloat16(run.train.in_bfloat16(world.device)) else torch.float32
        sonar = Sonar.from_pretrained(run.codec, world.device, held)  # at once where it will be: ranks share the host's memory
        fingerprint = sonar.fingerprint()
        stores, valid = [Store(part.store, fingerprint) for part in run.parts], Store(run.valid, fingerprint)
        if world.rank == 0:
            for store in (*stores, valid):
                if not store.verify(most=VERIFIED):
                    print0(world, f"{store.folder} is large, so its checksums were not looked at; Store(...).verify() does that")
        weights = [part.weight * len(store) for part, store in zip(run.parts, stores)]
        codec = run.codec if run.codec in (*SHIPPED, *PUBLISHED) else str(Path(run.codec).resolve())
        return cls(sonar, codec, fingerprint, stores, weights, valid, run.settings(sum(map(len, stores))))

    def normalizer(self, run: MseLCMRun) -> Normalizer:
        """Fitted on the stores to learn from."""
        whole = self.stores[0] if len(self.stores) == 1 else Store([part.store for part in run.parts], self.fingerprint)
        return Normalizer.fit(whole, run.normalizer_vectors)

    def samples(self, model: Teller) -> Evaluation:
        """How stories go on from the first two sentences of eight that are held out."""
        openings = [" ".join(self.valid[i].texts[:2]) for i in range(min(8, len(self.valid)))]
        stories = model.generate(openings, self.valid.lang, beam_size=1)
        return {**story_report(stories), "sample": stories[0].text}

    def tell(self, model: nn.Module, world: World) -> None:
        """Print what is about to be trained, and for how long."""
        print0(
            world,
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {sum(map(len, self.stores))} documents, "
            f"{self.settings.steps} steps, {world.size} rank(s)",
        )


class Teller(Protocol):
    """Whatever tells stories."""

    def generate(self, prompt: list[str], lang: str = ..., **options: Any) -> Any:
        """A story for each prompt."""


def train_run(run: CodecRun | StoreRun | SpeechRun, world: World) -> Evaluation:
    """Train whatever the run is of."""
    match run:
        case CodecRun():
            return train_codec(run, world)
        case SonarLLMRun():
            return train_sonar_llm(run, world)
        case MseLCMRun():  # and DiffusionLCMRun
            return train_lcm(run, world)
        case TokenLLMRun():
            return train_token_llm(run, world)
        case SpeechRun():
            return train_speech(run, world)
    raise ValueError(f"no family is trained by a {type(run).__name__}")


def train_sonar_llm(run: SonarLLMRun, world: World) -> Evaluation:
    """Train a SONAR-LLM on the store `run.data`, or on those of `run.mixture`."""
    begun = Opened.of(run, world)
    torch.manual_seed(run.train.seed)
    config = SonarLLMConfig(run.backbone, begun.sonar.config.width, begun.codec, begun.fingerprint, run.train_decoder)
    model = SonarLLM(config, begun.sonar)
    if run.init:
        model = _begun(SonarLLM, run.init, config, begun.sonar, same_codec=False)
    model.use(activation_checkpointing=run.activation_checkpointing, compile=run.compile)
    options = {"as_published": run.as_published, "context_noise": run.context_noise}
    return _train_concepts(model, run, begun, world, options, {"decoder": run.shard_decoder})


def train_lcm(run: MseLCMRun, world: World) -> Evaluation:
    """Train an MSE-LCM or a diffusion LCM; its normalizer is fitted first, the same on every rank."""
    begun = Opened.of(run, world)
    torch.manual_seed(run.train.seed)
    codec = (begun.sonar.config.width, begun.codec, begun.fingerprint)
    model: ConceptModule
    if isinstance(run, DiffusionLCMRun):
        shape, layers = towers(run.backbone, begun.sonar.config.width)
        diffusion = DiffusionLCMConfig(shape, layers, *codec, run.noise, run.context_dropout)
        if run.init:
            model = _begun(DiffusionLCM, run.init, diffusion, begun.sonar)
        else:
            model = DiffusionLCM(diffusion, begun.sonar, begun.normalizer(run))
        model.use(activation_checkpointing=run.activation_checkpointing, compile=run.compile)
    else:
        config = MseLCMConfig(run.backbone, *codec)
        if run.init:
            model = _begun(MseLCM, run.init, config, begun.sonar)
        else:
            model = MseLCM(config, begun.sonar, begun.normalizer(run))
        model.use(activation_checkpointing=run.activation_checkpointing, compile=run.compile)
    return _train_concepts(model, run, begun, world)


def _train_concepts(
    model: ConceptModule,
    run: StoreRun,
    begun: Opened,
    world: World,
    options: Mapping[str, Any] | None = None,
    sharding: Mapping[str, Any] | None = None,
) -> Evaluation:
    begun.tell(model, world)
    task = ConceptTask(
        model,
        begun.stores,
        begun.valid,
        run.batches,
        run.train.seed,
        begun.samples,
        weights=begun.weights,
        options=options,
        sharding=sharding,
    )
    return train(task, begun.settings, world)


def train_token_llm(run: TokenLLMRun, world: World) -> Evaluation:
    """Train a token-level LLM on the texts of a store."""
    begun = Opened.of(run, world)
    tokens = _tokens(run.tokenizer, begun.sonar)
    torch.manual_seed(run.train.seed)
    model = TokenLLM.new(run.backbone, tokens, tied=run.tied)
    if run.init:
        found = TokenLLM.from_pretrained(run.init)
        _same_shape(run.init, found.config, model.config)
        model = found.train()
    model.use(activation_checkpointing=run.activation_checkpointing, compile=run.compile)
    begun.tell(model, world)
    task = TokenTask(
        model,
        begun.stores,
        begun.valid,
        run.batches,
        run.train.seed,
        begun.samples,
        weights=begun.weights,
        options=TokenLossOptions(run.whole_text),
    )
    return train(task, begun.settings, world)


def _tokens(name: str, sonar: Sonar) -> Tokens:
    """The codec's tokenizer, that of a SentencePiece file, or one of Hugging Face's."""
    if not name:
        return CodecTokens(sonar.tokenizer)
    return SentencePieceTokens(Path(name)) if Path(name).is_file() else HuggingFaceTokens(name)


def _begun(family: type[Model], name: str, config: Any, sonar: Sonar, same_codec: bool = True) -> Model:
    """The model to go on from; ValueError when its shape is another, or its codec where it must be the same."""
    model = family.from_pretrained(name, sonar=sonar, same_codec=same_codec)
    if not same_codec:
        model.config = replace(model.config, codec=config.codec)
    _same_shape(name, model.config, config)
    return model.train()


def _same_shape(name: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        told = "; ".join(configs.difference(configs.to_dict(found), configs.to_dict(wanted)))
        raise ValueError(f"{name} cannot be gone on from, since its configuration is another: {told}")


def train_codec(run: CodecRun, world: World) -> Evaluation:
    """Train a SONAR codec on StoryWorld and bitext; the tokenizer is trained first, or found in the run's folder."""
    read = [_bitext(word, _known(run), world) for word in run.bitext]
    corpora = [corpus for corpus, _ in read]
    sources = [Source.of(corpus, run.bitext_share * share) for corpus, share in zip(corpora, _shares(corpora, run.temperature))]
    if run.stories:
        sources.insert(0, Source("storyworld", storyworld_rows(run.stories, run.train.seed), run.story_share))
    if unknown := set(run.taught) - {source.name for source in sources}:
        names = ", ".join(source.name for source in sources)
        raise ValueError(f"taught names {', '.join(sorted(unknown))}, but the corpora are {names}; name some of those")
    sources = [replace(source, taught=not run.taught or source.name in run.taught) for source in sources]
    teacher = Sonar.from_pretrained(run.teacher) if run.teacher else None
    torch.manual_seed(run.train.seed)
    sonar = _codec(run, sources, teacher, world)
    spread_D = None
    if isinstance(run.objective, DecoderObjective) and run.objective.vector_noise:
        spread_D = _spread(run, sonar, sources)
    judged = _judged(run, {corpus.name: held for corpus, held in read}) if run.judged else {}
    task = CodecTask(
        sonar,
        sources,
        run.objective,
        pairs_per_step=run.pairs_per_step,
        micro_pairs=run.micro_pairs,
        seed=run.train.seed,
        evaluate=lambda sonar: codec_evaluation(sonar, judged),
        teacher=teacher,
        balance=run.balance,
        anchors=run.anchors or None,
        spread_D=spread_D,
        tokens_per_step=run.tokens_per_step,
        micro_tokens=run.micro_tokens,
    )
    print0(
        world,
        f"{sum(p.numel() for p in task.model.parameters()) / 1e6:.1f}M parameters, {task.pairs_per_step} pairs a step from "
        + ", ".join(f"{len(s.rows)} rows of {s.name} ({s.weight:.0%})" for s in sources),
    )
    return train(task, run.train, world)


def _known(run: CodecRun) -> set[str]:
    """The languages that the run's codec, or its teacher, will have."""
    begun = run.init or run.teacher
    if begun.startswith("nllb:"):
        return {*SONAR_LANGUAGES, *run.new_languages}
    return {*codec_shape(begun).languages, *run.new_languages} if begun else set(run.languages)


def _bitext(word: str, known: set[str], world: World) -> tuple[Bitext, list[Row]]:
    """A corpus in languages that are known, without the rows that are held out for good; and those."""
    part = recipes.bitext_part(word)
    corpus = load_bitext(part.spec, tag=part.tag, synthetic=part.synthetic)
    unknown = Counter(code for row in corpus.rows for code in row if code not in known)
    told = ", ".join(f"{number} sides in {code}" for code, number in unknown.items())
    print0(world, corpus.report() + (f"; left out: {told}, which the codec does not have" if told else ""))
    kept: list[Row] = []
    held: list[Row] = []
    for row in corpus.rows:
        row = {code: text for code, text in row.items() if code in known}
        if len(row) > 1:
            (held if held_out(row.get("eng_Latn", "")) else kept).append(row)
    if not kept:
        raise ValueError(f"{word}: no row has two of the languages {', '.join(sorted(known)[:12])}, and is not held out")
    return replace(corpus, rows=kept), held


def _shares(corpora: Sequence[Bitext], temperature: float) -> list[float]:
    return mixing_weights([len(corpus.rows) for corpus in corpora], temperature) if corpora else []


def _codec(run: CodecRun, sources: Sequence[Source], teacher: Sonar | None, world: World) -> Sonar:
    """What a run begins with: random weights, a codec, an NLLB, or a student of its teacher; with new languages added."""
    texts = [text for source in sources for row in source.rows[:: max(1, len(source.rows) // 40_000)] for text in row.values()]
    if run.init:
        kind, _, folder = run.init.partition("nllb:")
        sonar = Sonar.from_nllb(folder) if folder and not kind else Sonar.from_pretrained(run.init)
        if run.new_languages or run.new_pieces:
            sonar = extended(sonar, run.new_languages, texts, run.new_pieces)
        return sonar.train()
    if teacher is None:
        tokenizer = _tokenizer(run, texts, world)
        return Sonar(run.codec_config(tokenizer.size), tokenizer)
    shape = replace(run, languages=teacher.languages).codec_config(teacher.tokenizer.size)
    sonar = Sonar(replace(shape, width=teacher.config.width, decoder=teacher.config.decoder), teacher.tokenizer)
    sonar.decoder.load_state_dict(teacher.decoder.state_dict())
    return sonar


def _judged(run: CodecRun, held: Mapping[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows on which a run is judged: StoryWorld's, and a hundred of those that are held out of each bitext."""
    sets = {}
    if run.stories:
        sets["storyworld"] = [
            row for story in storyworld.stories(20, split="valid") for row in storyworld.aligned(story.sentences)
        ]
    for name, rows in held.items():
        alike = [row for row in rows if set(row) == set(rows[0])]
        if len(alike) > 1:
            stem, _, kind = Path(name).name.partition(".")
            sets[stem if stem not in sets else f"{Path(name).parent.name}_{stem}_{kind}".lstrip("_")] = alike[:100]
    return sets


def codec_evaluation(sonar: Sonar, sets: Mapping[str, list[Row]]) -> Evaluation:
    """BLEU, xsim and the state of the space on each of several sets of aligned rows; the first one's keys are plain."""
    results: Evaluation = {}
    for i, (name, rows) in enumerate(sets.items()):
        prefix = f"{name}_" if i else ""
        space = space_report(sonar, rows)
        found = {**codec_report(sonar, rows, beam_size=1), **space}
        results |= {prefix + key: value for key, value in found.items()}
        if alarms := space_alarms(space, len(rows) * len(rows[0]), sonar.config.width):
            results[f"{prefix}alarms"] = "; ".join(alarms)
    return results


def _spread(run: CodecRun, sonar: Sonar, sources: Sequence[Source], sentences: int = 2000) -> Tensor:
    """(D,) standard deviation of each dimension: of a store's vectors, or of sentences drawn from the sources."""
    rng, texts, codes = random.Random(run.train.seed), [], []
    if run.spread:
        store = Store(run.spread, sonar.fingerprint())
        drawn = rng.sample(range(len(store)), min(sentences, len(store)))
        return torch.cat([torch.from_numpy(store[i].vectors_SD.astype("float32")) for i in drawn]).std(0)
    for source in rng.choices(sources, [source.weight for source in sources], k=sentences):
        code, text = rng.choice(sorted(rng.choice(source.rows).items()))
        texts.append(text)
        codes.append(code)
    training = sonar.training
    spread_D = sonar.eval().encode(texts, codes).std(0)
    sonar.train(training)
    return spread_D


def storyworld_rows(stories: int, seed: int) -> list[Row]:
    """Every sentence of that many training stories, in its four languages; repeated rows once."""
    unique = {
        row["eng_Latn"] + "\n" + row["deu_Latn"]: row
        for s in storyworld.stories(stories, seed=seed)
        for row in storyworld.aligned(s.sentences)
    }
    return list(unique.values())


def _tokenizer(run: CodecRun, texts: Sequence[str], world: World) -> Tokenizer:
    """Train the tokenizer on `texts`, once a run: a resumed run finds it in its folder."""
    folder = run.train.out / "tokenizer"
    if world.rank == 0 and not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train_tokenizer(texts, run.pieces, run.languages).save(folder)
    barrier(world)
    return Tokenizer.load(folder)


def train_speech(run: SpeechRun, world: World) -> Evaluation:
    """Train a speech encoder; what is to be spoken is spoken first, and each transcription encoded once."""
    sonar = Sonar.from_pretrained(run.codec, world.device)
    sets = _speech_sets(run.data, "train", run, world)
    valid = _speech_sets(run.valid, "valid", run, world)
    if len({one.name for one in valid}) < len(valid):
        raise ValueError(f"the sets to be judged on need different names, got {', '.join(one.name for one in valid)}")
    learnt = [targets_of(one, sonar, world) for one in sets]
    judged = {one.name: (one.utterances, targets_of(one, sonar, world)) for one in valid}
    targets = Targets(torch.cat([one.vectors for one in learnt]), learnt[0].codec)
    torch.manual_seed(run.train.seed)
    task = SpeechTask(
        _speech_encoder(run, sonar.config),
        [utterance for one in sets for utterance in one.utterances],
        targets,
        seconds_per_step=run.seconds_per_step,
        micro_seconds=run.micro_seconds,
        seed=run.train.seed,
        evaluate=lambda encoder: judge(encoder, judged),
        augment=run.augment,
        frozen_steps=run.frozen_steps,
        ctc_weight=run.ctc_weight,
        ctc_layer=run.ctc_layer,
        piece_weight=run.piece_weight,
        sonar=sonar,
        decoder_weight=run.decoder_weight,
    )
    del sonar  # 6 GB of Meta's, but for what the task still asks
    print0(
        world,
        f"{sum(p.numel() for p in task.encoder.parameters()) / 1e6:.1f}M parameters, {len(task.utterances)} utterances, "
        f"{sum(task.milliseconds) / 3.6e6:.2f} hours of speech",
    )
    return train(task, run.train, world)


def _speech_sets(specs: Sequence[str], split: Split, run: SpeechRun, world: World) -> list[SpeechSet]:
    """The sets named, opened; synthetic speech is made by rank 0 where it is not there yet."""
    progress, opened = sys.stderr.isatty(), list[SpeechSet]()
    for spec in specs if world.rank == 0 else ():
        dropped = Counter[str]()
        opened.append(speech_set(spec, split, run.synthetic, progress=progress, skip_missing=run.skip_missing, dropped=dropped))
        if dropped:
            print(f"{spec}: utterances left out: {', '.join(f'{count} {why}' for why, count in dropped.items())}", flush=True)
    barrier(world)
    return opened or [speech_set(spec, split, run.synthetic, skip_missing=run.skip_missing) for spec in specs]


def targets_of(opened: SpeechSet, sonar: Sonar, world: World) -> Targets:
    """The codec's vectors of what is said, kept beside the manifest for each codec."""
    file = vectors_beside(opened.manifest).with_suffix(f".{sonar.fingerprint()}.safetensors")
    return teacher_vectors(file, opened.utterances, sonar, world=world)


def _speech_encoder(run: SpeechRun, codec: CodecConfig) -> SpeechEncoder:
    """What a run begins with: random weights, a body under a fresh pooling, or a trained encoder of the same shape."""
    config = run.speech_config(codec)
    kind, _, source = run.init.partition(":")
    if run.init and kind not in ("body", "w2v-bert"):
        found = SpeechEncoder.from_pretrained(run.init)
        _same_shape(run.init, replace(found.config, codec=""), config)
        return found.train()
    encoder = SpeechEncoder(config)
    if run.init:
        pretrained = (SpeechEncoder.from_pretrained if kind == "body" else SpeechEncoder.from_w2v_bert)(source)
        _same_shape(run.init, replace(pretrained.config.body, dropout=config.body.dropout), config.body)
        encoder.body.load_state_dict(pretrained.body.state_dict(), assign=True)
    return encoder


if __name__ == "__main__":
    main()
