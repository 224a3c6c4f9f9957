"""The search for positions with errors of many pixels, before the first epoch of an engine."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from ptycho_torch.config.engines import ENGINES, PIE
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import make_initial_state
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.engines.position_search import make_coarse_patterns, search_positions
from ptycho_torch.engines.state import make_measurement
from ptycho_torch.physics.forward import compute_detector_waves
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.simulation.scan import simulate_scan

BOUND_PX = 12.0


@cache
def make_scan() -> Scan:
    return simulate_scan("tiny", object="letters", positions=144, overlap=0.93, jitter=0.4, photons=1e6)


def displace(scan: Scan, error_px: float) -> Scan:
    errors = np.random.default_rng(7).normal(0, error_px, scan.positions.shape)
    return replace(scan, positions=scan.positions + errors - errors.mean(0))


def compute_error(positions: np.ndarray) -> float:
    """Return the rms error of the positions per axis after removal of a common shift, in pixels."""
    errors = positions - make_scan().positions
    return float(np.sqrt(np.square(errors - errors.mean(0)).mean()))


def search(scan: Scan, **settings: object) -> torch.Tensor | None:
    """Return the positions that the search finds with the options ``settings`` of pie."""
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    state = make_initial_state(scan, 1.0, margin=2 + int(BOUND_PX))
    options = PIE(**({"update_positions": True, "position_bound": BOUND_PX} | settings))  # type: ignore[arg-type]
    with torch.no_grad():
        return search_positions(measurement, state, options, np.random.default_rng(0))


# pie with the method gradient leaves 0.03 pixels; of 6 pixels on 64² patterns 0.01 to 0.08 are left by any engine here.
@pytest.mark.parametrize(
    ("engine", "method"),
    [("pie", "gradient")]
    + [
        pytest.param(engine, method, marks=pytest.mark.slow)
        for engine, method in (
            ("pie", "correlation"),
            ("rpie", "correlation"),
            ("lsqml", "gradient"),
            ("raar", "gradient"),
            ("gradient", "gradient"),
        )
    ],
)
def test_position_errors_of_four_pixels_are_removed(engine: str, method: str) -> None:
    settings = {} if engine == "gradient" else {"position_method": method}
    options = ENGINES[engine](update_positions=True, position_bound=BOUND_PX, **settings)  # type: ignore[arg-type]
    result = options.run(displace(make_scan(), 4.0), device="cpu")
    assert compute_error(result.positions) < 0.3


def test_the_search_alone_finds_the_positions_to_a_pixel_and_within_the_bound() -> None:
    scan = displace(make_scan(), 4.0)
    found = search(scan)
    assert found is not None
    assert compute_error(found.numpy()) < 1.2
    assert np.abs(found.numpy() - scan.positions).max() <= BOUND_PX + 1e-9
    again = search(scan)
    assert again is not None
    assert torch.equal(found, again)


@pytest.mark.parametrize(
    "settings",
    [{"position_bound": 5.0}, {"position_model": "affine"}, {"update_positions": False}, {"epochs": 2}],
    ids=lambda settings: next(iter(settings)),
)
def test_there_is_no_search_where_positions_cannot_move_far(settings: dict[str, object]) -> None:
    assert search(displace(make_scan(), 4.0), **settings) is None


def test_small_errors_are_left_to_the_engine() -> None:
    assert search(displace(make_scan(), 0.5)) is None


def test_a_part_of_the_patterns_is_predicted_on_larger_pixels() -> None:
    scan = make_scan()
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    state = make_initial_state(scan, 1.0)
    coarse = make_coarse_patterns(measurement, state)
    assert coarse.factor == 2
    vacuum = compute_detector_waves(torch.ones(16, 16, dtype=torch.complex64), coarse.probe).abs()
    full = compute_detector_waves(torch.ones(32, 32, dtype=torch.complex64), state.probe).abs()
    kept = torch.arange(-8, 8).roll(8)
    torch.testing.assert_close(vacuum, full[:, kept][:, :, kept], rtol=1e-4, atol=1e-2)
    assert torch.equal(coarse.amplitudes, measurement.counts[:, kept][:, :, kept].sqrt())


@pytest.mark.slow
def test_a_run_after_a_search_resumes_exactly(tmp_path: Path) -> None:
    options = ENGINES["pie"](update_positions=True, position_bound=BOUND_PX, epochs=5)  # type: ignore[call-arg]
    scan = displace(make_scan(), 4.0)
    whole, interrupted, resumed = (Pipeline(options).start(scan, device="cpu") for _ in range(3))

    class Interrupt(SilentObserver):
        def advance(self, steps: int = 1, **figures: float) -> None:
            assert interrupted.runner is not None
            if len(interrupted.runner.history.r) == 4:
                raise KeyboardInterrupt

    assert whole.run()
    assert not interrupted.run(Interrupt())
    interrupted.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    assert resumed.run()
    first, second = (run.make_reconstruction() for run in (whole, resumed))
    assert first.object.tobytes() == second.object.tobytes()
    assert first.positions.tobytes() == second.positions.tobytes()
