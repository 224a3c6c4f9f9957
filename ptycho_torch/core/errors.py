"""Errors that a user can cause and correct; a command prints them as one line on stderr, with exit code 2.

The pattern of a message is "<what was found>; <what is expected>; <which setting changes it>", plus the file. A message
names a setting in backticks by its Python name: "`batch_size` is 0; expected a number above 0". ``str(error)`` keeps
the backticks. The command line replaces a setting in backticks by its flag, ``--batch_size``
(:mod:`ptycho_torch.cli.messages`).
"""


class PtychoError(Exception):
    """Bad input of any kind: the base of every error that a user can cause and mend."""


class ConfigError(PtychoError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(PtychoError):
    """A file is missing, unreadable, or does not hold what it should."""


class ContractError(DataError):
    """A scan file breaks a MUST of ``specs/data_contracts.md``.

    ``rule`` is the number of the rule, for example ``"R4"``.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(f"{message} [contract {rule}]")
        self.rule = rule


class BundleError(PtychoError):
    """A model folder holds no bundle, or one that this version cannot read."""


class DeviceError(PtychoError):
    """A device was asked for that this machine does not have."""


class ProcessGroupError(PtychoError):
    """Another process of the same run is gone, or cannot be reached."""
