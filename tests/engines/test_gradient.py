"""The gradient engine: slopes against finite differences, every optimiser, and what it learns beside the object.

What all engines have in common is tested in ``test_iterative.py``.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.config.engines import Gradient
from ptycho_torch.core.errors import ConfigError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.gradient import OPTIMIZERS, GradientEngine
from ptycho_torch.engines.registry import make_engine
from ptycho_torch.engines.runner import EngineRunner
from ptycho_torch.engines.state import Measurement, ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.physics.forward import from_object
from ptycho_torch.physics.noise import NOISE_MODELS, make_noise_model
from ptycho_torch.physics.patches import Canvas

CPU = torch.device("cpu")
LEARNED = ("object", "probe", "background", "positions")
EVERYTHING = {"update_probe": True, "update_background": True, "update_positions": True, "position_start": 0}


def power_corrected(scan: Scan) -> Tensor:
    """The probe with which the true object gives the scan's photons."""
    assert scan.truth is not None
    obj, probe = (torch.from_numpy(array).to(torch.complex128) for array in (scan.truth, scan.probe))
    expected = from_object(obj, probe, torch.from_numpy(scan.positions)).intensity.sum()
    counts = np.square(scan.amplitudes, dtype=np.float64).sum()
    return torch.from_numpy(scan.probe) * float(np.sqrt(counts / float(expected)))


def problem_of(scan: Scan, loss: str = "amplitude") -> tuple[Measurement, ReconstructionState]:
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), power_corrected(scan), margin=4)
    return make_measurement(scan, 1.0, make_noise_model(loss), CPU), estimate


def true_object(scan: Scan, estimate: ReconstructionState) -> Tensor:
    """On the canvas of the estimate, ones where that reaches further."""
    return torch.from_numpy(placed(scan.truth, estimate.canvas))


def placed(truth: NDArray[np.complex64] | None, frame: Canvas) -> NDArray[np.complex64]:
    assert truth is not None
    (top, left), (rows, columns) = frame
    wide = np.pad(truth, 8, constant_values=1)
    return wide[top + 8 : top + 8 + rows, left + 8 : left + 8 + columns].copy()


def nrmse(scan: Scan, estimate: ReconstructionState) -> float:
    """Over the well-lit middle, after the best complex factor."""
    found, truth = (x[12:-12, 12:-12] for x in (estimate.object, true_object(scan, estimate)))
    factor = (found.conj() * truth).sum() / found.abs().square().sum()
    return float((factor * found - truth).norm() / truth.norm())


def run(engine: GradientEngine, epochs: int, batch_size: int = 8) -> EngineRunner:
    engine.options = replace(engine.options, epochs=epochs, batch_size=batch_size)
    going = EngineRunner(engine, seed=0)
    assert going.run(SilentObserver())
    return going


