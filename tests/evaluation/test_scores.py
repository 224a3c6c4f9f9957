"""Scores against the true object: refused objects and unknown names."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ptycho_torch.core.errors import DataError
from ptycho_torch.evaluation.matching import match_patterns
from ptycho_torch.evaluation.scores import (
    Scores,
    collect_metrics,
    evaluate_result,
    score_against_scan,
    score_against_truth,
)

CHOSEN = np.array([3, 17, 18, 40, 88])


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


@pytest.mark.parametrize("indices", [None, CHOSEN.tolist()], ids=["all patterns", "some patterns"])
def test_patterns_that_the_engine_left_out_do_not_enter_r(simulated_case: Any, indices: list[int] | None) -> None:
    """An image that is right is at its noise floor, whatever the patterns that it does not explain."""
    scan = simulated_case.scan
    amplitudes = scan.amplitudes.copy()
    amplitudes[40] *= 5
    scan = replace(scan, amplitudes=amplitudes)
    metadata: dict[str, Any] = {"excluded_patterns": [40]}
    result = simulated_case.reconstruction
    if indices is not None:
        metadata |= {"indices": indices, "scan_digest": scan.digest()}
        result = replace(result, positions=result.positions[CHOSEN])
    r = []
    for recorded in ({key: metadata[key] for key in metadata if key != "excluded_patterns"}, metadata):
        matched, common = match_patterns(replace(result, metadata=recorded), scan)
        evaluation = evaluate_result(matched, common, photons_per_unit=2.5)
        r.append(collect_metrics(matched, evaluation)["r"])
    assert r[1] < 1e-3 * r[0]


def test_an_unknown_metric_raises_with_the_known_names() -> None:
    with pytest.raises(KeyError, match="no metric 'rms'; expected one of nrmse, r"):
        Scores({"nrmse": 0.1, "r": 0.2})["rms"]
