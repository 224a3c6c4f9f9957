"""The gradient engine: gradients against finite differences, all optimizers, and nuisance parameters.

``test_runner.py`` has the tests that all engines share.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import scale_probe_to_truth
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
UNKNOWNS = ("object", "probe", "background", "positions")
UPDATE_ALL = {
    "update_probe": True,
    "update_background": True,
    "background_start": 0.0,
    "update_positions": True,
    "position_start": 0,
}


def make_problem(scan: Scan, loss: str = "amplitude") -> tuple[Measurement, ReconstructionState]:
    state = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_truth(scan), margin=4)
    return make_measurement(scan, 1.0, make_noise_model(loss), CPU), state


def true_object(scan: Scan, state: ReconstructionState) -> Tensor:
    """Return the true object on the canvas of the state; ones beyond it."""
    return torch.from_numpy(paste_truth(scan.truth, state.canvas))


def paste_truth(truth: NDArray[np.complex64] | None, canvas: Canvas) -> NDArray[np.complex64]:
    assert truth is not None
    (top, left), (rows, columns) = canvas
    wide = np.pad(truth, 8, constant_values=1)
    return wide[top + 8 : top + 8 + rows, left + 8 : left + 8 + columns].copy()


def nrmse(scan: Scan, state: ReconstructionState) -> float:
    """Return the NRMSE of the object in the center of the canvas, after the best complex factor."""
    obj, truth = (x[12:-12, 12:-12] for x in (state.object, true_object(scan, state)))
    factor = (obj.conj() * truth).sum() / obj.abs().square().sum()
    return float((factor * obj - truth).norm() / truth.norm())


def run(engine: GradientEngine, epochs: int, batch_size: int = 8) -> EngineRunner:
    engine.options = replace(engine.options, epochs=epochs, batch_size=batch_size)
    runner = EngineRunner(engine, seed=0)
    assert runner.run(SilentObserver())
    return runner


@pytest.fixture(scope="module")
def rough_problem(scan_factory: Callable[..., Scan]) -> tuple[Measurement, ReconstructionState]:
    """A problem in float64 away from its solution, with patches of odd size, two modes, a mask and a background."""
    rng = np.random.default_rng(3)
    scan = scan_factory(n=12, size=15, seed=5, modes=2, photons=1e4)
    scan = replace(scan, mask=rng.uniform(size=scan.amplitudes.shape) > 0.1)
    measured, state = make_problem(scan)
    measured = replace(measured, counts=measured.counts.double())
    noise = rng.standard_normal((2, *state.canvas.shape)) * 0.1
    start = ReconstructionState(
        torch.from_numpy(1 + noise[0] + 1j * noise[1]),
        state.probe.to(torch.complex128) * 1.1,
        state.positions + torch.from_numpy(rng.uniform(-0.3, 0.3, (12, 2))),
        torch.from_numpy(rng.uniform(0.5, 2, (15, 15))),
        torch.from_numpy(rng.uniform(0.8, 1.2, 12)),
        state.excluded,
        state.canvas,
    )
    return measured, start


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("loss", sorted(NOISE_MODELS))
@pytest.mark.parametrize("name", UNKNOWNS)
def test_gradients_agree_with_finite_differences(
    name: str, loss: str, optimizer: str, rough_problem: tuple[Measurement, ReconstructionState]
) -> None:
    measurement, start = replace(rough_problem[0], noise=make_noise_model(loss)), rough_problem[1]
    settings = Gradient(optimizer=optimizer, tv=0.3, smoothness=0.2, **UPDATE_ALL)
    engine = GradientEngine(measurement, start.copy(), replace(settings, batch_size=12))
    indices, leaf = torch.arange(12), engine.leaves[name]
    engine.differentiate(indices)
    gradient = leaf.grad.clone()
    rng = np.random.default_rng(4)
    for part in (1.0, 1j) if leaf.is_complex() else (1.0,):
        direction = part * torch.from_numpy(rng.standard_normal(leaf.shape)).to(leaf.dtype)
        direction = direction / engine.units[name]  # equal steps of the unknown itself
        original, h = leaf.data, 1e-5 * float(engine.state.tensors()[name].abs().mean())
        losses = []
        for sign in (2, 1, -1, -2):
            leaf.data = original + sign * h * direction
            losses.append(float(engine.compute_loss(indices)[0].detach()))
        leaf.data = original
        expected = (-losses[0] + 8 * losses[1] - 8 * losses[2] + losses[3]) / (12 * h)
        derivative = float((gradient.conj() * direction).real.sum())
        assert derivative == pytest.approx(
            expected, rel=1e-6, abs=1e-7 * float((gradient.abs() * direction.abs()).sum())
        )


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_step_returns_the_misfit_before_it(
    optimizer: str, rough_problem: tuple[Measurement, ReconstructionState]
) -> None:
    measurement, start = rough_problem
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
def test_the_error_decreases_and_the_object_is_recovered(
    optimizer: str, loss: str, scan_factory: Callable[..., Scan]
) -> None:
    scan = scan_factory(n=42, size=23, seed=2, photons=1e6, modes=2)
    measurement, state = make_problem(scan, loss)
    assert state.object.shape[0] != state.object.shape[1]
    first = nrmse(scan, state)
    r = run(GradientEngine(measurement, state, Gradient(optimizer=optimizer, batch_size=8)), 40).history.r
    assert r[-1] < r[0] / 20
    assert nrmse(scan, state) < 0.3 * first


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_perfect_noiseless_start_is_a_fixed_point(optimizer: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=25, seed=3, photons=0)
    measurement, state = make_problem(scan)
    truth = state.object = true_object(scan, state)
    probe, positions = state.probe, state.positions
    settings = Gradient(optimizer=optimizer, update_probe=True, update_positions=True, position_start=0)
    run(GradientEngine(measurement, state, replace(settings, batch_size=8)), 5)
    assert (state.object - truth)[12:-12, 12:-12].abs().max() < 2e-3
    assert (state.probe - probe).abs().max() < 1e-3 * probe.abs().max()
    assert (state.positions - positions).abs().max() < 1e-3


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_resumed_run_equals_an_uninterrupted_run(optimizer: str, scan: Scan) -> None:
    stage = Gradient(optimizer=optimizer, epochs=8, batch_size=8, **UPDATE_ALL)

    def make_runner() -> EngineRunner:
        measurement, state = make_problem(scan)
        return EngineRunner(make_engine(measurement, state, stage), seed=0)

    class Stop(SilentObserver):
        epochs = 0

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.epochs += 1
            if self.epochs == 5:
                raise KeyboardInterrupt

    uninterrupted, interrupted, resumed = make_runner(), make_runner(), make_runner()
    uninterrupted.run(SilentObserver())
    assert not interrupted.run(Stop())
    tensors, note = interrupted.state_dict()
    resumed.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, note)
    resumed.run(SilentObserver())
    assert resumed.history.r == uninterrupted.history.r
    for name, tensor in uninterrupted.engine.state.tensors().items():
        assert torch.equal(tensor, resumed.engine.state.tensors()[name]), name


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_returned_tensors_are_never_modified(optimizer: str, scan: Scan) -> None:
    measurement, state = make_problem(scan)
    engine = GradientEngine(measurement, state, Gradient(optimizer=optimizer, **UPDATE_ALL, batch_size=12))
    run(engine, 3)
    returned = engine.state.tensors() | engine.state_dict()
    copies = {name: tensor.clone() for name, tensor in returned.items()}
    engine.load_state_dict(engine.state_dict())
    run(engine, 3)
    assert all(torch.equal(returned[name], copies[name]) for name in returned)
    assert not any(tensor.requires_grad for tensor in engine.state.tensors().values())


def test_unknowns_are_updated_only_if_requested_and_from_their_first_epoch(scan: Scan) -> None:
    measurement, state = make_problem(scan)
    before = state.tensors()
    run(GradientEngine(measurement, state, Gradient(batch_size=12)), 2)
    assert [name for name in UNKNOWNS if state.tensors()[name] is not before[name]] == ["object"]
    settings = Gradient(update_probe=True, probe_start=2, update_positions=True, position_start=3)
    engine = GradientEngine(measurement, state, replace(settings, batch_size=12))
    changed = []
    for epoch in range(4):
        before = state.tensors()
        engine.begin_epoch(epoch, 0.0)
        for part in torch.arange(len(measurement)).split(12):
            engine.step(part, 0.0)
        engine.end_epoch(epoch, 0.0)
        changed.append({name for name in UNKNOWNS if state.tensors()[name] is not before[name]})
    assert changed == [{"object"}, {"object"}, {"object", "probe"}, {"object", "probe", "positions"}]


def test_positions_are_recovered_and_bounded_per_axis(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=49, size=24, seed=6, photons=1e6)
    jitter = np.random.default_rng(7).normal(0, 0.7, scan.positions.shape)
    measurement, state = make_problem(scan)
    start = state.positions = state.positions + torch.from_numpy(jitter).clamp(-1.5, 1.5)
    run(GradientEngine(measurement, state, Gradient(update_positions=True, batch_size=12)), 60, 12)

    def error(positions: Tensor) -> float:
        wrong = positions.numpy() - scan.positions
        return float(np.sqrt(np.square(wrong - wrong.mean(0)).mean()))

    assert error(state.positions) < 0.3 * error(start)
    assert (state.positions - start).mean(0).abs().max() < 1e-6
    state.positions = start
    run(GradientEngine(measurement, state, Gradient(update_positions=True, position_bound=0.2, batch_size=12)), 8, 12)
    displacements = state.positions - start
    assert displacements.abs().max() <= 0.2 + 1e-9
    assert torch.linalg.vector_norm(displacements, dim=1).max() > 0.21  # the bound is per axis, not on the length


def test_patches_stay_on_the_canvas(scan: Scan) -> None:
    measurement, state = make_problem(scan)
    engine = GradientEngine(measurement, state, Gradient(update_positions=True, position_bound=1e3, batch_size=12))
    limited = engine.limit_positions(state.positions + 50 * torch.randn(len(scan), 2, generator=torch.manual_seed(0)))
    state.positions = limited
    engine.begin_epoch(5, 0.0)
    assert np.isfinite(engine.step(torch.arange(len(scan)), 0.0))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_background_is_recovered_and_not_negative(optimizer: str, scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=49, size=24, seed=8, photons=1e5)
    rng, level = np.random.default_rng(9), 0.03 * 1e5 / 24**2
    counts = np.square(scan.amplitudes) + rng.poisson(level, scan.amplitudes.shape)
    probe = scale_probe_to_truth(scan)
    with_background = replace(scan, amplitudes=np.sqrt(counts).astype(np.float32))
    measurement = make_measurement(with_background, 1.0, make_noise_model("poisson"), CPU)
    state = make_vacuum_state(torch.from_numpy(scan.positions), probe, margin=4)
    run(GradientEngine(measurement, state, Gradient(optimizer=optimizer, update_background=True, batch_size=8)), 40)
    assert state.background.min() >= 0
    # With so few patterns, the object absorbs part of the noise and of the background.
    assert float(state.background.median()) == pytest.approx(level, rel=0.25)


def test_total_variation_removes_noise_and_preserves_an_edge(scan_factory: Callable[..., Scan]) -> None:
    scan = scan_factory(n=64, size=24, seed=10, photons=600)
    assert scan.truth is not None
    truth, positions = np.ones_like(scan.truth), torch.from_numpy(scan.positions)
    truth[:, truth.shape[1] // 2 :] = np.exp(0.8j)
    probe = scale_probe_to_truth(scan)
    rates = from_object(torch.from_numpy(truth), probe, positions).intensity.double().numpy()
    counts = np.random.default_rng(11).poisson(rates)
    amplitudes = np.sqrt(np.fft.fftshift(counts, axes=(1, 2))).astype(np.float32)
    measurement = make_measurement(replace(scan, amplitudes=amplitudes), 1.0, make_noise_model("poisson"), CPU)

    def measure_edge(tv: float) -> tuple[float, float, float]:
        """Return the noise beside the edge, the height of the edge, and its largest jump between two pixels."""
        state = make_vacuum_state(positions, probe, margin=4)
        run(GradientEngine(measurement, state, Gradient(tv=tv, batch_size=16)), 40, 16)
        edge = truth.shape[1] // 2 - state.canvas.origin[1]
        phase = state.object.angle()[14:-14]
        left, right = phase[:, edge - 8 : edge - 2], phase[:, edge + 2 : edge + 8]
        jump = (phase[:, edge] - phase[:, edge - 1]).mean()
        return float(left.std() + right.std()), float(right.mean() - left.mean()), float(jump)

    (noise, height, _), (tv_noise, tv_height, jump) = measure_edge(0.0), measure_edge(0.02)
    assert tv_noise < 0.6 * noise
    assert tv_height > 0.85 * height
    assert jump > 0.9 * tv_height  # the uninterrupted edge is between two pixels


def test_an_unknown_optimizer_raises() -> None:
    with pytest.raises(ConfigError, match="`optimizer` is rmsprop; expected one of adam, lbfgs, sgd"):
        Gradient(optimizer="rmsprop")
