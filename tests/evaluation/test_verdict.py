"""The verdict: R against its noise floor, and the causes whose evidence is in the residuals."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers import PHOTONS_PER_UNIT, SimulatedCase, make_simulated_case
from numpy.typing import NDArray

from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.evaluation.verdict import Verdict, judge_result

Damage = Callable[[NDArray[np.float32]], NDArray[np.floating]]
RNG = np.random.default_rng(7)
BRIGHT = [5, 23, 61]


@pytest.fixture(scope="module")
def case() -> SimulatedCase:
    return make_simulated_case(noise=True)


def judge(reconstruction: Reconstruction, scan: Scan, scale: float = PHOTONS_PER_UNIT) -> Verdict:
    error = compute_fourier_error(reconstruction, scan, photons_per_unit=scale)
    return judge_result(reconstruction, scan, error, scale)


def test_the_true_object_is_at_the_noise_floor_without_causes(case: SimulatedCase) -> None:
    verdict = judge(case.reconstruction, case.scan)
    assert verdict.level == "at the noise floor"
    assert verdict.causes == ()
    assert verdict.to_metrics()["verdict_text"] == verdict.format()


def cover_center(amplitudes: NDArray[np.float32]) -> NDArray[np.floating]:
    y, x = np.mgrid[:24, :24] - 12
    return np.where(y**2 + x**2 < 9, np.float32(0), amplitudes)


def brighten_some(amplitudes: NDArray[np.float32]) -> NDArray[np.floating]:
    factors = np.ones(len(amplitudes))
    factors[BRIGHT] = 10**0.5
    return amplitudes * factors[:, None, None]


def add_background(amplitudes: NDArray[np.float32]) -> NDArray[np.floating]:
    return np.sqrt(np.square(amplitudes) + RNG.poisson(40, amplitudes.shape))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "beam stop": (cover_center, r"zero in every pattern and bright pixels enclose them.*`mask`"),
    "bright patterns": (
        brighten_some,
        r"brighter or darker than the model \((5, )?23, 61\): leave them out by `frames`",
    ),
    "fluctuation": (lambda a: a * RNG.uniform(0.8, 1.2, (len(a), 1, 1)), r"intensity of the patterns varies by"),
    "background": (add_background, r"more photons per pixel: set `update_background`"),
    "photon scale": (lambda a: a / 5, r"25 times the measured photons: the photon scale, `photons_per_unit`"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_far_above_the_floor_and_its_cause_is_the_first(case: SimulatedCase, name: str) -> None:
    damage, cause = DAMAGES[name]
    patterns = damage(case.scan.amplitudes).astype(np.float32)
    verdict = judge(case.reconstruction, replace(case.scan, amplitudes=patterns))
    assert verdict.level in ("far above the noise floor", "no image")
    assert re.search(cause, verdict.causes[0]), verdict.causes


def test_offset_of_the_patterns_from_the_probe_is_reported(case: SimulatedCase) -> None:
    shifted = replace(case.scan, amplitudes=np.roll(case.scan.amplitudes, (3, -2), (1, 2)))
    verdict = judge(case.reconstruction, shifted)
    assert any("(3.1, -1.9) pixels (y, x) off the far field of the probe" in cause for cause in verdict.causes)


def test_falling_r_is_a_fit_that_has_not_converged(case: SimulatedCase) -> None:
    true = case.reconstruction.object
    rough = (true * np.exp(1j * RNG.normal(0, 0.3, true.shape))).astype(np.complex64)
    blurred = replace(case.reconstruction, object=rough, history={"r": [0.4, 0.2, 0.1]})
    assert "more `epochs`" in judge(blurred, case.scan).causes[0]


def test_too_small_photon_scale_is_below_the_floor_with_the_scale_that_fits(case: SimulatedCase) -> None:
    dim = replace(case.reconstruction, probe=case.reconstruction.probe / np.float32(10**0.5))
    verdict = judge(dim, case.scan, PHOTONS_PER_UNIT / 10)
    assert verdict.level == "below the noise floor"
    assert float(verdict.causes[0].split("`photons_per_unit` ")[1].split()[0]) == pytest.approx(2.5, rel=0.3)


def test_an_empty_model_gives_no_image(case: SimulatedCase) -> None:
    for factor, words in ((1e-3, "no better than an empty model"), (50, "worse than an empty model")):
        other = replace(case.reconstruction, object=(factor * case.reconstruction.object).astype(np.complex64))
        verdict = judge(other, case.scan)
        assert verdict.level == "no image"
        assert words in verdict.text


def test_high_dose_far_above_the_floor_is_no_wrong_image() -> None:
    case = make_simulated_case(photons=1e9, noise=True)
    moved = replace(case.reconstruction, object=(1.01 * case.reconstruction.object).astype(np.complex64))
    verdict = judge(moved, case.scan)
    assert verdict.level == "above the noise floor"
    assert "99.99%" in verdict.text
