"""Messages of the library in the terms of a command line.

The library names a setting in backticks by its Python name: "`batch_size` is 0; expected a number above 0".
"""

import dataclasses
import logging
import re
from typing import Any

_QUOTED = re.compile(r"`([^`]*)`")


def format_message(message: str, config_type: type[Any] | None = None) -> str:
    """Return ``message`` with each setting named in backticks replaced by its flag.

    Args:
        message: text from the library.
        config_type: settings class of the command. Its fields become ``--name``, or ``NAME`` for a positional
            argument; any other quoted text only loses its backticks. None: no setting has a flag.
    """
    fields = dataclasses.fields(config_type) if config_type else ()
    flags = {"config": "--config"} | {field.name: format_flag(field) for field in fields}
    return _QUOTED.sub(lambda match: flags.get(match[1], match[1]), message)


def format_flag(field: dataclasses.Field[Any]) -> str:
    """Return a setting as a command line spells it: ``--name``, or ``NAME`` for a positional argument."""
    return field.name.upper() if field.metadata.get("positional") else f"--{field.name}"


class FlagFormatter(logging.Formatter):
    """Log formatter that names settings as flags; see :func:`format_message`."""

    def __init__(self, pattern: str, config_type: type[Any]) -> None:
        super().__init__(pattern)
        self._config_type = config_type

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of ``record``, without its traceback."""
        return format_message(super().formatMessage(record), self._config_type)
