"""The robust normalizer against closed forms and numpy, on what breaks others: heavy tails, dimensions that do not vary."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_reader import documents, make  # type: ignore[import-not-found]

from sonarkit.store import normalizer as module
from sonarkit.store.normalizer import Normalizer


def test_quartiles_of_heavy_tails_are_those_of_the_distribution_and_not_of_its_percents() -> None:
    """A Cauchy variable's quartiles are its location plus and minus its scale. The range from its 0.25th to its 0.75th percentile
    is 84.9 scales, which is what a library that expects percents gives for 0.25 and 0.75."""
    even = (np.arange(100_000) + 0.5) / 100_000
    location, scale = np.array([3.0, -1.0]), np.array([0.5, 2.0])
    vectors_ND = location + scale * np.tan(np.pi * (even[:, None] - 0.5))
    fitted = Normalizer.of(vectors_ND)
    np.testing.assert_allclose(fitted.center_D, location, atol=1e-4)
    np.testing.assert_allclose(fitted.scale_D, 2 * scale, rtol=1e-4)
    wrong = scale * (math.tan(math.pi * (0.0075 - 0.5)) - math.tan(math.pi * (0.0025 - 0.5)))
    np.testing.assert_allclose(np.subtract(*np.percentile(vectors_ND, [0.75, 0.25], axis=0)), wrong, rtol=1e-2)
    assert (wrong / fitted.scale_D.numpy() > 40).all()


def test_the_fit_is_numpys_in_any_float_type_and_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_ND = np.random.default_rng(0).standard_t(2, (501, 7)).astype(np.float16)
    low, middle, high = np.quantile(vectors_ND.astype(np.float64), [0.25, 0.5, 0.75], axis=0)
    whole = Normalizer.of(vectors_ND)
    monkeypatch.setattr(module, "BLOCK_VALUES", 1000)
    for fitted in (whole, Normalizer.of(vectors_ND), Normalizer.of(torch.from_numpy(vectors_ND).double())):
        np.testing.assert_allclose(fitted.center_D, middle, rtol=1e-6)
        np.testing.assert_allclose(fitted.scale_D, high - low, rtol=1e-6)
        assert fitted.scale_D.dtype == torch.float32


def test_back_and_forth_is_the_identity_and_the_fit_is_frozen_and_saved() -> None:
    vectors_ND = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 6)
    fitted = Normalizer.of(vectors_ND)
    normal = fitted.normalize(vectors_ND)
    torch.testing.assert_close(fitted.denormalize(normal), vectors_ND)
    quartiles = normal.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    torch.testing.assert_close(quartiles[1], torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(quartiles[2] - quartiles[0], torch.ones(6, dtype=torch.float64), rtol=1e-5, atol=0)
    assert not list(fitted.parameters()) and set(fitted.state_dict()) == {"center_D", "scale_D"}
    copy = Normalizer(6)
    torch.testing.assert_close(copy.normalize(vectors_ND), vectors_ND)
    copy.load_state_dict(fitted.state_dict())
    assert torch.equal(copy.normalize(vectors_ND), normal)


def test_a_dimension_of_no_range_takes_the_median_range_of_the_others() -> None:
    vectors_ND = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 0.02, 0.03, 1.0])
    vectors_ND[:80, 3] = 5.0  # not constant, and yet its quartiles are equal
    fitted = Normalizer.of(vectors_ND)
    assert fitted.center_D[3] == 5 and fitted.scale_D[3] == fitted.scale_D[:3].median()
    assert torch.isfinite(fitted.normalize(vectors_ND)).all()


def test_what_cannot_be_fitted_is_refused() -> None:
    for unfit in (torch.zeros(1, 4), torch.zeros(4), np.zeros((0, 4))):
        with pytest.raises(ValueError, match="at least two vectors"):
            Normalizer.of(unfit)
    with pytest.raises(ValueError, match="equal in every dimension"):
        Normalizer.of(torch.ones(9, 4))
    damaged = torch.randn(9, 4)
    damaged[7, 2] = torch.nan
    with pytest.raises(ValueError, match="vector 7 is nan in dimension 2"):
        Normalizer.of(damaged)


def test_a_store_is_fitted_on_its_sentences_or_on_those_of_every_kth_document(tmp_path: Path) -> None:
    told = documents(0, 30, 50)
    store = make(tmp_path / "store", told)
    everything = np.concatenate([store[i].vectors_SD for i in range(30)])
    assert len(everything) == sum(map(len, told))  # the end sentence is not among them
    assert torch.equal(Normalizer.fit(store).scale_D, Normalizer.of(everything).scale_D)
    third = np.concatenate([store[i].vectors_SD for i in range(0, 30, 3)])
    sampled = Normalizer.fit(store, most=math.ceil(len(everything) / 3))
    assert torch.equal(sampled.center_D, Normalizer.of(third).center_D)
    assert not torch.equal(sampled.center_D, Normalizer.fit(store).center_D)
