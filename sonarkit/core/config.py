"""Configurations are plain dataclasses; here they become JSON and come back, checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from sonarkit.core.checkpoint import write_atomically
from sonarkit.core.foreign import parse_json

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists, paths strings)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=os.fspath))


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build dataclass `cls` from JSON values.

    Unknown, missing or wrongly typed fields raise ValueError, named by their dotted path from the top.
    """
    label = where or cls.__name__
    if not isinstance(data, dict):
        raise ValueError(f"{label}: expected an object with the fields of {cls.__name__}, got {data!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        dotted = {name: f"{where}.{name}" if where else name for name in [*unknown, *missing]}
        told = [f"unknown field {dotted[name]}" for name in unknown] + [f"missing field {dotted[name]}" for name in missing]
        raise ValueError(f"{label}: {'; '.join(told)}; the fields are {', '.join(fields)}")
    return cls(**{name: _value(hints[name], value, f"{where}.{name}" if where else name) for name, value in data.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`, or ValueError naming the field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if origin in (typing.Union, types.UnionType):
        return _optional(arguments, value, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
            if len(kinds) == len(value):
                return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value)))
    elif kind is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where}: expected {_name(kind)}, got {value!r}")


def _optional(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """`value` as the `T` of `T | None`, the one kind of union a configuration may use."""
    (kind,) = (k for k in kinds if k is not type(None))
    return None if value is None else _value(kind, value, where)


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def save(config: Any, path: str | Path) -> None:
    """Write a dataclass as JSON, atomically. OSError as in `write_atomically`."""
    text = json.dumps(to_dict(config), indent=1) + "\n"
    write_atomically(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load(cls: type[T], path: str | Path) -> T:
    """Read a dataclass from JSON. OSError when it cannot be read, ValueError naming the file and what is wrong with it."""
    try:
        return from_dict(cls, parse_json(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:  # json's errors are ValueErrors too
        raise ValueError(f"{path}: {error}") from error


def check_sizes(config: Any, *names: str, most: int = 1 << 24) -> None:
    """ValueError where one of these fields is not in 1..`most`: a file's sizes are believed before its weights are seen."""
    if wrong := [name for name in names if not 1 <= getattr(config, name) <= most]:
        raise ValueError(f"{' and '.join(wrong)} must be between 1 and {most}: {config}")


def fingerprint(config: Any) -> str:
    """12 hex digits of the SHA-256 of the canonical JSON of a dataclass or dict."""
    data = to_dict(config) if dataclasses.is_dataclass(config) else config
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def difference(before: dict[str, Any], after: dict[str, Any], where: str = "") -> list[str]:
    """What changed from one nested dict to another, a line a field: `optimizer.lr: 0.001 -> 0.002`."""
    lines: list[str] = []
    for key in sorted(set(before) | set(after)):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += difference(old, new, f"{where}{key}.")
        elif old != new:
            lines.append(f"{where}{key}: {old!r} -> {new!r}")
    return lines
