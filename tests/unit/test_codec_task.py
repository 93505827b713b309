"""What a codec learns from: pairs drawn as told, parts that stay frozen, a teacher."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sonarkit.codec.config import EncoderConfig, PoolerConfig, Pooling
from sonarkit.codec.extend import extended
from sonarkit.codec.objectives import DecoderObjective, ObjectiveConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.core.distributed import World
from sonarkit.text.bitext import Bitext
from sonarkit.text.tokenizer import Tokenizer
from sonarkit.training.codec_task import CodecTask, Pair, Row, Source, SourcePairs
from sonarkit.training.loop import TrainConfig, train
from sonarkit.training.metrics import read_metrics
from sonarkit.training.optimizer import OptimizerConfig

ALONE = World(0, 1, 0, torch.device("cpu"))
DISTILL = ObjectiveConfig(0.0, 0.0, 0.0, distill_weight=1.0)
ROWS: list[Row] = [
    {"eng_Latn": "The little fox ran home.", "fra_Latn": "Le petit renard rentra à la maison.", "deu_Latn": "Der Fuchs lief."},
    {"eng_Latn": "Mia found a red kite.", "fra_Latn": "Mia trouva un cerf-volant rouge.", "deu_Latn": "Mia fand es."},
    {"eng_Latn": "They all laughed.", "fra_Latn": "Ils rirent tous.", "deu_Latn": "Alle lachten."},
]


def task(
    sonar: Sonar, objective: ObjectiveConfig | DecoderObjective, sources: Sequence[Source] = (), **options: Any
) -> CodecTask:
    options = {"pairs_per_step": 6, "micro_pairs": 4, "seed": 0, "evaluate": lambda _: {}, **options}
    return CodecTask(sonar, sources or [Source("rows", ROWS, 1.0)], objective, **options)


def settings(out: Path, steps: int, **options: Any) -> TrainConfig:
    return TrainConfig(
        out, steps, log_every=1, tensorboard=False, optimizer=OptimizerConfig(lr=5e-3, weight_decay=0.1), **options
    )


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(module: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def drawn(source: Source, count: int = 3000, **options: Any) -> list[Pair]:
    known = ("eng_Latn", "fra_Latn", "deu_Latn", "spa_Latn")
    pairs, rng = SourcePairs(source, **{"codes": known, "anchors": known, "balance": "rows", **options}), random.Random(0)
    return [pairs.draw(rng) for _ in range(count)]


# ---------------------------------------------------------------------- pairs


def test_languages_are_balanced_whatever_their_rows() -> None:
    rows = [{"eng_Latn": f"e{i}", "fra_Latn": f"f{i}"} for i in range(97)] + [
        {"eng_Latn": f"e{i}", "deu_Latn": "d"} for i in range(3)
    ]
    source = Source("lopsided", rows, 1.0)
    by_rows = Counter(pair.codes for pair in drawn(source))
    assert by_rows["eng_Latn", "deu_Latn"] + by_rows["deu_Latn", "eng_Latn"] == pytest.approx(3000 * 0.03, abs=30)
    balanced = drawn(source, balance="languages")
    directions = Counter(pair.codes for pair in balanced)
    assert len(directions) == 4 and all(count == pytest.approx(750, abs=100) for count in directions.values())
    assert all(set(pair.codes) <= set(pair.row) for pair in balanced)
    assert len({pair.row["fra_Latn"] for pair in balanced if "fra_Latn" in pair.row}) == 97, "every row has its turn"


def test_anchors_are_the_second_sides() -> None:
    for balance in ("rows", "languages"):
        pairs = drawn(Source("rows", ROWS, 1.0), anchors=("eng_Latn",), balance=balance)
        assert {pair.codes for pair in pairs} == {("fra_Latn", "eng_Latn"), ("deu_Latn", "eng_Latn")}


def test_sources_are_mixed_by_weight(sonar: Sonar) -> None:
    other = [{code: text.upper() for code, text in row.items()} for row in ROWS]
    learns = task(
        sonar, ObjectiveConfig(), [Source("a", ROWS, 3.0), Source("b", other, 1.0)], pairs_per_step=2000, micro_pairs=2000
    )
    (batch,) = next(learns.batches(0, 1))
    texts = learns.describe(batch)
    assert sum(text == text.upper() for text in texts) == pytest.approx(500, abs=80)


def test_step_k_has_the_same_pairs_on_any_number_of_ranks(sonar: Sonar) -> None:
    learns = task(sonar, ObjectiveConfig(), balance="languages", pairs_per_step=8)

    def pairs(rank: int, size: int) -> dict[int, tuple[list[int], list[int]]]:
        batches = learns.batches(rank, size)
        next(batches)
        return {
            place: (batch.sources[i], batch.sources[i + batch.pairs])
            for batch in next(batches)
            for i, place in enumerate(batch.places or [])
        }

    assert sorted(pairs(0, 1)) == list(range(8))
    assert pairs(0, 2).keys() == {0, 2, 4, 6}
    assert pairs(0, 1) == pairs(0, 2) | pairs(1, 2)


def test_a_tag_stands_behind_the_language_of_sources_only(sonar: Sonar) -> None:
    learns = task(sonar, ObjectiveConfig(), [Source("mined", ROWS, 1.0, "<MINED_DATA>")])
    for batch in next(learns.batches(0, 1)):
        for source, target in zip(batch.sources, batch.targets):
            assert [sonar.tokenizer.piece(i) for i in source[1:2]] == ["<MINED_DATA>"]
            assert source[0] == target[1] and source[2:-1] == target[2:-1], "the tag is the only difference"
        learns.loss(batch).total.backward()


def test_a_tag_does_not_make_a_sentence_too_long(sonar: Sonar) -> None:
    rows = [{"eng_Latn": "fox " * 200, "fra_Latn": "renard " * 200}]
    learns = task(sonar, ObjectiveConfig(), [Source("mined", rows, 1.0, "<MINED_DATA>")])
    with pytest.warns(UserWarning, match="were cut"):
        batches = next(learns.batches(0, 1))
    assert {len(ids) for batch in batches for ids in batch.sources} == {sonar.config.max_tokens}
    learns.loss(batches[0])


def test_splices_end_in_a_sentence_of_the_step_in_their_language(sonar: Sonar) -> None:
    learns = task(sonar, ObjectiveConfig(dae_splice=0.5), pairs_per_step=8, micro_pairs=3)
    [*batches] = next(learns.batches(0, 1))
    of_step = {tuple(ids) for batch in batches for ids in batch.targets}
    for batch in batches:
        assert batch.others and all(tuple(ids) in of_step for ids in batch.others)
        assert [ids[1] for ids in batch.others] == [ids[1] for ids in batch.targets], "in the language of the sentence"
    assert any(other != target for batch in batches for other, target in zip(batch.others or [], batch.targets))
    assert all(batch.others is None for batch in next(task(sonar, ObjectiveConfig()).batches(0, 1)))


def test_nothing_that_a_machine_wrote_is_learnt_to_be_said(sonar: Sonar) -> None:
    bitext = Bitext("back", ROWS, "<MMT_BT_DATA>", ("fra_Latn",))
    learns = task(sonar, ObjectiveConfig(dae_weight=1.0), [Source.of(bitext, 1.0)])
    french, tag = sonar.tokenizer.language_id("fra_Latn"), sonar.tokenizer.size - 2
    for batch in next(learns.batches(0, 1)):
        pairs = len(batch.sources) // 2
        for i, (source, target) in enumerate(zip(batch.sources, batch.targets)):
            assert (source[0] == french) == (source[1] == tag) == (target == [])
            assert (batch.sources[(i + pairs) % (2 * pairs)][0] == french) == (source[0] != french), "one side is French"
        tokens = sum(max(0, len(target) - 2) for target in batch.targets)
        loss = learns.loss(batch)
        assert loss.count == tokens == loss.parts["mt"][1] == loss.parts["dae"][1]


# ---------------------------------------------------------------------- what is frozen


def test_a_decoder_is_tuned_and_the_encoder_stays_to_the_last_bit(sonar: Sonar, tmp_path: Path) -> None:
    for module in sonar.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    encoder, decoder, vectors = weights(sonar.encoder), weights(sonar.decoder), sonar.encode([row["eng_Latn"] for row in ROWS])
    learns = task(sonar, DecoderObjective(vector_noise=0.1), evaluate=lambda codec: {"n": 1.0})
    train(learns, settings(tmp_path, 5, eval_every=2), ALONE)
    assert same(sonar.encoder, encoder)
    assert not any(torch.equal(value, decoder[key]) for key, value in sonar.decoder.state_dict().items()), "all of it moved"
    assert torch.equal(sonar.eval().encode([row["eng_Latn"] for row in ROWS]), vectors)
    curve = [record["loss_decoder"] for record in read_metrics(tmp_path / "metrics.jsonl") if "loss_decoder" in record]
    assert len(curve) == 5 and curve[-1] < curve[0]
    task(sonar, ObjectiveConfig()).loss(next(task(sonar, ObjectiveConfig()).batches(0, 1))[0]).total.backward()
    assert all(p.grad is not None for p in sonar.encoder.parameters()), "another task learns all of it again"


def test_a_tuned_decoder_resumes_to_the_same_weights(sonar: Sonar, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = {key: value.clone() for key, value in sonar.state_dict().items()}

    def run(out: Path, *sittings: int) -> dict[str, Tensor]:
        for steps in sittings:
            sonar.load_state_dict(start)
            learns = task(sonar, DecoderObjective(vector_noise=0.2), spread_D=torch.linspace(0.1, 1.0, 32))
            config = settings(out, 6, save_every=1)
            if steps < 6:
                stopped = learns.loss
                calls = iter(range(2 * steps))  # two micro-batches a step

                def loss(batch: Any, stopped: Any = stopped, calls: Any = calls) -> Any:
                    if next(calls, None) is None:
                        raise KeyboardInterrupt
                    return stopped(batch)

                learns.loss = loss  # type: ignore[method-assign]
                with pytest.raises(KeyboardInterrupt):
                    train(learns, config, ALONE)
            else:
                train(learns, config, ALONE)
        return weights(sonar.decoder)

    whole, halves = run(tmp_path / "whole", 6), run(tmp_path / "halves", 3, 6)
    assert "from step 3 of 6" in capsys.readouterr().out
    assert all(torch.equal(whole[key], halves[key]) for key in whole)


def test_a_resume_with_another_frozen_encoder_is_refused(sonar: Sonar, tmp_path: Path) -> None:
    train(task(sonar, DecoderObjective()), settings(tmp_path, 1), ALONE)
    with torch.no_grad():
        sonar.encoder.norm.weight.mul_(1.5)
    with pytest.raises(ValueError, match="frozen_encoder"):
        train(task(sonar, DecoderObjective()), settings(tmp_path, 1), ALONE)


def test_a_decoder_without_a_loss_stays_as_it_is(sonar: Sonar, tmp_path: Path) -> None:
    encoder, decoder = weights(sonar.encoder), weights(sonar.decoder)
    train(task(sonar, ObjectiveConfig(0.0, 1.0, 0.0)), settings(tmp_path, 3), ALONE)
    assert same(sonar.decoder, decoder) and not same(sonar.encoder, encoder), "though there is weight decay"


# ---------------------------------------------------------------------- teachers


def test_a_smaller_student_with_a_tokenizer_of_fewer_languages(sonar: Sonar, tmp_path: Path) -> None:
    """The student knows French only; the anchors are English, which the teacher reads."""
    student = narrow(sonar, ("fra_Latn",))
    learns = task(
        student, DISTILL, [Source("rows", [{k: row[k] for k in ("eng_Latn", "fra_Latn")} for row in ROWS], 1.0)], teacher=sonar
    )
    wanted = sonar.encode([row["eng_Latn"] for row in ROWS])

    def distance() -> float:
        return float((student.eval().encode([row["fra_Latn"] for row in ROWS], "fra_Latn") - wanted).square().mean())

    before = distance()
    train(learns, settings(tmp_path, 40), ALONE)
    assert distance() < 0.3 * before


def test_both_sides_are_pulled_to_the_teacher_and_weights_are_apart(sonar: Sonar) -> None:
    student = extended(sonar, ["ita_Latn"])
    rows = [{"eng_Latn": row["eng_Latn"], "ita_Latn": row["fra_Latn"]} for row in ROWS]
    learns = task(student, replace(DISTILL, mt_weight=1.0, distill_weight=2.0), [Source("rows", rows, 1.0)], teacher=sonar)
    batch = next(learns.batches(0, 1))[0]
    assert batch.teacher_sources == batch.sources[batch.pairs :], "side b is English, as the teacher has it"
    loss = learns.loss(batch)
    with torch.no_grad():
        texts = learns.describe(batch)
        english = [row["eng_Latn"] for text in texts for row in rows if row["ita_Latn"] == text]
        teacher = sonar.encode(english)
        squared = float((student.encode(texts, "ita_Latn") - teacher).square().mean(1).sum())
    total, count = loss.parts["distill"]
    assert count == 2 * batch.pairs and float(total) == pytest.approx(squared, rel=1e-4), "English itself is at distance 0 still"
    mean = learns.per_pair
    assert mean.sentences == 2
    assert loss.total.item() == pytest.approx(float(loss.parts["mt"][0]) + 2.0 * squared * mean.tokens / 2, rel=1e-5)


def test_what_was_known_stays_in_its_place_while_other_text_is_learnt(sonar: Sonar, tmp_path: Path) -> None:
    """With itself as the teacher of one corpus, and in the same steps without."""
    new: list[Row] = [{"eng_Latn": "Rain fell on the tin roof.", "fra_Latn": "La pluie tombait."}]
    texts = [text for row in ROWS for text in row.values()]
    codes = [code for row in ROWS for code in row]
    before = sonar.encode(texts, codes)

    def drift(taught: bool) -> float:
        student = deepcopy(sonar)
        sources = [Source("old", ROWS, 0.5, taught=taught), Source("new", new, 0.5, taught=False)]
        learns = task(student, ObjectiveConfig(dae_weight=1.0, distill_weight=5.0), sources, teacher=sonar, micro_pairs=6)
        batch = next(learns.batches(0, 1))[0]
        old = [text not in new[0].values() for text in learns.describe(batch)]
        assert 0 < sum(old) < batch.pairs and [bool(ids) for ids in batch.teacher_sources or ()] == [
            taught and is_old for is_old in old
        ]
        assert learns.loss(batch).parts["distill"][1] == 2 * sum(old) * taught
        train(learns, settings(tmp_path / str(taught), 30), ALONE)
        return float((student.eval().encode(texts, codes) - before).square().mean())

    assert drift(True) < 0.5 * drift(False)


def test_back_translations_are_distilled_without_a_target(sonar: Sonar) -> None:
    """French is a machine's, English is not the student's language: nothing could be said, all of it can be pulled."""
    rows = [{k: row[k] for k in ("eng_Latn", "fra_Latn")} for row in ROWS]
    student = narrow(sonar, ("fra_Latn",))
    learns = task(student, DISTILL, [Source("back", rows, 1.0, "<MMT_BT_DATA>", ("fra_Latn",))], teacher=sonar)
    batch = next(learns.batches(0, 1))[0]
    assert not any(batch.targets) and batch.sources[batch.pairs :] == [[]] * batch.pairs
    loss = learns.loss(batch)
    assert loss.count == sum(len(ids) - 1 for ids in batch.sources[: batch.pairs])
    total, count = loss.parts["distill"]
    mean = learns.per_pair
    assert count == batch.pairs and mean.sentences == 1
    assert loss.total.item() == pytest.approx(float(total) * mean.tokens, rel=1e-5)


def narrow(sonar: Sonar, languages: tuple[str, ...]) -> Sonar:
    """An encoder of half the width whose pooler gives vectors as wide as the teacher's."""
    torch.manual_seed(1)
    tokenizer = Tokenizer(sonar.tokenizer.model, languages)
    encoder = EncoderConfig(16, 1, 2, 32, dropout=0.0, pooling="attention", pooler=PoolerConfig(32, 1, 2, 32, dropout=0.0))
    return Sonar(replace(sonar.config, languages=languages, vocab_size=tokenizer.size, encoder=encoder), tokenizer)


