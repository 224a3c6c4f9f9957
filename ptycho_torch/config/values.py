"""Conversion of settings: from text and YAML to the types of the fields, and back to plain values."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.files import write_text

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def is_repeatable(hint: Any) -> bool:
    """Return True if the annotation is a tuple, so that the setting takes several values."""
    return typing.get_origin(hint) is tuple


def value_type(hint: Any) -> tuple[type, list[Any] | None]:
    """Return the type of one value of an annotation, and its choices where the annotation is a Literal."""
    if is_repeatable(hint):
        hint = typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = list(typing.get_args(hint))
        return type(choices[0]), choices
    return hint, None


def convert_text(text: str, hint: Any) -> Any:
    """Convert the text of one value to the type of its annotation.

    Raises:
        ValueError: the text is no value of that type, or none of the choices.
    """
    kind, choices = value_type(hint)
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError("expected true or false")
        return text == "true"
    if kind is Path and not text:
        raise ValueError("an empty path")
    value = kind(text)
    if choices and value not in choices:
        raise ValueError(f"choose from {', '.join(map(repr, choices))}")
    return (value,) if is_repeatable(hint) else value


def convert_yaml(value: Any, hint: Any) -> Any:
    """Convert a value of a YAML file to the type of its annotation.

    Raises:
        TypeError, ValueError, OverflowError: the value is not of that type, or none of the choices.
    """
    kind, choices = value_type(hint)
    if is_repeatable(hint):
        items = value if isinstance(value, list) else [value]
        return tuple(convert_yaml(item, typing.get_args(hint)[0]) for item in items)
    if value is None:
        if type(None) not in typing.get_args(hint):
            raise ValueError("no value")
        return None
    # YAML reads 3e-3 as text, which float() takes; but int() would cut 2.7 to 2 and take true for 1.
    if isinstance(value, bool) is not (kind is bool) or (kind is int and isinstance(value, float)):
        raise TypeError("another type")
    if kind in (str, Path) and not isinstance(value, str):
        raise TypeError("another type")
    if kind is Path and (not value or "\0" in value):
        raise ValueError("no path")
    converted = kind(value)
    if choices and converted not in choices:
        raise ValueError("none of the choices")
    return converted


def read_yaml(path: Path, config_type: type[Any]) -> dict[str, Any]:
    """Read settings of ``config_type`` from a YAML file, by name and in the types of the fields.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds an unknown setting or a bad value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the --config file cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or an impossible date
        raise ConfigError(f"{path}: the --config file is not YAML ({error})") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: the --config file holds a {type(content).__name__}, expected settings by name")
    hints = typing.get_type_hints(config_type)
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise ConfigError(f"{path}: unknown setting {key}; known are {', '.join(sorted(hints))}")
        try:
            values[name] = convert_yaml(value, hints[name])
        except (TypeError, ValueError, OverflowError) as error:
            kind, choices = value_type(hints[name])
            expected = f"one of {', '.join(choices)}" if choices else _EXPECTED[kind]
            raise ConfigError(f"{path}: {key} is {value!r}, expected {expected}") from error
    return values


def to_plain(config: Any) -> dict[str, Any]:
    """Return every setting by name as JSON and YAML can hold it: the record that a run keeps of its settings."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_config(path: Path, config: Any) -> None:
    """Write every setting as YAML, so that ``--config`` runs the same again."""
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=True))
