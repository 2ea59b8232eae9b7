"""Find and read presets, and apply their values to dataclasses."""

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nifi_ns.errors import NifiError

Dataclass = TypeVar("Dataclass")

_FOLDER = Path(__file__).parent


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package, sorted."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def read_preset(preset: str) -> dict[str, Any]:
    """Return the contents of a preset.

    Args:
        preset: one of `preset_names`, or the path of a YAML file (with a slash, or ending with .yaml or .yml).

    Raises:
        NifiError: if there is no such preset, or it is not a YAML mapping.
    """
    import yaml

    path = _find(preset)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NifiError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise NifiError(f"{path}: expected names and values, got {values!r}")
    return values


def with_values(defaults: Dataclass, values: dict[str, Any], allowed: Sequence[str], where: str) -> Dataclass:
    """Return `defaults`, a dataclass with nested dataclasses, with some fields replaced by `values`.

    Args:
        defaults: values of the fields that are not in `values`.
        values: contents of a preset, from `read_preset`.
        allowed: the fields of `defaults` that may be in `values`; in nested dataclasses all fields may.
        where: name of `values` in error messages.

    Raises:
        NifiError: if `values` has an unknown field, or a value of the wrong type.
    """
    return _merge(defaults, values, where, allowed)


def _find(preset: str) -> Path:
    if Path(preset).suffix in (".yaml", ".yml") or len(Path(preset).parts) > 1:
        if not Path(preset).is_file():
            raise NifiError(f"no such preset file: {preset}")
        return Path(preset)
    if preset not in preset_names():
        raise NifiError(
            f"no preset {preset!r}, expected one of {', '.join(preset_names())}, or the path of a .yaml file"
        )
    return _FOLDER / f"{preset}.yaml"


def _merge(defaults: Any, values: Any, where: str, allowed: Sequence[str] | None = None) -> Any:
    if not isinstance(values, dict):
        raise NifiError(f"{where}: expected names and values, got {values!r}")
    types = get_type_hints(type(defaults))
    known = [field.name for field in dataclasses.fields(defaults)] if allowed is None else list(allowed)
    changes = {}
    for name, value in values.items():
        if name not in known:
            raise NifiError(f"{where}: unknown option {name!r}; {_suggestion(name, known)}")
        default = getattr(defaults, name)
        below = f"{where}: {name}"
        nested = dataclasses.is_dataclass(default)
        changes[name] = _merge(default, value, below) if nested else _convert(types[name], value, below)
    return dataclasses.replace(defaults, **changes)


def _suggestion(given: object, known: Sequence[str]) -> str:
    near = get_close_matches(str(given), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Convert `value`, as read from YAML, to the type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value in arguments and type(value) is not bool:
            return value
        raise NifiError(f"{where} is {value!r}; {_suggestion(value, [str(argument) for argument in arguments])}")
    if origin in (Union, UnionType):  # always `... | None`
        return None if value is None else _convert(arguments[0], value, where)
    if origin is tuple and isinstance(value, list):
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) == len(value):
            return tuple(
                _convert(item, v, f"{where}[{i}]") for i, (item, v) in enumerate(zip(items, value, strict=True))
            )
    elif origin is dict and isinstance(value, dict):
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}: {k}") for k, v in value.items()}
    elif kind is float and type(value) in (int, float, str):
        with suppress(ValueError):
            return float(value)  # YAML 1.1 reads 5e-6, which has no dot, as a string
    elif type(value) is kind:
        return value
    raise NifiError(f"{where} is {value!r}, expected {_named(kind)}")


def _named(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    return names.get(kind) or str(kind).replace("typing.", "")
