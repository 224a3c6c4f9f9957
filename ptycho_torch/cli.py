"""What the commands share: flags from a config dataclass, ``--config FILE``, logging, and errors as one line.

A verb is ``run_verb(Config, function, argv, …)``: the dataclass says which flags there are, the function does the work.
"""

import argparse
import dataclasses
import functools
import logging
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from ptycho_torch.core.config import StageConfig, Verbosity
from ptycho_torch.core.errors import ConfigError, PtychoError

if TYPE_CHECKING:
    from ptycho_torch.physics.ranks import Ranks

Config = TypeVar("Config", bound=Verbosity)
Settings = TypeVar("Settings")

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

ALIASES = {"--accelerator": "--device", "--disable_mlflow": "--logger=csv"}
"""Older spellings that users already type."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`ConfigError`, for :func:`run_verb` to print as one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def run_verb(
    config_type: type[Config],
    function: Callable[..., int | None],
    argv: Sequence[str] | None,
    prog: str,
    *,
    ranked: bool = False,
) -> int:
    """Parse ``argv`` into a ``config_type``, call ``function`` with it, and return the exit code.

    The exit code is what ``function`` returns (None is 0), 2 for bad input with one line on stderr, 130 after ctrl-C.
    ``ranked``: ``torchrun`` may start the verb in several processes, and ``function`` then gets its
    :class:`~ptycho_torch.physics.ranks.Ranks` too; one of them speaks for all.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    debug = "--debug" in argv
    ranks: Ranks | None = None
    try:
        if _is_one_of_several():
            from ptycho_torch.physics.ranks import end_when_stuck, join

            ranks = join()
            end_when_stuck(functools.partial(_tell, EXIT_BAD_INPUT, prog, ranks=ranks))
            if not ranked:
                raise ConfigError(f"runs in one process, and here are {ranks.size}: start it without torchrun")
        config = parse(config_type, argv, prog)
        debug = config.debug
        if ranks and not ranks.first:
            config = dataclasses.replace(config, quiet=True, debug=False)
        set_up_logging(config, mute=bool(ranks and not ranks.first))
        code = function(config, ranks) if ranks else function(config)
    except PtychoError as error:
        return _end(EXIT_BAD_INPUT, prog, " ".join(str(error).split()), ranks, debug)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if debug or missing == "ptycho_torch":
            raise
        told = (
            f"{missing} is not installed in this Python ({sys.executable}), and ptycho-torch needs "
            "it: install the package with its dependencies (pip install ptycho-torch, or make env in a checkout)"
        )
        return _end(EXIT_BAD_INPUT, prog, told, ranks)
    except KeyboardInterrupt:
        return _end(EXIT_INTERRUPTED, prog, "interrupted", ranks)
    if ranks:
        ranks.leave()
    return code or 0


def _is_one_of_several() -> bool:
    """Whether ``torchrun`` or its like started this process beside others."""
    size = os.environ.get("WORLD_SIZE", "")
    return "RANK" in os.environ and size.isdecimal() and int(size) > 1


def _end(code: int, prog: str, told: str, ranks: "Ranks | None", debug: bool = False) -> int:
    """Say on stderr why the command ends, unless another rank has; returns ``code``."""
    if ranks:
        from ptycho_torch.physics.ranks import end_undisturbed

        end_undisturbed()
    return _tell(code, prog, told, ranks, debug)


def _tell(code: int, prog: str, told: str, ranks: "Ranks | None", debug: bool = False) -> int:
    if ranks is None or ranks.speaks():
        if debug:
            traceback.print_exc()
        print(f"{prog.split()[-1]}: {told}", file=sys.stderr, flush=True)
    return code


def parse(config_type: type[Settings], argv: Sequence[str], prog: str) -> Settings:
    """Build a ``config_type`` from flags and an optional YAML file; what is typed wins over the file.

    Raises:
        ConfigError: an unknown or missing flag, a bad value, or a ``--config`` file that cannot be used.
    """
    fields = {field.name: field for field in dataclasses.fields(cast(Any, config_type))}
    namespace = vars(build_parser(config_type, prog).parse_args([_spelling(word) for word in argv]))
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in namespace.items()
    }
    typed = {name: value for name, value in typed.items() if value is not None}
    config_file = typed.pop("config", None)
    values = (_from_yaml(Path(config_file), config_type) if config_file else {}) | typed
    missing = [_flag(field) for field in fields.values() if field.default is MISSING and field.name not in values]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing; see {prog} --help")
    return config_type(**values)


