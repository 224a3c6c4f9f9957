"""Tables of scan positions: separators, names, units, comments, and tables that cannot be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.config.input import make_input_settings
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.io.container import open_input
from ptycho_torch.io.formats.registry import recognize_format
from ptycho_torch.io.parts import ScanParts

YX = np.array([[1.5, -2.0], [3.0, 4.25], [-5.0, 6.0]])


def read(path: Path, text: str, **settings: Any) -> ScanParts:
    path.write_text(text)
    with open_input(path) as file:
        chosen = recognize_format(file)
        assert chosen.name == "table"
        return chosen.read(file, make_input_settings(settings))


def join(values: Any, separator: str) -> str:
    return "\n".join(separator.join(map(repr, row)) for row in np.asarray(values).tolist()) + "\n"


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        pytest.param(join(YX, ","), {"position_unit": "um"}, id="commas: y, x"),
        pytest.param(join(YX[:, ::-1], " "), {"position_unit": "um"}, id="spaces: x y"),
        pytest.param("# y x\n" + join(YX, "\t"), {"position_unit": "um"}, id="names in a comment"),
        pytest.param("x_um;y_um\n" + join(YX[:, ::-1], ";"), {}, id="names with units"),
        pytest.param("index,x [um],y [um]\n" + join(np.c_[[0, 1, 2], YX[:, ::-1]], ","), {}, id="index"),
        pytest.param(join(np.c_[[1, 2, 3], YX], ","), {"position_unit": "um"}, id="index without name"),
        pytest.param(
            "a,b,c\n" + join(np.c_[YX[:, 1], [7, 7, 7], YX[:, 0]], ","),
            {"position_unit": "um", "y_key": "c", "x_key": "0"},
            id="name and number of columns",
        ),
        pytest.param(
            "Scan 12 of sample 3\nMotor  Motor\n\n" + join(YX[:, ::-1], "  ") + "# end\n",
            {"position_unit": "um"},
            id="lines of text before the numbers",
        ),
    ],
)
def test_columns_become_row_and_column(text: str, settings: dict[str, Any], tmp_path: Path) -> None:
    parts = read(tmp_path / "positions", text, **settings)
    np.testing.assert_array_equal(parts.positions, YX)
    assert parts.position_unit == "micrometer"


def test_small_numbers_are_meters_and_large_ones_need_a_unit(tmp_path: Path) -> None:
    parts = read(tmp_path / "positions.csv", join(YX * 1e-6, ","))
    assert parts.position_unit == "meter"
    assert any("position_unit" in each for each in parts.report.assumptions)
    with pytest.raises(ConfigError, match="unit of the positions is unknown; set `position_unit`"):
        read(tmp_path / "positions.csv", join(YX, ","))


def test_rows_of_one_trigger_of_the_velociprobe_are_averaged(tmp_path: Path) -> None:
    rows = np.zeros((6, 8))
    rows[:, 7] = [1, 1, 2, 2, 4, 4]
    rows[:, 1] = [0, 2, 10, 12, 20, 22]
    rows[:, 5] = [5, 7, 6, 6, 9, 11]
    parts = read(tmp_path / "positions.csv", "# header\n" + join(rows, ","))
    expected = np.array([[-6, 1], [-6, 11], [-10, 21]], float)
    np.testing.assert_allclose(parts.positions, expected - expected.mean(0))
    np.testing.assert_array_equal(parts.position_numbers, [0, 1, 3])
    assert parts.position_unit == "nanometer"


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("1,2\n3,4,5\n", {}, "line 2 is '3,4,5'; expected 2 numbers"),
        ("1,2\nthree,4\n", {}, "line 2 is 'three,4'"),
        ("1,2\n3,nan\n", {}, "row 2 is not finite"),
        ("1,2\n3,4\n", {"y_key": "7", "x_key": "0"}, "`y_key` is 7; expected a column from 0 to 1"),
        ("1,2\n3,4\n", {"y_key": "1"}, "one of `y_key` and `x_key`"),
    ],
)
def test_bad_tables_are_refused(text: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        read(tmp_path / "positions.csv", text, position_unit="um", **settings)


def test_guessed_columns_of_a_table_with_an_index_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = join(np.c_[[0, 1, 2], YX], ",")
    read(tmp_path / "t.csv", text, position_unit="um")
    assert "column 1 of the table is y and column 2 is x" in caplog.text
    assert "`y_key` and `x_key`" in caplog.text
    caplog.clear()
    read(tmp_path / "t.csv", text, position_unit="um", y_key="1", x_key="2")
    assert not caplog.text


@pytest.mark.parametrize("text", ["1,5;2,5\n3,5;4,5\n", "y\tx\n1,5\t2\n3,25\t-4\n"])
def test_decimal_commas_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with open_input(path) as file, pytest.raises(DataError, match="decimal commas"):
        recognize_format(file)