@pytest.fixture(scope="module")
def rough(scan_factory: Callable[..., Scan]) -> tuple[Measurement, ReconstructionState]:
    """A problem in float64, away from its solution, with odd windows, two modes, a mask and a background."""
    rng = np.random.default_rng(3)
    scan = scan_factory(n=12, size=15, seed=5, modes=2, photons=1e4)
    scan = replace(scan, mask=rng.uniform(size=scan.amplitudes.shape) > 0.1)
    measured, estimate = problem_of(scan)
    measured = replace(measured, counts=measured.counts.double())
    noise = rng.standard_normal((2, *estimate.canvas.shape)) * 0.1
    start = ReconstructionState(
        torch.from_numpy(1 + noise[0] + 1j * noise[1]),
        estimate.probe.to(torch.complex128) * 1.1,
        estimate.positions + torch.from_numpy(rng.uniform(-0.3, 0.3, (12, 2))),
        torch.from_numpy(rng.uniform(0.5, 2, (15, 15))),
        torch.from_numpy(rng.uniform(0.8, 1.2, 12)),
        estimate.canvas,
    )
    return measured, start


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
@pytest.mark.parametrize("name", LEARNED)
def test_slopes_agree_with_finite_differences(
    name: str, loss: str, optimizer: str, rough: tuple[Measurement, ReconstructionState]
) -> None:
    measurement, start = replace(rough[0], noise=make_noise_model(loss)), rough[1]
    settings = Gradient(optimizer=optimizer, tv=0.3, smoothness=0.2, **EVERYTHING)
    engine = GradientEngine(measurement, start.copy(), replace(settings, batch_size=12))
    indices, leaf = torch.arange(12), engine.leaves[name]
    engine.differentiate(indices)
    slope = leaf.grad.clone()
    rng = np.random.default_rng(4)
    for part in (1.0, 1j) if leaf.is_complex() else (1.0,):
        direction = part * torch.from_numpy(rng.standard_normal(leaf.shape)).to(leaf.dtype)
        direction = direction / engine.units[name]  # so that all of it moves by as much
        held, h = leaf.data, 1e-5 * float(engine.state.tensors()[name].abs().mean())
        losses = []
        for sign in (2, 1, -1, -2):
            leaf.data = held + sign * h * direction
            losses.append(float(engine.compute_loss(indices)[0].detach()))
        leaf.data = held
        expected = (-losses[0] + 8 * losses[1] - 8 * losses[2] + losses[3]) / (12 * h)
        found = float((slope.conj() * direction).real.sum())
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7 * float((slope.abs() * direction.abs()).sum()))


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_the_figure_of_a_step_is_the_misfit_before_it(
    optimizer: str, rough: tuple[Measurement, ReconstructionState]
) -> None:
    measurement, start = rough
    engine = GradientEngine(measurement, start.copy(), Gradient(optimizer=optimizer, batch_size=12))
    chosen = torch.tensor([7, 2, 9])
    origin = start.positions.new_tensor(start.canvas.origin)
    coherent = from_object(start.object, start.probe, start.positions[chosen] - origin).intensity
    rates = start.intensities[chosen, None, None] * coherent + start.background
    counted = measurement.select_mask(chosen)
    expected = (rates.sqrt() - measurement.counts[chosen].sqrt()).square()[counted].sum()
    assert engine.step(chosen, 0.0) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_the_error_falls_and_the_object_is_found(optimizer: str, loss: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=42, size=23, seed=2, photons=1e6, modes=2)
    measurement, estimate = problem_of(scan, loss)
    assert estimate.object.shape[0] != estimate.object.shape[1]
    first = nrmse(scan, estimate)
    r = run(GradientEngine(measurement, estimate, Gradient(optimizer=optimizer, batch_size=8)), 40).history.r
    assert r[-1] < r[0] / 20
    assert nrmse(scan, estimate) < 0.3 * first


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_perfect_noiseless_start_stays_put(optimizer: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=25, seed=3, photons=0)
    measurement, estimate = problem_of(scan)
    truth = estimate.object = true_object(scan, estimate)
    probe, positions = estimate.probe, estimate.positions
    settings = Gradient(optimizer=optimizer, update_probe=True, update_positions=True, position_start=0)
    run(GradientEngine(measurement, estimate, replace(settings, batch_size=8)), 5)
    assert (estimate.object - truth)[12:-12, 12:-12].abs().max() < 2e-3
    assert (estimate.probe - probe).abs().max() < 1e-3 * probe.abs().max()
    assert (estimate.positions - positions).abs().max() < 1e-3


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_it_goes_on_exactly_from_what_it_remembers(optimizer: str, scan: Scan) -> None:
    stage = Gradient(optimizer=optimizer, epochs=8, batch_size=8, **EVERYTHING)

    def begun() -> EngineRunner:
        measurement, estimate = problem_of(scan)
        return EngineRunner(make_engine(measurement, estimate, stage), seed=0)

    class Stop(SilentObserver):
        epochs = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.epochs += 1
            if self.epochs == 5:
                raise KeyboardInterrupt

    whole, halted, resumed = begun(), begun(), begun()
    whole.run(SilentObserver())
    assert not halted.run(Stop())
    tensors, note = halted.state_dict()
    resumed.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, note)
    resumed.run(SilentObserver())
    assert resumed.history.r == whole.history.r
    for name, tensor in whole.engine.state.tensors().items():
        assert torch.equal(tensor, resumed.engine.state.tensors()[name]), name


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_what_it_gave_away_is_never_written_into(optimizer: str, scan: Scan) -> None:
    measurement, estimate = problem_of(scan)
    engine = GradientEngine(measurement, estimate, Gradient(optimizer=optimizer, **EVERYTHING, batch_size=12))
    run(engine, 3)
    given = engine.state.tensors() | engine.state_dict()
    kept = {name: tensor.clone() for name, tensor in given.items()}
    engine.load_state_dict(engine.state_dict())
    run(engine, 3)
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert not any(tensor.requires_grad for tensor in engine.state.tensors().values())


def test_only_what_is_asked_for_is_learned_and_from_its_epoch_on(scan: Scan) -> None:
    measurement, estimate = problem_of(scan)
    before = estimate.tensors()
    run(GradientEngine(measurement, estimate, Gradient(batch_size=12)), 2)
    assert [name for name in LEARNED if estimate.tensors()[name] is not before[name]] == ["object"]
    settings = Gradient(update_probe=True, probe_start=2, update_positions=True, position_start=3)
    engine = GradientEngine(measurement, estimate, replace(settings, batch_size=12))
    changed = []
    for epoch in range(4):
        before = estimate.tensors()
        engine.begin_epoch(epoch, 0.0)
        for part in torch.arange(len(measurement)).split(12):
            engine.step(part, 0.0)
        engine.end_epoch(epoch, 0.0)
        changed.append({name for name in LEARNED if estimate.tensors()[name] is not before[name]})
    assert changed == [{"object"}, {"object"}, {"object", "probe"}, {"object", "probe", "positions"}]


