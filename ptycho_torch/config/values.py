"""Convert settings from text and YAML to the types of their fields, and back to plain values."""

import dataclasses
import numbers
import types
import typing
from pathlib import Path
from typing import Any

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.files import write_text

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}

_ACCEPTED: dict[Any, Any] = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str, Path: str | Path}
"""The types of the values in memory, by the type of an annotation."""


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


def require_type(name: str, value: Any, hint: Any) -> None:
    """Raise :class:`ConfigError` unless ``value`` of the setting ``name`` has the type of its annotation.

    Numbers of NumPy are accepted, and text for a path. Annotations of other types are not checked.
    """
    kind, choices = value_type(hint)
    if kind not in _ACCEPTED or choices or (value is None and type(None) in typing.get_args(hint)):
        return
    if not isinstance(value, _ACCEPTED[kind]) or (isinstance(value, bool) and kind is not bool):
        is_short = value is None or isinstance(value, str | numbers.Number)
        raise ConfigError(
            f"`{name}` is {repr(value) if is_short else type(value).__name__}; expected {_EXPECTED[kind]}"
        )


def convert_text(text: str, hint: Any) -> Any:
    """Convert the text of one value to the type of its annotation.

    Raises:
        ValueError: the text is not a value of that type, or not one of the choices.
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
        TypeError, ValueError, OverflowError: the value is not of that type, or not one of the choices.
    """
    kind, choices = value_type(hint)
    if is_repeatable(hint):
        items = value if isinstance(value, list) else [value]
        return tuple(convert_yaml(item, typing.get_args(hint)[0]) for item in items)
    if value is None:
        if type(None) not in typing.get_args(hint):
            raise ValueError("no value")
        return None
    # YAML reads 3e-3 as text, which float() accepts; int() would truncate 2.7 to 2 and convert true to 1.
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


def setting_aliases(config_type: type[Any]) -> dict[str, str]:
    """Return the older names of settings of ``config_type``, and the name of each setting."""
    fields = dataclasses.fields(config_type)
    names = {field.name for field in fields}  # a command may have a setting with the older name of another one
    return {alias: field.name for field in fields for alias in field.metadata["aliases"] if alias not in names}


def read_yaml(path: Path, config_type: type[Any]) -> dict[str, Any]:
    """Read settings of ``config_type`` from a YAML file, by name and in the types of the fields.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds an unknown setting or an invalid value.
    """
    aliases, hints = setting_aliases(config_type), typing.get_type_hints(config_type)
    fields = {field.name: field for field in dataclasses.fields(config_type)}
    values: dict[str, Any] = {}
    for key, value in _load_mapping(path).items():
        name = str(key).replace("-", "_")
        name = aliases.get(name, name)
        if name not in hints:
            raise ConfigError(f"{path}: unknown setting {key}; expected one of {', '.join(sorted(hints))}")
        if name in values:
            raise ConfigError(f"{path}: {key} sets `{name}` again; expected one of its names; remove the other one")
        if isinstance(value, str):
            value = fields[name].metadata["value_aliases"].get(value, value)
        try:
            values[name] = convert_yaml(value, hints[name])
        except (TypeError, ValueError, OverflowError) as error:
            kind, choices = value_type(hints[name])
            expected = f"one of {', '.join(choices)}" if choices else _EXPECTED[kind]
            raise ConfigError(f"{path}: {key} is {value!r}; expected {expected}") from error
    return values


def _load_mapping(path: Path) -> dict[Any, Any]:
    """Return the content of a YAML file, which must be a mapping or empty."""
    import yaml  # 40 ms of 130 ms of processor time for --help, which reads no file

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the file of settings cannot be read ({error.strerror}); check `config`") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or an impossible date
        raise ConfigError(f"{path}: the file of settings is not YAML ({error}); check `config`") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ConfigError(f"{path}: the file of settings holds a {kind}; expected settings by name; check `config`")
    return content


def to_plain(config: Any) -> dict[str, Any]:
    """Return the settings by name as values of JSON and YAML, for the record of a run."""
    return {name: _to_plain_value(value) for name, value in dataclasses.asdict(config).items()}


def dump_yaml(values: dict[str, Any]) -> str:
    """Return settings by name as YAML, sorted by name."""
    import yaml  # imported late; see _load_mapping

    return yaml.safe_dump({name: _to_plain_value(value) for name, value in values.items()}, sort_keys=True)


def write_config(path: Path, config: Any) -> None:
    """Write all settings as YAML; ``--config`` with this file repeats the run."""
    write_text(path, dump_yaml(dataclasses.asdict(config)))


def _to_plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value
