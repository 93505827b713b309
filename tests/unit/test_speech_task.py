"""What a speech encoder learns from: targets of one codec, batches that ranks and resumes cannot change, a body that waits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sonarkit.codec.config import PoolerConfig
from sonarkit.codec.pipeline import Sonar
from sonarkit.codec.speech import BodyConfig, PiecesConfig, SpeechConfig, SpeechEncoder
from sonarkit.core.distributed import World
from sonarkit.core.packing import pack
from sonarkit.text.speech_data import Utterance, open_speech, write_manifest
from sonarkit.training.loop import TrainConfig, train
from sonarkit.training.metrics import read_metrics
from sonarkit.training.optimizer import OptimizerConfig
from sonarkit.training.speech_task import (
    NONE,
    AugmentConfig,
    SpeechTask,
    Targets,
    augmented,
    judge,
    micro_batches,
    teacher_vectors,
    vectors_beside,
)

soundfile = pytest.importorskip("soundfile", reason='soundfile is not installed (pip install -e ".[speech]")')
ALONE = World(0, 1, 0, torch.device("cpu"))
CONFIG = SpeechConfig(
    32,
    BodyConfig(16, 1, 2, 24, dropout=0.0, kernel=3, subsampling="convolution"),
    "attention",
    PoolerConfig(32, 1, 2, 32, dropout=0.0),
)
TEXTS = ["The little fox ran home.", "Mia found a red kite.", "We ran.", "Tom gave his friend an old map."]


OPTIONS: dict[str, Any] = {"seconds_per_step": 2.0, "micro_seconds": 1.2, "seed": 0, "evaluate": lambda _: {}}


def speech(folder: Path, count: int = 12) -> list[Utterance]:
    """A tone for each text, so that there is something to learn, in unequal lengths."""
    rng = np.random.default_rng(0)
    utterances = []
    for i in range(count):
        time = np.arange(8_000 + 1_600 * (i % 5)) / 16_000
        tone = 0.3 * np.sin(2 * np.pi * 200 * (1 + i % 4) * time * (1 + 0.2 * time)) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{i}.flac", tone, 16_000)
        utterances.append(Utterance(folder / f"{i}.flac", TEXTS[i % 4], "eng_Latn", f"speech.tsv:{i + 2}"))
    write_manifest(folder / "speech.tsv", utterances)
    return utterances


def targets_for(utterances: list[Utterance]) -> Targets:
    rows = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    return Targets(torch.stack([rows[TEXTS.index(u.text)] for u in utterances]), "codec")


def task(utterances: list[Utterance], **options: Any) -> SpeechTask:
    torch.manual_seed(0)
    options = {**OPTIONS, "augment": NONE, **options}
    return SpeechTask(options.pop("encoder", None) or SpeechEncoder(CONFIG), utterances, targets_for(utterances), **options)


def settings(out: Path, steps: int, **options: Any) -> TrainConfig:
    return TrainConfig(out, steps, log_every=1, tensorboard=False, optimizer=OptimizerConfig(lr=1e-2), **options)


# ---------------------------------------------------------------------- the teacher


def test_targets_are_the_codecs_vectors_and_no_others(sonar: Sonar, tmp_path: Path) -> None:
    utterances, file = speech(tmp_path), vectors_beside(tmp_path / "speech.tsv")
    made = teacher_vectors(file, utterances, sonar, dtype=torch.float32)
    assert file.name == "speech.vectors.safetensors" and made.codec == sonar.fingerprint()
    torch.testing.assert_close(made.vectors, sonar.encode([u.text for u in utterances]))
    written = file.stat().st_mtime_ns
    torch.testing.assert_close(teacher_vectors(file, open_speech(tmp_path / "speech.tsv"), sonar).vectors, made.vectors)
    assert file.stat().st_mtime_ns == written, "made once"
    with pytest.raises(ValueError, match="vectors of other texts"):
        teacher_vectors(file, utterances[:5], sonar)
    with torch.no_grad():
        sonar.encoder.norm.weight.mul_(2)
    with pytest.raises(ValueError, match=f"vectors of the codec {made.codec}, but the teacher given is {sonar.fingerprint()}"):
        teacher_vectors(file, utterances, sonar)


# ---------------------------------------------------------------------- batches


def test_micro_batches_are_as_many_on_every_rank() -> None:
    rng = np.random.default_rng(0)
    for ranks, count in ((1, 9), (2, 9), (3, 3), (4, 40)):
        lengths = rng.integers(100, 900, count).tolist()
        cut = micro_batches(lengths, ranks, 1000)
        assert len({len(mine) for mine in cut}) == 1 and all(micro for mine in cut for micro in mine)
        assert sorted(i for mine in cut for micro in mine for i in micro) == list(range(count))
        if count > 9:
            assert all(sum(lengths[i] for i in micro) <= 1000 for mine in cut for micro in mine)


def test_a_step_is_the_same_on_any_number_of_ranks_and_after_a_resume(tmp_path: Path) -> None:
    learns = task(speech(tmp_path), augment=AugmentConfig(time_frames=5, mels=5))

    def step(rank: int, size: int, skip: int) -> dict[str, torch.Tensor]:
        batches = learns.batches(rank, size)
        for _ in range(skip):
            next(batches)
        resumed = learns.batches(rank, size)
        resumed.load_state_dict(batches.state_dict())
        return {source: f for batch in next(resumed) for source, f in zip(batch.sources, batch.features)}

    for skip in (0, 5):  # 5: in another epoch
        alone, shared = step(0, 1, skip), step(0, 2, skip) | step(1, 2, skip)
        assert alone.keys() == shared.keys() and all(torch.equal(alone[k], shared[k]) for k in alone)
    assert step(0, 1, 0).keys() != step(0, 1, 5).keys()
    batches, seen = learns.batches(0, 1), Counter[str]()
    while not seen or seen.total() % 12:
        seen.update(source for batch in next(batches) for source in batch.sources)
    assert len(seen) == 12 and len(set(seen.values())) == 1, "an epoch has every utterance once"


def test_sound_is_varied_as_told() -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    plain = augmented(samples, NONE, np.random.default_rng(0))
    slow = augmented(samples, replace(NONE, speeds=(0.8,)), np.random.default_rng(0))
    assert len(plain) == 198 and len(slow) == 248
    masked = augmented(samples, AugmentConfig((1.0,), 1, 30, 1, 10), np.random.default_rng(3))
    frames, mels = (masked == 0).all(1), (masked == 0).all(0)
    assert 0 < frames.sum() <= 30 and 0 < mels.sum() <= 10
    assert torch.equal(masked[~frames][:, ~mels], plain[~frames][:, ~mels])
    silent = np.pad(samples, 8_000)  # half a second before and after, in place of which comes up to a quarter
    drawn = [len(augmented(silent, replace(NONE, silence=0.25), np.random.default_rng(i))) for i in range(20)]
    assert 198 <= min(drawn) < 210 and 235 < max(drawn) <= 248
    noisy = [augmented(samples, replace(NONE, noise=1.0), np.random.default_rng(i)) for i in range(20)]
    assert 5 <= sum(torch.equal(one, plain) for one in noisy) <= 15, "half of them are left as they are"
    assert len({round(float((one - plain).abs().mean()), 3) for one in noisy}) > 5
    with pytest.raises(ValueError, match="speeds"):
        AugmentConfig(speeds=())
    with pytest.raises(ValueError, match="silence must not be negative"):
        AugmentConfig(silence=-1)


# ---------------------------------------------------------------------- training


def test_the_loss_is_the_mean_square_summed_over_utterances(tmp_path: Path) -> None:
    learns = task(speech(tmp_path))
    (batch, *_) = next(learns.batches(0, 1))
    loss = learns.loss(batch)
    expected = (learns.encoder(batch.features) - batch.targets).square().mean(1).sum()
    torch.testing.assert_close(loss.total, expected)
    assert loss.count == len(batch.features) == learns.cost(batch)["sentences"]


def test_frames_are_to_spell_what_is_said_too(tmp_path: Path) -> None:
    """The third text has fewer bytes than its tones have frames; where there are more bytes the loss is 0."""
    learns = task(speech(tmp_path), ctc_weight=0.25)
    assert learns.speller is not None and learns.loss_unit == "squared_distance_per_dimension_and_0.25_ctc"
    batches = learns.batches(0, 1)
    batch = next(batch for _ in range(9) for batch in next(batches) if TEXTS[2] in batch.texts)
    loss = learns.loss(batch)
    squared = (learns.encoder(batch.features) - batch.targets).square().mean(1).sum()
    frames, lengths = learns.encoder.body(  # of the only layer, before the last norm
        torch.nn.utils.rnn.pad_sequence(batch.features, batch_first=True), [len(f) for f in batch.features]
    )
    expected, nats, count = squared, 0.0, 0
    for i, text in enumerate(batch.texts):
        frames = learns.speller._frames_BLH[i, : lengths[i]]
        spelt = torch.tensor([1 + byte for byte in text.lower().encode()])
        log_probs = learns.speller.head(frames).log_softmax(-1)[:, None]
        sizes = torch.tensor([len(frames)]), torch.tensor([len(spelt)])
        one = torch.nn.functional.ctc_loss(log_probs, spelt, *sizes, reduction="sum", zero_infinity=True)
        expected, nats, count = expected + 0.25 * one / len(spelt), nats + one.item(), count + len(spelt)
    torch.testing.assert_close(loss.total, expected)
    assert loss.parts["ctc"] == (pytest.approx(nats), count) and nats > 0
    loss.total.backward()
    assert learns.speller.head.weight.grad is not None and learns.speller.head.weight.grad.abs().sum() > 0

    records = train_and_read(learns, settings(tmp_path / "run", 30))
    assert records[-1][1] < records[0][1]
    spelling = [row["loss_ctc"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss_ctc" in row]
    assert spelling[-1] < 0.7 * spelling[0]
    final = SpeechEncoder.from_pretrained(tmp_path / "run" / "final")  # without the head
    for key, value in final.state_dict().items():
        torch.testing.assert_close(value, learns.encoder.state_dict()[key], atol=1e-3, rtol=1e-3)


def test_pieces_are_to_be_heard_as_the_text_encoder_reads_them(sonar: Sonar, tmp_path: Path) -> None:
    utterances = speech(tmp_path)
    targets = teacher_vectors(tmp_path / "v", utterances, sonar, dtype=torch.float32)
    pieces = PiecesConfig(sonar.config.vocab_size, sonar.config.encoder.width)
    config = SpeechConfig(32, CONFIG.body, "text", None, pieces=pieces)
    before = {key: value.clone() for key, value in sonar.encoder.state_dict().items()}

    def learner(encoder: SpeechEncoder, **options: Any) -> SpeechTask:
        return SpeechTask(
            encoder, utterances, targets, **{"sonar": sonar, "piece_weight": 0.5, "augment": NONE, **OPTIONS, **options}
        )

    torch.manual_seed(0)
    learns = learner(SpeechEncoder(config))
    assert learns.loss_unit == "squared_distance_per_dimension_and_0.5_pieces"
    batch = next(batch for batch in next(learns.batches(0, 1)))
    assert batch.heard == sonar.source_ids(batch.texts, "eng_Latn")
    loss = learns.loss(batch)
    vectors = learns.encoder(batch.features)
    expected, nats = (vectors - batch.targets).square().mean(1).sum(), 0.0
    frames, lengths = learns.encoder.body(
        torch.nn.utils.rnn.pad_sequence(batch.features, batch_first=True), [len(f) for f in batch.features]
    )
    scores = learns.encoder.hearing(frames, sonar.encoder.embedding.weight)
    for one, length, heard in zip(scores, lengths, batch.heard):
        spelt = torch.tensor(heard) + 1
        sizes = torch.tensor([length]), torch.tensor([len(heard)])
        this = torch.nn.functional.ctc_loss(
            one[:length].log_softmax(-1)[:, None], spelt, *sizes, reduction="sum", zero_infinity=True
        )
        expected, nats = expected + 0.5 * this / len(heard), nats + this.item()
    torch.testing.assert_close(loss.total, expected)
    assert loss.parts["pieces"] == (pytest.approx(nats, rel=1e-4), sum(map(len, batch.heard)))

    learns = learner(SpeechEncoder(config), piece_weight=5.0, ctc_weight=0.1)
    train(learns, settings(tmp_path / "run", 40), ALONE)
    told = [row["loss_pieces"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss_pieces" in row]
    assert np.mean(told[-5:]) < 0.7 * np.mean(told[:5])
    assert all(torch.equal(value, before[key]) for key, value in sonar.encoder.state_dict().items())
    sonar.add_speech(SpeechEncoder.from_pretrained(tmp_path / "run" / "final"))
    assert sonar.encode_speech([utterances[0].path]).shape == (1, 32)
    with pytest.raises(ValueError, match="above 0 it needs pooling 'text'; got 0.5 and pooling 'attention'"):
        learner(SpeechEncoder(CONFIG))
    with pytest.raises(ValueError, match="pooling 'text' need the codec that made the targets, .*; got None"):
        learner(SpeechEncoder(config), sonar=None)


def test_the_decoder_is_to_say_what_is_said(sonar: Sonar, tmp_path: Path) -> None:
    """In nats an utterance has in the mean, whichever it is cut with, and the decoder stays what it is."""
    utterances = speech(tmp_path)
    targets = teacher_vectors(tmp_path / "v", utterances, sonar, dtype=torch.float32)

    def learner(**options: Any) -> SpeechTask:
        encoder = SpeechEncoder(CONFIG)
        return SpeechTask(
            encoder, utterances, targets, **{"sonar": sonar, "decoder_weight": 0.5, "augment": NONE, **OPTIONS, **options}
        )

    learns = learner()
    assert learns.loss_unit == "squared_distance_per_dimension_and_0.5_decoder"
    said = sonar.target_ids([u.text for u in utterances], "eng_Latn")
    mean_tokens = sum(len(ids) - 2 for ids in said) / len(said)
    before = {key: value.clone() for key, value in sonar.decoder.state_dict().items()}
    for batch in next(learns.batches(0, 1)):
        loss = learns.loss(batch)
        vectors = learns.encoder(batch.features)
        nats, count = torch.zeros(()), 0
        for vector, text in zip(vectors, batch.texts):  # one at a time
            one, losses = sonar.decoder.token_losses(vector[None], *pack(sonar.target_ids([text], "eng_Latn"), vector.device))
            nats, count = nats + one, count + len(losses)
        squared = (vectors - batch.targets).square().mean(1).sum()
        torch.testing.assert_close(loss.total, squared + 0.5 / mean_tokens * nats)
        assert loss.parts["decoder"] == (pytest.approx(nats.item(), rel=1e-5), count) and nats > 0
    train(learner(decoder_weight=100.0), settings(tmp_path / "run", 60), ALONE)
    told = [row["loss_decoder"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss_decoder" in row]
    assert np.mean(told[-10:]) < np.mean(told[:10]) - 0.3  # a random decoder can hardly be made to say anything
    for key, value in sonar.decoder.state_dict().items():
        assert torch.equal(value, before[key]), key
    with pytest.raises(ValueError, match="need the codec that made the targets, .*; got None"):
        learner(sonar=None)
    with pytest.raises(ValueError, match="must not be negative"):
        learner(decoder_weight=-1)
    with pytest.raises(ValueError, match="need the codec that made the targets, another"):
        SpeechTask(SpeechEncoder(CONFIG), utterances, replace(targets, codec="another"), sonar=sonar, decoder_weight=1, **OPTIONS)


def test_a_speech_encoder_learns_and_says_whose_vectors_it_gives(tmp_path: Path) -> None:
    utterances = speech(tmp_path)
    sets = {"heard": (utterances, targets_for(utterances))}
    learns = task(utterances, seconds_per_step=3.0, micro_seconds=3.0, evaluate=lambda encoder: judge(encoder, sets))
    before = judge(learns.encoder.eval(), sets)
    after = train(learns, settings(tmp_path / "run", 120), ALONE)
    assert before["heard_mse"] > 0.8 and before["heard_error_percent"] > 30
    assert float(after["heard_mse"]) < 0.5 and after["heard_error_percent"] == 0
    final = SpeechEncoder.from_pretrained(tmp_path / "run" / "final")
    assert final.config.codec == "codec" and judge(final, sets)["heard_error_percent"] == 0
    other = replace(targets_for(utterances), codec="another")
    with pytest.raises(ValueError, match="vectors of the codec codec, the targets are another's"):
        SpeechTask(final, utterances, other, **OPTIONS)


def test_the_body_waits_as_long_as_told(tmp_path: Path) -> None:
    learns = task(speech(tmp_path), frozen_steps=2)
    before = {key: value.clone() for key, value in learns.encoder.state_dict().items()}

    def changed() -> set[str]:
        return {key.split(".")[0] for key, value in learns.encoder.state_dict().items() if not torch.equal(value, before[key])}

    train(learns, settings(tmp_path / "run", 2), ALONE)
    assert changed() == {"pooler"}
    train(task(learns.utterances, frozen_steps=2, encoder=learns.encoder), settings(tmp_path / "on", 3), ALONE)
    assert changed() == {"pooler", "body"}


def test_a_run_resumes_to_the_last_bit(tmp_path: Path) -> None:
    utterances = speech(tmp_path)
    options: dict[str, Any] = {
        "augment": AugmentConfig(time_frames=5, mels=5),
        "frozen_steps": 3,
        "ctc_weight": 0.1,
        "encoder": SpeechEncoder(replace(CONFIG, body=replace(CONFIG.body, dropout=0.1))),
    }
    weights = {key: value.clone() for key, value in options["encoder"].state_dict().items()}
    whole = train_and_read(task(utterances, **options), settings(tmp_path / "whole", 6, save_every=4))
    for later in (tmp_path / "whole").glob("step-*6"):
        later.rename(tmp_path / "gone")
    options["encoder"].load_state_dict(weights)
    again = train_and_read(task(utterances, **options), settings(tmp_path / "whole", 6, save_every=4))
    assert [row for row in again if row[0] > 4] == [row for row in whole if row[0] > 4]


def train_and_read(learns: SpeechTask, config: TrainConfig) -> list[tuple[int, float]]:
    train(learns, config, ALONE)
    return [(row["step"], row["loss_mse"]) for row in read_metrics(config.out / "metrics.jsonl") if "loss_mse" in row]


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    utterances = speech(tmp_path)
    with pytest.raises(ValueError, match="12 utterances, 5 vectors"):
        SpeechTask(SpeechEncoder(CONFIG), utterances, targets_for(utterances[:5]), **OPTIONS)
    with pytest.raises(ValueError, match="of width 7, the speech encoder's 32"):
        SpeechTask(SpeechEncoder(CONFIG), utterances, Targets(torch.zeros(12, 7), ""), **OPTIONS)
    with pytest.raises(ValueError, match=r"speech\.tsv:\d+ .* s long, more than micro_seconds = 0\.6"):
        task(utterances, micro_seconds=0.6)
    with pytest.raises(ValueError, match="one of the body's layers 1 to 1; got 0.1 and 2"):
        task(utterances, ctc_weight=0.1, ctc_layer=2)
    with pytest.raises(ValueError, match="pooling 'mean' has none"):
        encoder = SpeechEncoder(SpeechConfig(32, replace(CONFIG.body, width=32), "mean", None))
        task(utterances, frozen_steps=1, encoder=encoder)
