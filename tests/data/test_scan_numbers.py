"""Several scans in one file, distinguished by their numbers."""

from dataclasses import replace

import numpy as np
import pytest

import ptycho_torch as pt
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.data.scan import Scan
from ptycho_torch.data.scan_numbers import require_single_scan, split_scans


def test_each_number_is_a_scan_of_its_patterns(scan: Scan) -> None:
    numbers = np.arange(len(scan)) % 3 + 4
    parts = split_scans(replace(scan, scan_index=numbers))
    assert [len(part) for part in parts] == [12, 12, 12]
    np.testing.assert_array_equal(parts[1].positions, scan.positions[1::3])
    assert split_scans(scan) == [scan]
    one = replace(scan, scan_index=np.full(len(scan), 7))
    assert split_scans(one) == [one]
    require_single_scan(one)


def test_engines_refuse_several_scans_and_training_takes_each_as_a_scan(scan: Scan) -> None:
    several = replace(scan, scan_index=(np.arange(len(scan)) >= 18) + 4)
    with pytest.raises(ConfigError, match=r"2 scans with the numbers 4, 5; expected one scan; choose one by `scan_"):
        pt.PIE(epochs=1).run(several)
    model = pt.fit(several, epochs=1)
    assert len(model.scans) == 2
