"""Configurations become JSON and come back; what does not fit is named."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from sonarkit.core.config import difference, fingerprint, from_dict, load, save, to_dict


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    kind: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True)
class Outer:
    name: str
    layers: int = 2
    tied: bool = False
    out: Path | None = None
    sizes: tuple[int, ...] = (1, 2, 3)
    inner: Inner = field(default_factory=Inner)


def test_a_configuration_comes_back_from_its_file(tmp_path: Path) -> None:
    config = Outer("a", 4, True, Path("x/y"), (), Inner(2.0, (0.5, 0.6), "constant"))
    save(config, tmp_path / "config.json")
    assert load(Outer, tmp_path / "config.json") == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_fields_with_defaults_may_be_left_out_and_whole_numbers_are_floats() -> None:
    assert from_dict(Outer, {"name": "a", "inner": {"lr": 1}}) == Outer("a", inner=Inner(1.0))
    assert isinstance(from_dict(Inner, {"lr": 1}).lr, float)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layer": 3}, "unknown field layer"),
        ({"inner": {"rate": 3}}, "unknown field inner.rate"),
        ({"layers": "3"}, "layers: expected int, got '3'"),
        ({"layers": True}, "layers: expected int, got True"),
        ({"layers": 3.0}, "layers: expected int"),
        ({"tied": 1}, "tied: expected bool"),
        ({"out": 3}, "out: expected Path"),
        ({"sizes": [1, "2"]}, r"sizes\[1\]: expected int, got '2'"),
        ({"inner": {"betas": [0.9]}}, r"inner.betas: expected tuple\[float, float\], got \[0.9\]"),
        ({"inner": {"lr": None}}, "inner.lr: expected float, got None"),
        ({"inner": {"kind": "linear"}}, "inner.kind: expected one of 'cosine', 'constant', got 'linear'"),
        ({"inner": [1]}, "inner: expected an object with the fields of Inner"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        from_dict(Outer, {"name": "a", **change})


def test_a_missing_field_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing field name; the fields are name, layers"):
        from_dict(Outer, {})
    (tmp_path / "config.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"config\.json: "):
        load(Outer, tmp_path / "config.json")


def test_fingerprint_tells_configurations_apart_and_ignores_order() -> None:
    assert fingerprint(Outer("a")) == fingerprint(to_dict(Outer("a")))
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(Outer("a")) != fingerprint(Outer("b"))
    assert len(fingerprint(Outer("a"))) == 12


def test_difference_names_dotted_fields() -> None:
    before, after = to_dict(Outer("a")), to_dict(Outer("b", inner=Inner(lr=0.002)))
    assert difference(before, after) == ["inner.lr: 0.001 -> 0.002", "name: 'a' -> 'b'"]
    assert difference(before, before) == []
