"""What engines learn beside the object: positions, modes, a background, intensities; and the gauge that stays free."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from ptycho_torch.config.engines import StageConfig
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.initialization import paste_object, set_num_modes
from ptycho_torch.engines.measurement_model import ExitWaveUpdate, MeasurementModel
from ptycho_torch.engines.nuisance import (
    Refinement,
    RefinementSettings,
    clip_displacements,
    estimate_displacements,
    fit_affine_part,
    remove_slow_variation,
)
from ptycho_torch.engines.pipeline import Pipeline
from ptycho_torch.engines.position_refinement import estimate_displacements_by_correlation
from ptycho_torch.engines.state import ReconstructionState, make_measurement, make_vacuum_state
from ptycho_torch.evaluation.fourier_error import compute_fourier_error
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.physics.batch import scale_probe_to_photons
from ptycho_torch.physics.forward import from_object
from ptycho_torch.physics.noise import make_noise_model
from ptycho_torch.physics.probe import compute_center, compute_power, orthogonalize_modes
from ptycho_torch.simulation.scan import simulate_measurement


@pytest.fixture(scope="module")
def noiseless(scan_factory: Callable[..., Scan]) -> Scan:
    scan = scan_factory(n=36, size=24, seed=1, photons=0)
    assert scan.truth is not None
    expected = from_object(*(torch.from_numpy(a) for a in (scan.truth, scan.probe, scan.positions))).intensity
    scale = np.square(scan.amplitudes, dtype=np.float64).sum() / float(expected.sum())
    return replace(scan, probe=(scan.probe * np.sqrt(scale)).astype(np.complex64))


def at_truth(scan: Scan, margin: int = 2) -> ReconstructionState:
    estimate = make_vacuum_state(torch.from_numpy(scan.positions.copy()), torch.from_numpy(scan.probe), margin)
    assert scan.truth is not None
    estimate.object = paste_object(estimate, scan.truth, np.zeros(2, np.int64))
    return estimate


def optics_of(scan: Scan, estimate: ReconstructionState) -> MeasurementModel:
    measurement = make_measurement(scan, 1.0, make_noise_model("amplitude"), torch.device("cpu"))
    return MeasurementModel(measurement, estimate, fixed_probe=False)


@pytest.mark.parametrize("method", [estimate_displacements, estimate_displacements_by_correlation])
@pytest.mark.parametrize("shift", [(0.1, 0.0), (0.0, -0.1), (0.07, 0.05)])
def test_a_displaced_position_is_told_where_it_belongs(
    noiseless: Scan, shift: tuple[float, float], method: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> None:
    estimate = at_truth(noiseless)
    estimate.positions = estimate.positions + torch.tensor(shift, dtype=torch.float64)
    optics = optics_of(noiseless, estimate)
    everything = torch.arange(len(noiseless))
    found = method(optics, optics.compute_update(everything), everything)[0].mean(0)
    # The modulus alone is compared, so that a step goes only part of the way; its direction is what counts.
    asked = -torch.tensor(shift)
    share = float(found @ asked / (asked @ asked))
    assert 0.15 < share < 1.2
    assert float((found - share * asked).norm()) < 0.2 * float(asked.norm())


def test_jittered_positions_are_found(noiseless: Scan) -> None:
    jitter = np.random.default_rng(3).normal(0, 0.7, noiseless.positions.shape)
    jitter -= jitter.mean(0)
    stage = StageConfig(
        engine="pie", epochs=60, batch_size=6, update_positions=True, position_start=2, position_bound=3.0
    )
    start = make_vacuum_state(torch.from_numpy(noiseless.positions + jitter), torch.from_numpy(noiseless.probe), 5)
    chain = Pipeline(noiseless, 1.0, [stage], start)
    chain.run_stage(SilentObserver())
    left = chain.make_reconstruction().positions - noiseless.positions
    left -= left.mean(0)
    assert np.sqrt(np.square(left).mean()) < 0.3 * np.sqrt(np.square(jitter).mean())
    np.testing.assert_allclose(
        chain.make_reconstruction().positions.mean(0), (noiseless.positions + jitter).mean(0), atol=1e-9
    )


@pytest.mark.parametrize("shift", [(2.0, -1.0), (-0.5, 1.25), (0.0, 0.0)])
def test_a_wave_from_elsewhere_is_found_there(noiseless: Scan, shift: tuple[float, float]) -> None:
    estimate = at_truth(noiseless, margin=6)
    optics, everything = optics_of(noiseless, estimate), torch.arange(len(noiseless))
    here = optics.compute_update(everything)
    estimate.positions = estimate.positions + torch.tensor(shift, dtype=torch.float64)
    optics.refresh()
    # The probe stays at its fraction: it is the object that is looked at elsewhere.
    moved = optics.patches(everything)
    whole = optics.corners - optics_of(noiseless, at_truth(noiseless, margin=6)).corners
    change = here.probes * moved[:, None] - here.probes * here.patches[:, None]
    found, sharpness = estimate_displacements_by_correlation(
        optics, ExitWaveUpdate(here.patches, here.probes, change, None, 0.0), everything
    )
    off = (found - whole).abs().amax(1)
    assert off.median() < 0.1
    assert (torch.linalg.eigvalsh(sharpness) >= 0).all()


def test_a_flat_object_moves_nothing(noiseless: Scan) -> None:
    flat = make_vacuum_state(torch.from_numpy(noiseless.positions.copy()), torch.from_numpy(noiseless.probe))
    optics, everything = optics_of(noiseless, flat), torch.arange(len(noiseless))
    for method in (estimate_displacements, estimate_displacements_by_correlation):
        found, _ = method(optics, optics.compute_update(everything), everything)
        assert found.abs().max() < 1e-2


def speckled(scan: Scan) -> Scan:
    """The same positions and probe over an object with detail everywhere: a scale shows only where there is some."""
    assert scan.truth is not None
    rng = np.random.default_rng(0)
    y, x = (np.fft.fftfreq(n)[:, None] for n in scan.truth.shape)
    smooth = np.exp(-((y**2 + (x**2).T) / (2 * 0.1**2)))
    detail = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, *scan.truth.shape))) * smooth).real
    obj = (0.8 + 0.3 * detail[0] / detail[0].std() / 3) * np.exp(0.7j * detail[1] / detail[1].std())
    return simulate_measurement(obj, scan.probe.astype(complex), scan.positions, 1e6, np.random.default_rng(1))


def distorted(positions: np.ndarray, scale: float, degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = positions.mean(0)
    return (positions - middle) @ turn.T + middle


@pytest.mark.parametrize("method", ["gradient", "correlation"])
def test_a_scan_scaled_and_turned_is_put_right(
    scan_factory: Callable[..., Scan], method: Literal["gradient", "correlation"]
) -> None:
    scan = speckled(scan_factory(n=100, size=24, seed=5))
    start = distorted(scan.positions, 1.02, 1.0)
    stage = StageConfig(
        engine="rpie", epochs=80, batch_size=10, update_positions=True, position_method=method, position_model="affine"
    )
    scale = scan.photons_per_unit or 1.0
    chain = Pipeline(
        scan, scale, [stage], make_vacuum_state(torch.from_numpy(start), scale_probe_to_photons(scan, scale), 8)
    )
    chain.run_stage(SilentObserver())
    found = chain.make_reconstruction().positions
    before, left = start - scan.positions, found - scan.positions - (found - scan.positions).mean(0)
    assert np.square(left).mean() < 0.35**2 * np.square(before).mean()
    terms = np.c_[start, np.ones(len(start))]
    residual = found - terms @ np.linalg.lstsq(terms, found, rcond=None)[0]
    assert np.abs(residual).max() < 1e-9  # one map, and no more
    np.testing.assert_allclose(found.mean(0), start.mean(0), atol=1e-9)


def test_large_errors_are_found_by_correlation(scan_factory: Callable[..., Scan]) -> None:
    scan = speckled(scan_factory(n=100, size=24, seed=5))
    jitter = np.random.default_rng(3).normal(0, 1.5, scan.positions.shape)  # 2.1 pixels in the plane
    stage = StageConfig(
        engine="rpie", epochs=60, batch_size=10, update_positions=True, position_method="correlation", position_bound=8
    )
    scale = scan.photons_per_unit or 1.0
    start = torch.from_numpy(scan.positions + jitter)
    chain = Pipeline(scan, scale, [stage], make_vacuum_state(start, scale_probe_to_photons(scan, scale), 12))
    chain.run_stage(SilentObserver())
    left = chain.make_reconstruction().positions - scan.positions
    left -= left.mean(0)
    assert np.median(np.abs(left)) < 0.25 * np.median(np.abs(jitter))


def test_one_map_is_found_among_moves_that_know_little() -> None:
    rng = np.random.default_rng(0)
    start = torch.from_numpy(rng.uniform(0, 100, (40, 2)))
    linear = torch.tensor([[0.02, -0.017], [0.01, -0.03]], dtype=torch.float64)
    moves = (start - start.mean(0)) @ linear.mT + torch.tensor([3.0, -2.0])
    certainty = torch.eye(2, dtype=torch.float64).repeat(40, 1, 1)
    certainty[::3] = torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64))  # knows columns only
    moves[::3, 0] += 50
    torch.testing.assert_close(fit_affine_part(moves, certainty, start), (start - start.mean(0)) @ linear.mT)
    row = torch.stack([torch.zeros(40, dtype=torch.float64), start[:, 1]], 1)
    assert torch.isfinite(fit_affine_part(moves, certainty, row)).all()


@pytest.mark.parametrize(("model", "cut"), [("free", True), ("affine", False)])
def test_a_bound_keeps_a_map_a_map(model: str, cut: bool) -> None:
    moved = torch.tensor([[-6.0, 1.0], [6.0, -1.0]], dtype=torch.float64)
    found = clip_displacements(moved, 3.0, model)
    assert found.abs().max() == 3
    assert bool((found[:, 1].abs() == 1).all()) is cut


def test_positions_stay_within_their_bound(noiseless: Scan) -> None:
    jitter = np.random.default_rng(3).normal(0, 1.5, noiseless.positions.shape)
    stage = StageConfig(
        engine="pie", epochs=12, batch_size=6, update_positions=True, position_start=1, position_bound=0.25
    )
    start = make_vacuum_state(torch.from_numpy(noiseless.positions + jitter), torch.from_numpy(noiseless.probe), 3)
    chain = Pipeline(noiseless, 1.0, [stage], start)
    chain.run_stage(SilentObserver())
    moved = chain.make_reconstruction().positions - noiseless.positions - jitter
    assert 0.1 < np.abs(moved).max() <= 0.25 + 1e-9


def test_a_background_is_found_and_judged_with(noiseless: Scan) -> None:
    added = np.float32(0.01 * np.square(noiseless.amplitudes).mean())
    scan = replace(noiseless, amplitudes=np.sqrt(np.square(noiseless.amplitudes) + added).astype(np.float32))
    results = []
    for learned in (False, True):
        stage = StageConfig(engine="pie", epochs=60, batch_size=6, update_background=learned)
        start = make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe))
        chain = Pipeline(scan, 1.0, [stage], start)
        chain.run_stage(SilentObserver())
        results.append(chain.make_reconstruction())
    plain, learnt = (compute_fourier_error(result, scan, photons_per_unit=1.0).r for result in results)
    assert results[0].background is None
    assert learnt < 0.5 * plain
    assert results[1].background is not None
    assert results[1].background.min() >= 0
    assert np.median(results[1].background) == pytest.approx(added, rel=0.3)


@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
def test_the_figure_of_an_epoch_counts_the_background(noiseless: Scan, loss: Literal["amplitude", "poisson"]) -> None:
    added = 0.05 * np.square(noiseless.amplitudes).mean()
    estimate = at_truth(noiseless)
    estimate.background = torch.full_like(estimate.background, float(added))
    optics = MeasurementModel(
        make_measurement(noiseless, 1.0, make_noise_model(loss), torch.device("cpu")), estimate, fixed_probe=True
    )
    everything = torch.arange(len(noiseless))
    k = np.square(noiseless.amplitudes, dtype=np.float64)
    assert optics.compute_update(everything).error == pytest.approx(
        np.square(np.sqrt(k + added) - np.sqrt(k)).sum(), rel=1e-3
    )


def fluctuating(scan: Scan, strength: float) -> tuple[Scan, np.ndarray]:
    """The patterns of a source that fluctuates by ``strength`` rms, and by which factors."""
    factors = np.random.default_rng(7).normal(1, strength, len(scan))
    factors = remove_slow_variation(torch.from_numpy(factors), torch.from_numpy(scan.positions)).numpy()
    return replace(scan, amplitudes=(scan.amplitudes * np.sqrt(factors)[:, None, None]).astype(np.float32)), factors


def after(scan: Scan, stage: StageConfig) -> Reconstruction:
    """What a stage makes of ``scan`` from a flat object and the scan's probe."""
    start = make_vacuum_state(torch.from_numpy(scan.positions), scale_probe_to_photons(scan, 1.0))
    chain = Pipeline(scan, 1.0, [stage], start)
    chain.run_stage(SilentObserver())
    return chain.make_reconstruction()


