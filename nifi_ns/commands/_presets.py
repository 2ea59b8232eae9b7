"""Presets: YAML files whose values become a command's defaults, which options on the command line then override."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from nifi_ns.errors import NifiError

Dataclass = TypeVar("Dataclass")


def load_preset(path: Path, defaults: Dataclass, allowed: Sequence[str]) -> Dataclass:
    """`defaults`, a dataclass instance that may hold others, with the values of a YAML file in place of its own.

    The file may name the fields in `allowed` (of the outermost dataclass), and any field below.

    Raises:
        NifiError: if the file is missing or no YAML mapping, or names an unknown field or a value of another type.
    """
    import yaml

    if not path.is_file():
        raise NifiError(f"no such preset: {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NifiError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return _merge(defaults, {} if values is None else values, str(path), allowed)


def _merge(defaults: Any, values: Any, where: str, allowed: Sequence[str] | None = None) -> Any:
    if not isinstance(values, dict):
        raise NifiError(f"{where}: expected names and values, got {values!r}")
    names = [field.name for field in dataclasses.fields(defaults)] if allowed is None else allowed
    known = {name: getattr(defaults, name) for name in names}
    changes = {}
    for name, value in values.items():
        if name not in known:
            raise NifiError(f"{where}: there is no option {name!r}; there are {', '.join(known)}")
        changes[name] = _convert(known[name], value, f"{where}: {name}")
    return dataclasses.replace(defaults, **changes)


def _convert(default: Any, value: Any, where: str) -> Any:
    """`value` as the type of `default`."""
    if dataclasses.is_dataclass(default):
        return _merge(default, value, where)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if type(default) is float:
        try:
            return float(value)  # YAML 1.1 takes 5e-6, which lacks a dot, for a text
        except (TypeError, ValueError):
            pass
    elif default is None or type(value) is type(default):
        return value
    raise NifiError(f"{where} is {value!r}, expected something like {default!r}")
