"""Flags from a settings class, and settings from the words typed."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from ptycho_torch.cli.messages import format_flag
from ptycho_torch.config.values import is_repeatable, read_yaml, value_type
from ptycho_torch.core.errors import ConfigError

Config = TypeVar("Config")

FLAG_ALIASES = {"--accelerator": "--device", "--disable_mlflow": "--logger=csv"}
"""Older spellings that users already type."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`ConfigError`, for the runner to print as one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse(config_type: type[Config], argv: Sequence[str], prog: str) -> Config:
    """Build a ``config_type`` from flags and an optional YAML file; what is typed wins over the file.

    Raises:
        ConfigError: an unknown or missing flag, a bad value, or a ``--config`` file that cannot be used.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, config_type))}
    namespace = vars(build_parser(config_type, prog).parse_args([_normalize_flag(word) for word in argv]))
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in namespace.items()
    }
    typed = {name: value for name, value in typed.items() if value is not None}
    config_file = typed.pop("config", None)
    values = (read_yaml(Path(config_file), config_type) if config_file else {}) | typed
    missing = [format_flag(field) for field in fields.values() if field.default is MISSING and field.name not in values]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing; see {prog} --help")
    return config_type(**values)


def build_parser(config_type: type[Any], prog: str) -> argparse.ArgumentParser:
    """The parser for ``config_type``. Flags that are not typed stay out of the namespace, so the file can fill them."""
    parser = _Parser(prog=prog, description=config_type.__doc__, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        help_text = field.metadata["help"]
        message = isinstance(field.default, bool) or field.default in (MISSING, None, ()) or "default" in help_text
        if not message:
            help_text += f" (default: {field.default})"
        kind, choices = value_type(hints[field.name])
        keywords: dict[str, Any] = {"help": help_text.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(f"--{field.name}", action=_Switch, nargs=0, **keywords)
        elif field.metadata["positional"]:
            parser.add_argument(
                field.name,
                type=_select_converter(kind),
                nargs="?",
                default=None,
                metavar=field.name.upper(),
                **keywords,
            )
        elif field.metadata["several"]:
            keywords |= {"action": "extend", "nargs": "+", "metavar": kind.__name__.upper()}
            parser.add_argument(f"--{field.name}", type=_select_converter(kind), **keywords)
        elif is_repeatable(hints[field.name]):
            parser.add_argument(
                f"--{field.name}", type=_select_converter(kind), action="append", metavar="TEXT", **keywords
            )
        else:
            keywords["metavar"] = None if choices else kind.__name__.upper()
            parser.add_argument(f"--{field.name}", type=_select_converter(kind), choices=choices, **keywords)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings by name; what is typed wins over it")
    return parser


def _select_converter(kind: type) -> Callable[[str], Any]:
    return _parse_path if kind is Path else kind


def _parse_path(text: str) -> Path:
    """A path; not an empty one, which would silently be the working folder (what ``.`` says aloud)."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


class _Switch(argparse.Action):
    """``--name`` sets True, ``--no_name`` sets False."""

    def __init__(self, option_strings: Sequence[str], dest: str, **keywords: Any) -> None:
        super().__init__([*option_strings, f"--no_{dest}"], dest, **keywords)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        del parser, values
        setattr(namespace, self.dest, not str(option_string).startswith("--no_"))


def _normalize_flag(word: str) -> str:
    """Bring a flag to the spelling of the dataclass: ``--batch-size=4`` becomes ``--batch_size=4``."""
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1)
    return FLAG_ALIASES.get(name, name) + equals + value
