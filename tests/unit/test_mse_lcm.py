"""The MSE LCM: its loss against the plain path, its predictions, what it learns and what it averages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from test_backbone import plain_forward  # type: ignore[import-not-found]
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sonarkit.codec.pipeline import Sonar
from sonarkit.models.backbone import BackboneConfig
from sonarkit.models.mse_lcm import MseLCM, MseLCMConfig
from sonarkit.store.normalizer import Normalizer
from sonarkit.store.reader import Document

SHAPE = BackboneConfig(24, 48, 2, 3, 8)
LENGTHS = (3, 6, 2, 3)


def documents(lengths: tuple[int, ...] = LENGTHS, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Document]:
    """Documents of noise with a scale of its own in each dimension; their tokens do not matter here."""
    generator, scale_D = torch.Generator().manual_seed(seed), torch.logspace(-3, 0, 32)
    vectors = [(torch.randn(n, 32, generator=generator) * scale_D + scale_D).to(dtype) for n in lengths]
    return [Document(vectors_SD, [[3, 7, 3]] * len(vectors_SD), [1] * len(vectors_SD)) for vectors_SD in vectors]


def normalizer_of(batch: list[Document]) -> Normalizer:
    return Normalizer.of(torch.cat([d.vectors_SD for d in batch]))


@pytest.fixture
def model(sonar: Sonar) -> MseLCM:
    torch.manual_seed(0)
    return MseLCM(MseLCMConfig(SHAPE, 32, "tiny", sonar.fingerprint()), sonar, normalizer_of(documents())).eval()


def plain_predictions(model: MseLCM, vectors_SD: Tensor) -> Tensor:
    """(S, D) what follows each sentence of one document, in normalised space, written out."""
    return model.post_net(plain_forward(model.backbone, model.pre_net(model.normalizer.normalize(vectors_SD))))


def test_the_loss_equals_the_plain_padded_path_in_value_and_gradient(model: MseLCM) -> None:
    """In float64, to 1e-10; the plain path pads documents to one length and masks what is beyond them."""
    model.double()
    batch = documents(dtype=torch.float64)
    loss = model.loss(batch)
    padded_BSD = torch.nn.utils.rnn.pad_sequence([d.vectors_SD for d in batch], batch_first=True, padding_value=9.0)
    predicted_BSD = torch.stack([plain_predictions(model, vectors_SD) for vectors_SD in padded_BSD])
    target_BSD = (padded_BSD - model.normalizer.center_D) / model.normalizer.scale_D
    judged = torch.arange(5) < torch.tensor(LENGTHS)[:, None] - 1
    error_TD = (predicted_BSD[:, :-1] - target_BSD[:, 1:])[judged]
    assert loss.count == len(error_TD) == sum(LENGTHS) - len(LENGTHS)
    torch.testing.assert_close(loss.total, error_TD.square().sum(), rtol=1e-10, atol=0)
    raw, count = loss.parts["l2_per_sentence"]
    assert count == loss.count
    torch.testing.assert_close(raw, (error_TD.detach() * model.normalizer.scale_D).norm(dim=1).sum(), rtol=1e-10, atol=0)
    ours, plain = (torch.autograd.grad(total, list(model.parameters())) for total in (loss.total, error_TD.square().sum()))
    for (name, _), one, other in zip(model.named_parameters(), ours, plain):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(other.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


def test_losses_of_parts_of_a_batch_add_up(model: MseLCM) -> None:
    model.double()
    batch = documents(dtype=torch.float64)
    parts = [model.loss(batch[:1]), model.loss(batch[1:])]
    torch.testing.assert_close(model.loss(batch).total, parts[0].total + parts[1].total, rtol=1e-12, atol=0)


def test_neither_other_documents_nor_later_sentences_reach_a_prediction(model: MseLCM) -> None:
    """By gradient: the error of a document's second prediction has none with respect to anything but its first sentences."""
    batch = documents()
    for document in batch:
        document.vectors_SD.requires_grad_()
    model.loss(batch[1:2]).total.backward()
    alone = batch[1].vectors_SD.grad
    batch[1].vectors_SD.grad = None
    together = torch.autograd.grad(model.loss(batch).total, [d.vectors_SD for d in batch])
    torch.testing.assert_close(together[1], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    changed = [d.vectors_SD.detach().clone() for d in batch]
    changed[1][2:] += 1
    first_two = [model.predict_next(vectors[None, :2]) for vectors in (batch[1].vectors_SD.detach(), changed[1])]
    assert torch.equal(*first_two)


def test_the_next_vector_is_what_training_predicts_and_cached_in_batches_it_is_the_same(model: MseLCM) -> None:
    batch = documents()
    expected = [model.normalizer.denormalize(plain_predictions(model, d.vectors_SD)).detach() for d in batch]
    for document, predicted_SD in zip(batch, expected):
        torch.testing.assert_close(model.predict_next(document.vectors_SD[None])[0], predicted_SD[-1])
    context = model.start(4, 6)
    padded_BSD = torch.nn.utils.rnn.pad_sequence([d.vectors_SD[:-1] for d in batch], batch_first=True, padding_value=1e3)
    lengths_B = torch.tensor(LENGTHS) - 1
    before_BD = model.advance(padded_BSD, context, lengths_B)
    torch.testing.assert_close(before_BD, torch.stack([e[-2] for e in expected]))
    rows = torch.tensor([3, 1])
    last_BD = torch.stack([batch[row].vectors_SD[-1] for row in rows.tolist()])
    after_BD = model.advance(last_BD[:, None], context.select(rows), torch.ones(2, dtype=torch.long))
    torch.testing.assert_close(after_BD, torch.stack([expected[row][-1] for row in rows.tolist()]))


def test_saved_and_loaded_it_is_the_same_and_what_does_not_fit_is_refused(model: MseLCM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = MseLCM.from_pretrained(tmp_path, sonar=model.sonar)
    vectors = documents()[1].vectors_SD[None]
    torch.testing.assert_close(loaded.predict_next(vectors), model.predict_next(vectors), rtol=1e-2, atol=1e-2)  # float16
    assert torch.equal(loaded.normalizer.scale_D, model.normalizer.scale_D)  # float32, whatever the weights are saved in
    assert not any("codec" in key or "decoder" in key for key in loaded.state_dict())
    model.save_pretrained(tmp_path, torch.float32)
    loaded = MseLCM.from_pretrained(tmp_path, sonar=model.sonar)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(loaded.predict_next(vectors), model.predict_next(vectors))
    with torch.no_grad():
        model.sonar.encoder.norm.bias += 1
    with pytest.raises(ValueError, match="trained on codec 'tiny'"):
        MseLCM.from_pretrained(tmp_path, sonar=model.sonar)
    with pytest.raises(FileNotFoundError, match="no MSE-LCM at 'nowhere'.*expected one of mini or a folder"):
        MseLCM.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="width 16, the model reads 32"):
        MseLCM(model.config, model.sonar, Normalizer(16))
    with pytest.raises(ValueError, match="width 16, the codec makes 32"):
        MseLCM(MseLCMConfig(SHAPE, 16), model.sonar, Normalizer(16))


def test_a_story_is_told_in_a_batch_as_alone(model: MseLCM) -> None:
    prompts, options = ["The fox ran home. Mia slept.", "Tom found a map."], {"max_sentences": 5, "beam_size": 2, "max_tokens": 8}
    for prompt, story in zip(prompts, model.generate(prompts, **options)):
        alone = model.generate(prompt, **options)
        assert (alone.sentences, alone.stopped_by) == (story.sentences, story.stopped_by)
    steps = model.generate("Tom found a map.", end_threshold=-1.0, **options).steps
    assert len(steps) == 1 and steps[0].stopped_by == "end"


def learn(model: MseLCM, batch: list[Document], steps: int, rate: float = 3e-3) -> float:
    """Some steps of Adam; -> the loss per sentence of the last one."""
    optimizer = torch.optim.Adam(model.train().parameters(), rate)
    for _ in range(steps):
        loss = model.loss(batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    model.eval()
    return float(loss.total.detach()) / loss.count


def test_it_learns_a_sequence_by_heart(model: MseLCM) -> None:
    batch = documents()
    started = float(model.loss(batch).total.detach()) / model.loss(batch).count
    ended = learn(model, batch, 150)
    assert ended < 0.01 * started, (started, ended)
    vectors_SD = batch[1].vectors_SD
    similar = F.cosine_similarity(model.predict_next(vectors_SD[None, :4])[0], vectors_SD[4], dim=0)
    assert similar > 0.99


def test_flops_are_those_that_torch_counts(model: MseLCM) -> None:
    batch = documents()
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).total.backward()
    assert model.flops(batch) == counter.get_total_flops()


def test_recomputing_changes_neither_loss_nor_gradient(model: MseLCM) -> None:
    batch, found = documents(), []
    for on in (False, True, False):
        loss = model.use(activation_checkpointing=on).loss(batch).total
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))
