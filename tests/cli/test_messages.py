"""Settings in backticks become flags in the output of a command, and stay plain names in the library."""

import logging

import pytest

from ptycho_torch.cli.messages import FlagFormatter, format_message
from ptycho_torch.config.data import DescribeConfig
from ptycho_torch.config.train import TrainConfig


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`batch_size` is 0; expected a number above 0", "--batch_size is 0; expected a number above 0"),
        ("`seed` and `width`: `seed` is odd", "--seed and --width: --seed is odd"),
        ("`layout` and `loss=l1` are no settings of train", "layout and loss=l1 are no settings of train"),
        ("no setting is named, not even seed", "no setting is named, not even seed"),
    ],
)
def test_settings_in_backticks_become_flags(message: str, expected: str) -> None:
    assert format_message(message, TrainConfig) == expected


def test_a_positional_setting_is_named_in_capitals() -> None:
    assert format_message("`file` is empty", DescribeConfig) == "FILE is empty"


def test_without_settings_only_the_backticks_go() -> None:
    assert format_message("`seed` is -1") == "seed is -1"


def test_log_lines_name_flags() -> None:
    record = logging.LogRecord("ptycho_torch", logging.WARNING, "", 0, "set `seed` to %d", (3,), None)
    assert FlagFormatter("%(levelname)s %(message)s", TrainConfig).format(record) == "WARNING set --seed to 3"