def test_what_cannot_be_taught_is_refused(sonar: Sonar) -> None:
    wide = Sonar(replace(sonar.config, width=64, encoder=replace(sonar.config.encoder, width=64)), sonar.tokenizer)
    italian = [Source("pairs", [{"eng_Latn": "a", "ita_Latn": "b"}], 1.0)]
    with pytest.raises(ValueError, match="width 64, the codec of width 32"):
        task(sonar, DISTILL, teacher=wide)
    with pytest.raises(ValueError, match="distill_weight is above 0, but there is no teacher"):
        task(sonar, DISTILL)
    with pytest.raises(ValueError, match="a teacher teaches by distill_weight alone"):
        task(sonar, ObjectiveConfig(), teacher=extended(sonar, ["ita_Latn"]))
    with pytest.raises(ValueError, match="a teacher teaches by distill_weight alone"):
        task(sonar, DecoderObjective(), teacher=extended(sonar, ["ita_Latn"]))
    with pytest.raises(ValueError, match="the teacher would learn, too"):
        task(sonar, DISTILL, teacher=sonar)
    with pytest.raises(ValueError, match="pairs: ita_Latn is not known to the codec, whose languages are eng_Latn"):
        task(sonar, ObjectiveConfig(), italian)
    with pytest.raises(ValueError, match="ita_Latn is not known to the codec"):  # MT would need the anchor's tokens
        task(sonar, replace(DISTILL, mt_weight=1.0), italian, teacher=extended(sonar, ["ita_Latn"]))
    with pytest.raises(ValueError, match="none of its 3 rows has two languages to learn from"):
        task(sonar, ObjectiveConfig(), anchors=["spa_Latn"])
    with pytest.raises(ValueError, match="anchors ita_Latn: not among the languages of the codec"):
        task(sonar, ObjectiveConfig(), anchors=["ita_Latn"])
    with pytest.raises(ValueError, match="weight above 0"):
        task(sonar, ObjectiveConfig(), [Source("rows", ROWS, 0.0)])
    with pytest.raises(ValueError, match="must not be negative"):
        Source("rows", ROWS, -1.0)
    with pytest.raises(ValueError, match="the tag is '' or one of <MINED_DATA>"):
        Source("rows", ROWS, 1.0, "<MINED>")


