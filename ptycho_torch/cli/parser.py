"""Build command-line parsers from settings classes, and settings from a command line."""

import argparse
import dataclasses
import difflib
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ptycho_torch.cli.messages import format_flag
from ptycho_torch.config.base import GROUPS
from ptycho_torch.config.values import dump_yaml, is_repeatable, read_yaml, setting_aliases, value_type
from ptycho_torch.core.errors import ConfigError

Config = TypeVar("Config")

FLAG_ALIASES = {"--accelerator": "--device", "--disable_mlflow": "--logger=csv"}
"""Flags of older versions. The aliases of single settings are in the settings classes."""

SWITCH_TEXT = {True: "on", False: "off"}


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises :class:`ConfigError`, which the runner prints as one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}{self._suggest_flag(message)}; see {self.prog} --help")

    def _suggest_flag(self, message: str) -> str:
        """Return a question with the flag nearest to the first unknown one; empty without one."""
        _, _, rest = message.partition("unrecognized arguments: ")
        unknown = rest.split(" ")[0].partition("=")[0]
        if not unknown.startswith("--"):
            return ""
        nearest = difflib.get_close_matches(unknown, self._option_string_actions, n=1)
        return f" (did you mean {nearest[0]}?)" if nearest else ""


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help with room for the flags, and with one entry for both flags of a switch."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return f"--[no_]{action.dest}" if isinstance(action, _Switch) else super()._format_action_invocation(action)


class _Switch(argparse.Action):
    """A flag without a value: ``--name`` stores True, ``--no_name`` stores False."""

    def __init__(self, option_strings: Sequence[str], dest: str, **keywords: Any) -> None:
        super().__init__([*option_strings, f"--no_{dest}"], dest, **keywords)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        del parser, values
        setattr(namespace, self.dest, not str(option_string).startswith("--no_"))


def parse(config_type: type[Config], argv: Sequence[str], prog: str, description: str = "") -> Config:
    """Return the settings of a command line; its values override those of the ``--config`` file.

    ``--print_config`` prints the resolved settings as YAML and raises ``SystemExit(0)``, as ``--help`` does.

    Args:
        config_type: settings class.
        argv: arguments after the name of the command.
        prog: name of the command, for usage and errors.
        description: text of ``--help``.

    Raises:
        ConfigError: a flag is unknown or missing, a value is invalid, or the ``--config`` file cannot be used.
    """
    words = _normalize_flags(argv, setting_aliases(config_type))
    namespace = vars(build_parser(config_type, prog, description).parse_args(words))
    config_file, print_config = namespace.pop("config", None), namespace.pop("print_config", False)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in namespace.items()
        if value is not None  # a positional argument that is absent
    }
    values = (read_yaml(Path(config_file), config_type) if config_file else {}) | given
    missing = [field for field in required_fields(config_type) if field.name not in values]
    if print_config:
        _print_config(config_type, values, missing)
        raise SystemExit(0)
    if missing:
        raise ConfigError(f"{', '.join(map(format_flag, missing))} missing; see {prog} --help")
    return config_type(**values)


def required_fields(config_type: type[Any]) -> list[dataclasses.Field[Any]]:
    """Return the settings that have no default."""
    return [field for field in dataclasses.fields(config_type) if field.default is MISSING]


def _print_config(config_type: type[Any], values: dict[str, Any], missing: Sequence[dataclasses.Field[Any]]) -> None:
    """Print the settings as YAML; a required setting without a value is a comment."""
    if not missing:
        values = dataclasses.asdict(config_type(**values))
    defaults = {field.name: field.default for field in dataclasses.fields(config_type) if field not in missing}
    comments = [f"# {field.name}: required, {field.metadata['help']}\n" for field in missing]
    sys.stdout.write("".join(comments) + dump_yaml(defaults | values))


def build_parser(config_type: type[Any], prog: str, description: str = "") -> argparse.ArgumentParser:
    """Return the parser of ``config_type``.

    Flags that are not given stay out of the namespace, so that a file of settings can supply their values.
    """
    parser = _Parser(
        prog=prog,
        description=description,
        usage=_format_usage(config_type, prog),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
        formatter_class=_HelpFormatter,
    )
    add_settings(parser, config_type)
    return parser


