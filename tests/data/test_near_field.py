"""Near-field patterns are recognized by the motion of their shadows; far fields are not."""

from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.near_field import estimate_shadow_motion
from ptycho_torch.simulation.scan import simulate_scan


def make_shadow_images(magnification: float, count: int = 60, size: int = 64) -> tuple[Any, Any]:
    """Return shadow images of a random object behind a wide beam, and the positions in far-field pixels."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(400, 400))
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(400), np.fft.fftfreq(400)))
    texture = np.real(np.fft.ifft2(np.fft.fft2(coarse) * np.exp(-((frequencies / 0.08) ** 2))))
    texture = np.exp(2 * texture / texture.std() * 0.3)
    y, x = np.indices((size, size)) - size // 2
    envelope = np.exp(-((y**2 + 1.3 * x**2) / (0.3 * size) ** 2))
    positions = rng.uniform(0, 200, (count, 2)) / magnification
    corners = np.rint(positions * magnification).astype(int)
    patterns = np.stack([texture[r : r + size, c : c + size] * envelope for r, c in corners])
    return rng.poisson(200 * patterns).astype(np.float64), positions


@pytest.mark.parametrize("magnification", [0.11, 0.3])
def test_shadows_of_a_wide_illumination_are_a_near_field(magnification: float) -> None:
    motion = estimate_shadow_motion(*make_shadow_images(magnification))
    assert motion is not None
    assert abs(motion.magnification) == pytest.approx(magnification, abs=0.011)
    assert motion.is_near_field
    assert "shadow images" in motion.describe(64)


def test_shuffled_positions_are_no_near_field() -> None:
    patterns, positions = make_shadow_images(0.11)
    motion = estimate_shadow_motion(patterns, np.random.default_rng(1).permutation(positions))
    assert motion is not None
    assert not motion.is_near_field


@pytest.mark.parametrize("probe", ["structured", "disk", "gaussian", "defocus", "fresnel"])
def test_a_far_field_is_no_near_field(probe: str) -> None:
    scan = simulate_scan("run1084", photons=1e5, seed=1, probe=probe, positions=120)
    motion = estimate_shadow_motion(np.square(scan.amplitudes), scan.positions)
    assert motion is None or not motion.is_near_field