@pytest.mark.parametrize("loss", ["amplitude", "poisson"])
@pytest.mark.parametrize("engine", ["pie", "lsqml", "rpie", "raar"])
def test_fluctuating_intensities_are_found(
    noiseless: Scan, engine: str, loss: Literal["amplitude", "poisson"], tmp_path: Path
) -> None:
    scan, factors = fluctuating(noiseless, 0.1)
    plain, learnt = (
        after(scan, StageConfig(engine=engine, loss=loss, epochs=60, batch_size=6, update_intensity=learned))
        for learned in (False, True)
    )
    assert plain.intensities is None
    learnt.save(tmp_path / "learnt.npz")
    found = load_reconstruction(tmp_path / "learnt.npz").intensities
    assert found is not None
    assert found.mean() == pytest.approx(1, abs=1e-5)
    assert np.std(found / factors) < 0.3 * np.std(factors)
    assert (
        compute_fourier_error(learnt, scan, photons_per_unit=1.0).r
        < 0.5 * compute_fourier_error(plain, scan, photons_per_unit=1.0).r
    )


def test_intensities_are_told_apart_from_modes(scan_factory: Callable[..., Scan]) -> None:
    # The light of a second mode is in every pattern alike; that of a source that fluctuates is not.
    steady = scan_factory(n=64, size=24, seed=2, modes=2, photons=1e6)
    scan, factors = fluctuating(steady, 0.1)
    stage = StageConfig(engine="pie", epochs=60, batch_size=8, update_probe=True, update_intensity=True)
    found = after(scan, stage)
    assert found.intensities is not None
    assert np.std(found.intensities / factors) < 0.3 * np.std(factors)
    share, true = (np.square(np.abs(modes)).sum((1, 2)) for modes in (found.probe, steady.probe))
    np.testing.assert_allclose(share / share.sum(), true / true.sum(), atol=0.03)


