"""Starting values from the patterns, frames that no model explains, and high doses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ptycho_torch.config.engines import ENGINES, PIE, EngineOptions
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pattern_start import (
    estimate_intensity_levels,
    find_outlier_totals,
    regularize_background,
    smooth_by_local_parabola,
)
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.engines.state import make_measurement
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.noise import Poisson, make_noise_model
from ptycho_torch.simulation.scan import simulate_scan

BAD_FRAMES = np.array([3, 40, 41, 77, 100, 120, 160])
JUMP_FRAME = 120


@pytest.fixture(scope="module")
def clean() -> Scan:
    """196 patterns of 32 × 32 pixels, 10⁶ photons per pattern."""
    return simulate_scan("tiny", positions=196, overlap=0.92, jitter=0.4)


def get_counts(scan: Scan) -> np.ndarray:
    return np.square(scan.amplitudes, dtype=np.float64)


def replace_counts(scan: Scan, counts: np.ndarray) -> Scan:
    return replace(scan, amplitudes=np.sqrt(counts).astype(np.float32))


def compute_error(scan: Scan, options: EngineOptions) -> tuple[float, Reconstruction]:
    """Return NRMSE after the alignment that the unknowns require, and the result."""
    result = options.run(scan, device="cpu")
    free = bool(getattr(options, "update_probe", False))
    assert scan.truth is not None
    return compare_with_truth(result, scan.truth, remove_ramp=free, remove_shift=free).nrmse, result


def damage(scan: Scan, kind: str) -> Scan:
    """Return the scan with seven frames that no object explains."""
    counts, rng = get_counts(scan), np.random.default_rng(0)
    shape = counts[BAD_FRAMES].shape
    counts[BAD_FRAMES] = {
        "ten times too bright": lambda: 10 * counts[BAD_FRAMES],
        "noise of the usual total": lambda: rng.poisson(1e6 / 1024, shape),
        "noise of four times the total": lambda: rng.poisson(4e6 / 1024, shape),
        "nearly dark": lambda: 0.03 * counts[BAD_FRAMES],
        "empty": lambda: 0 * counts[BAD_FRAMES],
    }[kind]()
    return replace_counts(scan, counts)


@pytest.mark.parametrize("engine", ["pie", "lsqml", "raar", "dm"])
@pytest.mark.parametrize("kind", ["ten times too bright", "noise of the usual total", "nearly dark", "empty"])
def test_frames_that_no_object_explains_are_found_and_change_nothing(clean: Scan, engine: str, kind: str) -> None:
    good = clean.select(np.setdiff1d(np.arange(len(clean)), BAD_FRAMES))
    epochs = 12
    expected, _ = compute_error(good, ENGINES[engine](epochs=epochs))  # type: ignore[call-arg]
    error, result = compute_error(damage(clean, kind), ENGINES[engine](epochs=epochs))  # type: ignore[call-arg]
    assert result.metadata["excluded_patterns"] == BAD_FRAMES.tolist()
    assert error < 1.1 * expected + 1e-3


def test_no_frame_of_a_good_scan_is_excluded(clean: Scan) -> None:
    assert "excluded_patterns" not in PIE(epochs=6).run(clean, device="cpu").metadata


def test_a_run_with_excluded_frames_resumes_exactly(clean: Scan, tmp_path: Any) -> None:
    scan = damage(clean, "noise of the usual total")
    options = ENGINES["raar"](epochs=6)  # type: ignore[call-arg]
    from_start = Pipeline(options).start(scan, device="cpu")
    assert from_start.run()
    interrupted, resumed = (Pipeline(options).start(scan, device="cpu") for _ in range(2))

    class Interrupt(SilentObserver):
        def advance(self, steps: int = 1, **figures: float) -> None:
            assert interrupted.runner is not None
            if len(interrupted.runner.history.r) == 4:
                raise KeyboardInterrupt

    assert not interrupted.run(Interrupt())
    interrupted.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    assert resumed.run()
    assert resumed.make_metadata()["excluded_patterns"] == BAD_FRAMES.tolist()
    assert resumed.make_reconstruction().object.tobytes() == from_start.make_reconstruction().object.tobytes()


@pytest.mark.parametrize("engine", ["pie", "raar", "gradient"])
def test_a_beam_that_falls_during_the_scan_does_not_change_the_image(clean: Scan, engine: str) -> None:
    factors = np.where(np.arange(len(clean)) < JUMP_FRAME, 1.0, 0.4)
    counts = np.random.default_rng(0).binomial(get_counts(clean).astype(int), factors[:, None, None])
    error, result = compute_error(replace_counts(clean, counts), ENGINES[engine](update_intensity=True))  # type: ignore[call-arg]
    assert error < 0.02
    assert result.intensities is not None
    ratio = result.intensities[JUMP_FRAME:].mean() / result.intensities[:JUMP_FRAME].mean()
    assert ratio == pytest.approx(0.4, rel=0.02)


def test_an_edge_of_the_object_is_no_jump_of_the_source() -> None:
    rows, columns = np.divmod(np.arange(400), 20)
    positions = np.stack([rows, columns], 1).astype(float)
    totals = np.where(columns < 10, 1e6, 5e5) * np.random.default_rng(0).normal(1, 0.01, 400)
    assert (estimate_intensity_levels(totals, positions) == 1).all()
    assert not find_outlier_totals(totals, positions).any()


@pytest.mark.parametrize("engine", ["pie", "lsqml", "rpie", "raar", "gradient"])
def test_a_background_of_ten_times_the_signal_is_separated(clean: Scan, engine: str) -> None:
    added = np.random.default_rng(0).poisson(1e7 / 1024, clean.amplitudes.shape)
    scan = replace_counts(clean, get_counts(clean) + added)
    error, result = compute_error(scan, ENGINES[engine](update_background=True))  # type: ignore[call-arg]
    assert error < 0.09  # counting noise of the background; without a start from the patterns 0.15 to 1
    assert result.background is not None
    assert result.background.mean() == pytest.approx(1e7 / 1024, rel=0.01)


def test_a_parabola_is_continued_into_pixels_without_weight() -> None:
    y, x = np.mgrid[:32, :32] / 32 - 0.5
    parabola, hole = 3 + y - 2 * x + y**2 - 4 * x * y + 2 * x**2, np.hypot(y, x) < 0.12
    smooth = smooth_by_local_parabola(np.where(hole, 100.0, parabola), np.where(hole, 0.0, 1.0), 2.0)
    assert np.abs(smooth - parabola).max() < 1e-3


def test_a_background_keeps_its_hot_pixel_and_loses_its_noise(clean: Scan) -> None:
    level, rng = 1e7 / 1024, np.random.default_rng(0)
    true = np.full((32, 32), level)
    true[3, 4] = 2 * level  # a corner with little signal
    scan = replace_counts(clean, get_counts(clean) + rng.poisson(true, clean.amplitudes.shape))
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    noisy = rng.normal(true, np.sqrt(true / len(scan)))
    regular = np.fft.fftshift(regularize_background(torch.from_numpy(np.fft.ifftshift(noisy)), measurement).numpy())
    assert regular[3, 4] == pytest.approx(2 * level, rel=0.02)
    assert np.median(np.abs(regular - true)) < 0.5 * np.median(np.abs(noisy - true))


@pytest.mark.parametrize("engine", ["pie", "lsqml", "gradient"])
@pytest.mark.parametrize("photons", [1e9, 1e12])
def test_the_poisson_likelihood_holds_at_a_high_dose(engine: str, photons: float) -> None:
    scan = simulate_scan("tiny", positions=100, overlap=0.9, jitter=0.4, photons=photons)
    error, _ = compute_error(scan, ENGINES[engine](loss="poisson", update_probe=True))  # type: ignore[call-arg]
    assert error < 0.03


@pytest.mark.parametrize("count", [1e2, 1e6, 1e11])
def test_the_poisson_deviance_is_exact_in_single_precision(count: float) -> None:
    relative = torch.tensor([1e-5, 1e-3, 0.02, 0.2, 1.0], dtype=torch.float64)
    rates, counts = count * (1 + relative), torch.full_like(relative, count)
    exact, single = Poisson().deviance(rates, counts), Poisson().deviance(rates.float(), counts.float())
    rounding = 4e-7 * count * relative  # of the rates themselves
    assert ((single - exact).abs() <= 1e-4 * exact + rounding + 1e-6).all()


def test_the_gradient_engine_fits_an_affine_map_of_the_positions(clean: Scan) -> None:
    start = clean.positions.mean(0) + 1.03 * (clean.positions - clean.positions.mean(0))
    options = ENGINES["gradient"](update_positions=True, position_model="affine", epochs=40)  # type: ignore[call-arg]
    result = options.run(replace(clean, positions=start), device="cpu")
    terms = np.c_[start, np.ones(len(start))]
    residual = result.positions - terms @ np.linalg.lstsq(terms, result.positions, rcond=None)[0]
    assert np.abs(residual).max() < 1e-6  # exactly one affine map
    before, after = (np.square(p - clean.positions).mean() for p in (start, result.positions))
    assert after < 0.5**2 * before
