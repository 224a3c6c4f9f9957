"""Types of engine options that are set in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.config.engines import PIE
from ptycho_torch.core.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2.5}, "`epochs` is 2.5; expected a whole number"),
        ({"epochs": "5"}, "`epochs` is '5'; expected a whole number"),
        ({"epochs": True}, "`epochs` is True; expected a whole number"),
        ({"epochs": None}, "`epochs` is None; expected a whole number"),
        ({"step": "1"}, "`step` is '1'; expected a number"),
        ({"update_probe": 1}, "`update_probe` is 1; expected true or false"),
        ({"support": np.ones((4, 4))}, "`support` is ndarray; expected a path"),
    ],
)
def test_an_option_of_another_type_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        PIE(**settings)
    assert str(error.value) == message


def test_numbers_of_numpy_and_text_for_a_path_are_accepted() -> None:
    options = PIE(epochs=np.int64(3), step=1, support="support.npz")  # type: ignore[arg-type]
    assert (options.epochs, options.support) == (3, Path("support.npz"))