@pytest.mark.parametrize("engine", ["pie", "lsqml", "raar"])
def test_intensities_are_remembered(noiseless: Scan, engine: str, tmp_path: Path) -> None:
    scan, _ = fluctuating(noiseless, 0.1)
    stage = StageConfig(engine=engine, epochs=6, batch_size=6, update_intensity=True)
    then = StageConfig(engine="pie", epochs=2, batch_size=6)  # keeps what was found
    whole, begun, resumed = (
        Pipeline(
            scan, 1.0, [stage, then], make_vacuum_state(torch.from_numpy(scan.positions), torch.from_numpy(scan.probe))
        )
        for _ in range(3)
    )

    class Interrupt(SilentObserver):
        def advance(self, steps: int = 1, **figures: float) -> None:
            assert begun.runner is not None
            if len(begun.runner.history.r) == 4:
                raise KeyboardInterrupt

    assert not begun.run_stage(Interrupt())
    begun.save(tmp_path / "state.safetensors", {})
    resumed.load(tmp_path / "state.safetensors", {})
    for chain in (whole, resumed):
        while chain.num_finished_stages < 2:
            chain.run_stage(SilentObserver())
    a, b = whole.make_reconstruction(), resumed.make_reconstruction()
    assert a.intensities is not None
    assert b.intensities is not None
    assert a.intensities.tobytes() == b.intensities.tobytes()
    assert a.object.tobytes() == b.object.tobytes()