# ---------------------------------------------------------------------- poolings


@pytest.mark.parametrize("pooling", ["mean", "max", "last", "attention"])
def test_every_pooling_trains(sonar: Sonar, pooling: Pooling, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pooler = PoolerConfig(32, 1, 4, 64, dropout=0.0) if pooling == "attention" else None
    codec = Sonar(replace(sonar.config, encoder=replace(sonar.config.encoder, pooling=pooling, pooler=pooler)), sonar.tokenizer)
    train(task(codec, ObjectiveConfig(dae_weight=0.1)), settings(tmp_path, 40), ALONE)
    curve = [record for record in read_metrics(tmp_path / "metrics.jsonl") if "loss_mt" in record]
    assert {"loss_mt", "loss_mse", "loss_dae"} <= set(curve[0])
    assert curve[-1]["loss_mt"] < 0.6 * curve[0]["loss_mt"]


# ---------------------------------------------------------------------- budgets and cutting


def summed(task: CodecTask) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, count and gradients of a step, in float64."""
    task.sonar.double()
    task.model.zero_grad()
    total = count = 0.0
    for batch in next(task.batches(0, 1)):
        loss = task.loss(batch)
        loss.total.backward()
        total, count = total + loss.total.item(), count + loss.count
    return total, count, {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "objective",
    [
        ObjectiveConfig(1.0, 0.5, 0.3, dae_share=0.4, word_shuffle=3),
        ObjectiveConfig(0.0, 0.0, 1.0, noise_ratio=0.0, dae_share=0.5),
        ObjectiveConfig(1.0, 0.5, 0.3, noise_ratio=0.0, dae_splice=0.7),
        DecoderObjective(vector_noise=0.7),
    ],
)
def test_cutting_into_micro_batches_changes_nothing(sonar: Sonar, objective: ObjectiveConfig | DecoderObjective) -> None:
    spread_D = torch.linspace(0.5, 1.5, sonar.config.width)
    whole = summed(task(sonar, objective, pairs_per_step=11, micro_pairs=11, spread_D=spread_D))
    parts = summed(task(sonar, objective, pairs_per_step=11, micro_pairs=2, spread_D=spread_D))
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-12)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(parts[2][name], gradient, rtol=1e-9, atol=1e-14, msg=name)


@pytest.mark.parametrize("pairs,size,micro", [(18, 4, 4), (7, 3, 1), (5, 5, 3)])
def test_ranks_have_equally_many_micro_batches_and_each_pair_once(sonar: Sonar, pairs: int, size: int, micro: int) -> None:
    steps = [next(task(sonar, ObjectiveConfig(), pairs_per_step=pairs, micro_pairs=micro).batches(r, size)) for r in range(size)]
    assert len({len(step) for step in steps}) == 1
    places = [place for step in steps for batch in step for place in batch.places or []]
    assert sorted(places) == list(range(pairs))
    assert max(batch.pairs for step in steps for batch in step) <= micro + 1


def test_a_budget_of_tokens_decides_how_many_pairs(sonar: Sonar) -> None:
    rows = [{"eng_Latn": f"The fox found {i} red kites.", "fra_Latn": f"Le renard trouva {i} cerfs-volants."} for i in range(50)]
    budgeted = task(sonar, ObjectiveConfig(), [Source("rows", rows, 1.0)], tokens_per_step=3000, micro_tokens=500)
    step = next(budgeted.batches(0, 1))
    counts = [batch.tokens(decoded=True) for batch in step]
    assert sum(counts) == pytest.approx(3000, rel=0.05) and max(counts) < 600
    assert budgeted.config()["pairs_per_step"] == budgeted.pairs_per_step == sum(batch.pairs for batch in step)
