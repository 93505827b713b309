"""Training the token-level baseline: the documents of the concept models, resumed to the same losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.encode import encode_into
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.sonar_llm import SonarLLM, SonarLLMConfig
from sonarkit.models.token_llm import CodecTokens, SentencePieceTokens, TokenLLM
from sonarkit.store.reader import Store
from sonarkit.text import storyworld
from sonarkit.text.tokenizer import Tokenizer
from sonarkit.training.concept_task import ConceptDataConfig, ConceptTask
from sonarkit.training.loop import TrainConfig, train
from sonarkit.training.metrics import read_metrics
from sonarkit.training.optimizer import OptimizerConfig
from sonarkit.training.token_task import TokenLossOptions, TokenTask

ALONE = World(0, 1, 0, torch.device("cpu"))
BACKBONE = BackboneConfig(hidden=32, ffn=48, layers=2, heads=2, head_dim=16)
DATA = ConceptDataConfig(documents_per_step=6, micro_tokens=2400)


@pytest.fixture
def store(sonar: Sonar, tmp_path: Path) -> Path:
    corpus = tmp_path / "stories.txt"
    corpus.write_text("\n\n".join(story.text() for story in storyworld.stories(10, split="valid")) + "\n", encoding="utf-8")
    encode_into(str(corpus), tmp_path / "store", sonar, ALONE)
    sonar.tokenizer.save(tmp_path)
    return tmp_path / "store"


def make_task(store: Path, seed: int = 0, **options: bool) -> TokenTask:
    torch.manual_seed(seed)
    model = TokenLLM.new(BACKBONE, CodecTokens(Tokenizer.load(store.parent)))
    opened = Store(store)
    return TokenTask(model, [opened], opened, DATA, seed=1, options=TokenLossOptions(**options))


def training(out: Path, steps: int = 4) -> TrainConfig:
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-5, warmup_steps=2, schedule="constant")
    return TrainConfig(out, steps=steps, log_every=1, save_every=2, tensorboard=False, optimizer=optimizer)


def losses(out: Path) -> list[list[float]]:
    records = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "train"]
    return [[record["step"], record["loss_nats_per_token"], record["grad_norm"], record["bits_per_byte"]] for record in records]


def test_a_step_has_the_documents_that_a_concept_model_has(store: Path, sonar: Sonar) -> None:
    opened = Store(store)
    concept = SonarLLM(SonarLLMConfig(BACKBONE, 32, "tiny", sonar.fingerprint()), sonar)
    ours, theirs = make_task(store).batches(0, 1), ConceptTask(concept, [opened], opened, DATA, seed=1).batches(0, 1)
    for _ in range(3):
        for mine, other in zip(next(ours), next(theirs), strict=True):
            assert [d.source for d in mine] == [d.source for d in other]
            assert [d.bytes for d in mine] == [d.bytes for d in other]


def test_stored_ids_are_read_where_they_fit_and_texts_where_not(store: Path, sonar: Sonar) -> None:
    task, opened = make_task(store), Store(store)
    assert task._load(opened)(3).pieces == opened[3].tokens[: DATA.max_sentences]
    other = TokenLLM.new(BACKBONE, SentencePieceTokens(sonar.tokenizer.model))
    read = TokenTask(other, [opened], opened, DATA, seed=1)._load(opened)(3)
    # SONAR's layout has one token more in front; the store's codec cuts at its 64 tokens, reading texts does not
    stored = [[i - 1 for i in ids] for ids in opened[3].tokens]
    assert [ids[: len(own)] for ids, own in zip(read.pieces, stored, strict=True)] == stored
    assert read.bytes == task._load(opened)(3).bytes and read.source == task._load(opened)(3).source


def test_a_run_resumed_has_the_losses_of_one_that_was_not_interrupted(store: Path, tmp_path: Path) -> None:
    whole = train(make_task(store), training(tmp_path / "whole"), ALONE)
    train(make_task(store), replace(training(tmp_path / "halves"), max_minutes=1e-9), ALONE)  # one step, then a checkpoint
    again = train(make_task(store, seed=5), training(tmp_path / "halves"), ALONE)
    assert again == whole
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert losses(tmp_path / "whole")[-1][1] < losses(tmp_path / "whole")[0][1] - 0.1
    told = TokenLLM.from_pretrained(tmp_path / "whole" / "final")
    opened = Store(store)
    evaluated = TokenTask(told, [opened], opened, DATA, seed=1).evaluate(ALONE)
    assert evaluated["bits_per_byte"] == pytest.approx(whole["bits_per_byte"], rel=1e-3)  # float16 on disk


def test_the_evaluation_leaves_first_sentences_out_whatever_is_trained(store: Path) -> None:
    task = make_task(store)
    documents = [task._load(task.valid)(i) for i in range(len(task.valid))]
    loss = task.token_model.loss(documents)
    for found in (task.evaluate(ALONE), make_task(store, whole_text=False).evaluate(ALONE)):
        assert found["loss_nats_per_token"] == pytest.approx(loss.total.item() / loss.count, rel=1e-5)
    (batch,) = next(make_task(store).batches(0, 1))[:1]
    assert make_task(store).loss(batch).count > make_task(store, whole_text=False).loss(batch).count
    assert make_task(store).cost(batch)["sentences"] == sum(len(document.pieces) for document in batch)
    assert make_task(store).describe(batch) == [document.source for document in batch]