def test_a_steady_source_is_found_steady(noiseless: Scan) -> None:
    found = after(noiseless, StageConfig(engine="pie", epochs=60, batch_size=6, update_intensity=True))
    assert found.intensities is not None
    assert np.std(found.intensities) < 0.01


def test_a_slow_change_is_left_to_the_object() -> None:
    rng = np.random.default_rng(1)
    positions = torch.from_numpy(rng.uniform(0, 300, (200, 2)))
    fading = torch.exp(-positions[:, 0] / 500 + (positions[:, 1] / 400) ** 2)
    flicker = remove_slow_variation(torch.from_numpy(rng.normal(1, 0.02, 200)), positions)
    torch.testing.assert_close(remove_slow_variation(fading * flicker, positions), flicker)
    torch.testing.assert_close(remove_slow_variation(fading, positions), torch.ones_like(fading))


def test_orthogonal_modes_give_the_same_light_ordered_by_power() -> None:
    generator = torch.Generator().manual_seed(0)
    modes = (
        torch.randn(3, 7, 7, dtype=torch.complex128, generator=generator) * torch.tensor([1.0, 3.0, 2.0])[:, None, None]
    )
    found = orthogonalize_modes(modes)
    flat = found.flatten(1)
    products = flat @ flat.mH
    assert (products - torch.diag(torch.diagonal(products))).abs().max() < 1e-10 * products.abs().max()
    powers = torch.diagonal(products).real
    assert (powers.diff() < 0).all()
    obj = torch.randn(7, 7, dtype=torch.complex128, generator=generator)
    light = [compute_power(torch.fft.fft2(obj * some)) for some in (modes, found)]
    torch.testing.assert_close(light[0], light[1], rtol=1e-10, atol=1e-10)