def build_parser(config_type: type[Any], prog: str) -> argparse.ArgumentParser:
    """The parser for ``config_type``. Flags that are not typed stay out of the namespace, so the file can fill them."""
    parser = _Parser(prog=prog, description=config_type.__doc__, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        help_text = field.metadata["help"]
        told = isinstance(field.default, bool) or field.default in (MISSING, None, ()) or "default" in help_text
        if not told:
            help_text += f" (default: {field.default})"
        kind, choices = _kind(hints[field.name])
        keywords: dict[str, Any] = {"help": help_text.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(f"--{field.name}", action=_Switch, nargs=0, **keywords)
        elif field.metadata["positional"]:
            parser.add_argument(
                field.name, type=_reader(kind), nargs="?", default=None, metavar=field.name.upper(), **keywords
            )
        elif field.metadata["several"]:
            keywords |= {"action": "extend", "nargs": "+", "metavar": kind.__name__.upper()}
            parser.add_argument(f"--{field.name}", type=_reader(kind), **keywords)
        elif _repeats(hints[field.name]):
            parser.add_argument(f"--{field.name}", type=_reader(kind), action="append", metavar="TEXT", **keywords)
        else:
            keywords["metavar"] = None if choices else kind.__name__.upper()
            parser.add_argument(f"--{field.name}", type=_reader(kind), choices=choices, **keywords)
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings by name; what is typed wins over it")
    return parser


def _reader(kind: type) -> Callable[[str], Any]:
    return _path if kind is Path else kind


def _path(text: str) -> Path:
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


def _spelling(word: str) -> str:
    """Bring a flag to the spelling of the dataclass: ``--batch-size=4`` becomes ``--batch_size=4``."""
    if not word.startswith("--") or word == "--":
        return word
    name, equals, value = word.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1)
    return ALIASES.get(name, name) + equals + value


def _flag(field: "dataclasses.Field[Any]") -> str:
    return field.name.upper() if field.metadata["positional"] else f"--{field.name}"


def _repeats(hint: Any) -> bool:
    """Whether the annotation is a tuple: the flag may then be typed several times."""
    return typing.get_origin(hint) is tuple


def _kind(hint: Any) -> tuple[type, list[Any] | None]:
    """The type that reads a flag's text, and the choices where the annotation is a Literal."""
    if _repeats(hint):
        hint = typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        choices = list(typing.get_args(hint))
        return type(choices[0]), choices
    return hint, None


def _from_yaml(path: Path, config_type: type[Any]) -> dict[str, Any]:
    """Settings from a YAML file, of the types that the flags would have given."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the --config file cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date that is none
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
            values[name] = _typed(value, hints[name])
        except (TypeError, ValueError, OverflowError) as error:
            kind, choices = _kind(hints[name])
            expected = f"one of {', '.join(choices)}" if choices else _WORDS[kind]
            raise ConfigError(f"{path}: {key} is {value!r}, expected {expected}") from error
    return values


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _typed(value: Any, hint: Any) -> Any:
    """``value`` of a YAML file as the flag would have given it. Raises ValueError or the like where it cannot be."""
    kind, choices = _kind(hint)
    if _repeats(hint):
        items = value if isinstance(value, list) else [value]
        return tuple(_typed(item, typing.get_args(hint)[0]) for item in items)
    if value is None:
        if type(None) not in typing.get_args(hint):
            raise ValueError("nothing where something is needed")
        return None
    # YAML reads 3e-3 as text, which float() takes; but int() would cut 2.7 to 2 and take true for 1.
    if isinstance(value, bool) is not (kind is bool) or (kind is int and isinstance(value, float)):
        raise TypeError("another type")
    if kind in (str, Path) and not isinstance(value, str):
        raise TypeError("another type")
    if kind is Path and (not value or "\0" in value):
        raise ValueError("no path")
    found = kind(value)
    if choices and found not in choices:
        raise ValueError("none of the choices")
    return found


def stage_of(text: str, flag: str) -> StageConfig:
    """A stage from ``engine:name=value,name=value``, as typed behind ``flag``.

    Raises:
        ConfigError: an unknown setting or a bad value.
    """
    engine, _, rest = text.partition(":")
    words = ["--engine", engine]
    switches = {field.name for field in dataclasses.fields(StageConfig) if field.type is bool}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if name in switches and value in ("", "true", "false"):
            words.append(f"--{'no_' if value == 'false' else ''}{name}")
        elif not equals or not value:
            raise ConfigError(f"{flag} {text!r}: {part!r} is not name=value, as in gradient:epochs=20,batch_size=64")
        else:
            words += [f"--{name}", value]
    try:
        return parse(StageConfig, words, "ptycho-torch reconstruct")
    except ConfigError as error:
        raise ConfigError(f"{flag} {text!r}: {error}") from error


def resolved(config: Verbosity) -> dict[str, Any]:
    """Every setting by name as JSON and YAML can hold it: what a run records about itself."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_config(path: Path, config: Verbosity) -> None:
    """Write every setting as YAML, so that ``--config`` runs the same again."""
    import yaml

    from ptycho_torch.core.files import write_text

    write_text(path, yaml.safe_dump(resolved(config), sort_keys=True))


def set_up_logging(config: Verbosity, mute: bool = False) -> None:
    """Send the package's log to stderr: warnings with ``--quiet``, everything with ``--debug``, none if ``mute``."""
    level = logging.DEBUG if config.debug else logging.WARNING if config.quiet else logging.INFO
    level = logging.CRITICAL if mute else level
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if level == logging.INFO else "%(levelname)s %(message)s"))
    logger = logging.getLogger("ptycho_torch")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)


class ProgressObserver:
    """A progress bar on a terminal; where stderr is not a terminal, a line of the log at each tenth of the way."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._log = logging.getLogger("ptycho_torch")

    def begin(self, task: str, total: int) -> None:
        self._task, self._total, self._done, self._told = task, total, 0, 0
        if self._bar:
            self._bar.start()
            self._bar_task = self._bar.add_task(task, total=total, figures="")

    def advance(self, steps: int = 1, **figures: float) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._done += steps
        if self._bar:
            self._bar.update(self._bar_task, advance=steps, figures=text)
        elif self._done == self._total or self._done * 10 // self._total > self._told:
            self._told = self._done * 10 // self._total
            self._log.info("%s: %d of %d  %s", self._task, self._done, self._total, text)

    def end(self) -> None:
        if self._bar:
            self._bar.stop()


def observer_for(config: Verbosity) -> Any:
    """The observer that a command uses: silent with ``--quiet``."""
    from ptycho_torch.core.observer import SilentObserver

    return SilentObserver() if config.quiet else ProgressObserver()
