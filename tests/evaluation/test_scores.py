"""Scores against the true object: refused objects and unknown names."""

from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.evaluation.scores import Scores, score_against_scan, score_against_truth


def test_an_unusable_truth_is_refused(simulated_case: Any) -> None:
    damaged = simulated_case.truth.copy()
    damaged[3, 4] = np.nan
    for truth, message in (
        (damaged, "`truth` has 1 value not finite"),
        (simulated_case.scan, "`truth` is a Scan; expected a complex array"),
        (simulated_case.reconstruction, "`truth` is a Reconstruction; expected a complex array"),
        (np.ones(3), "`truth` is float64 of shape"),
        (None, "`truth` is None"),
    ):
        with pytest.raises(DataError, match=message):
            score_against_truth(simulated_case.reconstruction, truth)
    with pytest.raises(DataError, match="`scan` is a ndarray; expected a Scan"):
        score_against_scan(simulated_case.reconstruction, damaged)


def test_an_unknown_metric_raises_with_the_known_names() -> None:
    with pytest.raises(KeyError, match="no metric 'rms'; expected one of nrmse, r"):
        Scores({"nrmse": 0.1, "r": 0.2})["rms"]