def test_modes_that_are_orthogonal_already_stay_as_they_are() -> None:
    modes = torch.zeros(2, 5, 5, dtype=torch.complex128)
    modes[0, 1, 2], modes[1, 3, 3] = 2j, 1 - 1j
    torch.testing.assert_close(orthogonalize_modes(modes), modes)


def test_the_gauge_leaves_every_pattern_as_it_is(noiseless: Scan) -> None:
    estimate = at_truth(noiseless, margin=6)
    estimate.probe = set_num_modes(estimate.probe, 2)
    optics = optics_of(noiseless, estimate)
    refinement = Refinement(optics, RefinementSettings(update_probe=True))
    estimate.probe = 1.7 * torch.roll(estimate.probe, (2, -1), (-2, -1))
    everything = torch.arange(len(noiseless))
    before = compute_power(torch.fft.fft2(optics.patches(everything)[:, None] * optics.probes(everything)))
    assert refinement.end_epoch()
    assert float(compute_power(estimate.probe).sum()) == pytest.approx(float(refinement.power), rel=1e-4)
    assert (compute_center(compute_power(estimate.probe)) - refinement.centre).abs().max() < 0.5
    after = compute_power(torch.fft.fft2(optics.patches(everything)[:, None] * optics.probes(everything)))
    # The probe's faint tail (1 % at the window's edge) comes in again at the other side.
    torch.testing.assert_close(after, before, rtol=0, atol=0.03 * float(before.max()))