def add_settings(parser: argparse.ArgumentParser, config_type: type[Any]) -> None:
    """Add the settings of ``config_type`` to ``parser``, in named groups, and the flags common to all commands."""
    hints = typing.get_type_hints(config_type)
    fields = dataclasses.fields(config_type)
    for title in _order_groups({field.metadata["group"] for field in fields}):
        group = parser.add_argument_group(title)
        for field in fields:
            if field.metadata["group"] == title:
                _add_setting(group, field, hints[field.name])
    group.add_argument("--config", metavar="FILE", help="YAML file of settings by name; the command line overrides it")
    group.add_argument("--print_config", action="store_true", help="print the settings as YAML for --config, and exit")
    group.add_argument("-h", "--help", action="help", help="print this help, and exit")


def _order_groups(titles: set[str]) -> list[str]:
    return [title for title in GROUPS if title in titles | {GROUPS[-1]}]


def _add_setting(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add the argument of one setting to a group of a parser."""
    kind, choices = value_type(hint)
    keywords: dict[str, Any] = {"help": _format_help(field).replace("%", "%%")}
    flag = f"--{field.name}"
    if kind is bool:
        group.add_argument(flag, action=_Switch, nargs=0, **keywords)
        return
    keywords["type"] = _make_converter(kind, field.metadata["value_aliases"])
    if field.metadata["positional"]:
        group.add_argument(field.name, nargs="?", default=None, metavar=field.name.upper(), **keywords)
    elif field.metadata["several"]:
        group.add_argument(flag, action="extend", nargs="+", metavar=kind.__name__.upper(), **keywords)
    elif is_repeatable(hint):
        group.add_argument(flag, action="append", metavar="TEXT", **keywords)
    else:
        metavar = None if choices else _format_metavar(kind)
        group.add_argument(flag, choices=choices, metavar=metavar, **keywords)


def _format_metavar(kind: type) -> str:
    return "TEXT" if kind is str else kind.__name__.upper()


def _format_help(field: dataclasses.Field[Any]) -> str:
    """Return the help text of a setting with its default in parentheses."""
    text, _, automatic = str(field.metadata["help"]).partition("; default: ")
    if automatic:
        return f"{text} (default: {automatic})"
    default = field.default
    if default is MISSING:
        return f"{text} (required)"
    if field.metadata["default_help"]:
        shown = field.metadata["default_help"]
    elif isinstance(default, bool):
        shown = SWITCH_TEXT[default]
    elif isinstance(default, float):
        shown = f"{default:g}"
    else:
        shown = "none" if default in (None, ()) else default
    return f"{text} (default: {shown})"


def _format_usage(config_type: type[Any], prog: str) -> str:
    """Return the usage line: positional arguments, required flags, and a placeholder for all others."""
    hints = typing.get_type_hints(config_type)
    required = required_fields(config_type)
    words = [field.name.upper() for field in required if field.metadata["positional"]]
    for field in required:
        if not field.metadata["positional"]:
            metavar = _format_metavar(value_type(hints[field.name])[0])
            words.append(f"--{field.name} {metavar}" + (f" [{metavar} ...]" if field.metadata["several"] else ""))
    return " ".join([prog, *words, "[options]"]).replace("%", "%%")


def _make_converter(kind: type, value_aliases: dict[str, str]) -> Callable[[str], Any]:
    """Return the conversion of one value from text; argparse names it in errors, as "invalid int value"."""
    if value_aliases:
        return lambda text: value_aliases.get(text, text)
    return parse_path if kind is Path else kind


def parse_path(text: str) -> Path:
    """Return ``text`` as a path; reject an empty one, which ``Path`` would turn into the working folder."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _normalize_flags(argv: Sequence[str], aliases: dict[str, str]) -> list[str]:
    """Return ``argv`` with every flag spelled as its setting: ``--batch-size=4`` becomes ``--batch_size=4``.

    Args:
        argv: arguments of a command line.
        aliases: older names of settings, and the name of each setting.
    """
    flags = dict(FLAG_ALIASES)
    for old, name in aliases.items():
        flags |= {f"--{old}": f"--{name}", f"--no_{old}": f"--no_{name}"}
    return [_normalize_flag(word, flags) for word in argv]


def _normalize_flag(word: str, flags: dict[str, str]) -> str:
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1)
    return flags.get(name, name) + equals + value
