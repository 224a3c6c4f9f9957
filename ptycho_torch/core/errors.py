"""Errors that a user can cause and correct; a command prints them as one line on stderr, with exit code 2.

The pattern of a message is "<what was found>; <what is expected>; <which setting changes it>", plus the file. A message
names a setting in backticks by its Python name: "`batch_size` is 0; expected a number above 0". ``str(error)`` keeps
the backticks. The command line replaces a setting in backticks by its flag, ``--batch_size``
(:mod:`ptycho_torch.cli.messages`).
"""


class PtychoError(Exception):
    """Base class of all errors that a user can cause and correct."""


class ConfigError(PtychoError):
    """A setting that is unknown, out of range, or in conflict with another setting."""


class DataError(PtychoError):
    """A file that is missing, unreadable, or without the expected content."""


class ContractError(DataError):
    """A violation of a rule (MUST) of ``specs/data_contracts.md`` by a scan file.

    Args:
        rule: number of the rule, for example ``"R4"``.
        message: description of the violation.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{message} [contract {rule}]")
        self.rule = rule


class BundleError(PtychoError):
    """A folder without a model bundle, or with a bundle that this version cannot read."""


class DeviceError(PtychoError):
    """A device that is not available on this machine."""


class ProcessGroupError(PtychoError):
    """A failure of communication with another process of the same run."""