def test_positions_are_found_and_stay_bounded(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=49, size=24, seed=6, photons=1e6)
    off = np.random.default_rng(7).normal(0, 0.7, scan.positions.shape)
    measurement, estimate = problem_of(scan)
    start = estimate.positions = estimate.positions + torch.from_numpy(off).clamp(-1.5, 1.5)
    run(GradientEngine(measurement, estimate, Gradient(update_positions=True, batch_size=12)), 60, 12)

    def error(positions: Tensor) -> float:
        wrong = positions.numpy() - scan.positions
        return float(np.sqrt(np.square(wrong - wrong.mean(0)).mean()))

    assert error(estimate.positions) < 0.3 * error(start)
    assert (estimate.positions - start).mean(0).abs().max() < 1e-6
    estimate.positions = start
    run(
        GradientEngine(measurement, estimate, Gradient(update_positions=True, position_bound=0.2, batch_size=12)), 8, 12
    )
    displacements = estimate.positions - start
    assert displacements.abs().max() <= 0.2 + 1e-9
    assert torch.linalg.vector_norm(displacements, dim=1).max() > 0.21  # the bound is per axis, not on the length


def test_windows_stay_on_the_canvas(scan: Scan) -> None:
    measurement, estimate = problem_of(scan)
    engine = GradientEngine(measurement, estimate, Gradient(update_positions=True, position_bound=1e3, batch_size=12))
    thrown = engine.limit_positions(estimate.positions + 50 * torch.randn(len(scan), 2, generator=torch.manual_seed(0)))
    estimate.positions = thrown
    engine.begin_epoch(5, 0.0)
    assert np.isfinite(engine.step(torch.arange(len(scan)), 0.0))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_background_is_found_and_never_negative(optimizer: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=49, size=24, seed=8, photons=1e5)
    rng, level = np.random.default_rng(9), 0.03 * 1e5 / 24**2
    counts = np.square(scan.amplitudes) + rng.poisson(level, scan.amplitudes.shape)
    probe = power_corrected(scan)
    spoilt = replace(scan, amplitudes=np.sqrt(counts).astype(np.float32))
    measurement = make_measurement(spoilt, 1.0, make_noise_model("poisson"), CPU)
    estimate = make_vacuum_state(torch.from_numpy(scan.positions), probe, margin=4)
    run(GradientEngine(measurement, estimate, Gradient(optimizer=optimizer, update_background=True, batch_size=8)), 40)
    assert estimate.background.min() >= 0
    # The object explains part of the noise of so few patterns, and of the background with it.
    assert float(estimate.background.median()) == pytest.approx(level, rel=0.25)


def test_total_variation_levels_noise_and_keeps_the_edge(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=64, size=24, seed=10, photons=600)
    assert scan.truth is not None
    truth, positions = np.ones_like(scan.truth), torch.from_numpy(scan.positions)
    truth[:, truth.shape[1] // 2 :] = np.exp(0.8j)
    probe = power_corrected(scan)
    rates = from_object(torch.from_numpy(truth), probe, positions).intensity.double().numpy()
    counts = np.random.default_rng(11).poisson(rates)
    amplitudes = np.sqrt(np.fft.fftshift(counts, axes=(1, 2))).astype(np.float32)
    measurement = make_measurement(replace(scan, amplitudes=amplitudes), 1.0, make_noise_model("poisson"), CPU)

    def ground_and_edge(tv: float) -> tuple[float, float, float]:
        estimate = make_vacuum_state(positions, probe, margin=4)
        run(GradientEngine(measurement, estimate, Gradient(tv=tv, batch_size=16)), 40, 16)
        edge = truth.shape[1] // 2 - estimate.canvas.origin[1]
        phase = estimate.object.angle()[14:-14]
        left, right = phase[:, edge - 8 : edge - 2], phase[:, edge + 2 : edge + 8]
        jump = (phase[:, edge] - phase[:, edge - 1]).mean()
        return float(left.std() + right.std()), float(right.mean() - left.mean()), float(jump)

    (noise, height, _), (flat, kept, jump) = ground_and_edge(0.0), ground_and_edge(0.02)
    assert flat < 0.6 * noise
    assert kept > 0.85 * height
    assert jump > 0.9 * kept  # all of it between two pixels


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="`optimizer` is rmsprop; expected one of adam, lbfgs, sgd"):
        Gradient(optimizer="rmsprop")
