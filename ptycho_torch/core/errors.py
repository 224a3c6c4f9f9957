"""Errors that a command turns into one line on stderr and exit code 2.

Each message says what was found, what was expected and where to set it.
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
