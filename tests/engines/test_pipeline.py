"""Pipelines in memory, halves of a scan, and networks as stages."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import finish_pipeline

from ptycho_torch.config.engines import LSQML, PIE, EngineOptions, NetworkEngine
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.data.geometry import Geometry
from ptycho_torch.data.holdout import draw_holdout_pixels
from ptycho_torch.data.scan import Scan
from ptycho_torch.engines.pipeline import Pipeline, predict
from ptycho_torch.engines.pipeline_run import PipelineRun
from ptycho_torch.engines.state import make_vacuum_state
from ptycho_torch.evaluation.half_split import correlate_half_scans, split_half_indices
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.models.saved_model import Model, load_model
from ptycho_torch.physics.batch import scale_probe_to_photons

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(model_folder)


def make_rng() -> np.random.Generator:
    return np.random.default_rng(0)


def make_run(scan: Scan, *stages: EngineOptions) -> PipelineRun:
    """Return a run with held-out pixels that starts from an object of ones."""
    state = make_vacuum_state(torch.from_numpy(scan.positions.copy()), scale_probe_to_photons(scan, 1.0))
    return PipelineRun(scan, 1.0, list(stages), state, held_out=draw_holdout_pixels(scan, 0.05, make_rng()))


def reconstruct(run: PipelineRun) -> Any:
    return finish_pipeline(run).make_reconstruction()


def test_an_engine_runs_in_memory(scan: Scan) -> None:
    result = PIE(epochs=3, batch_size=8).run(scan, device="cpu", seed=2)
    again = Pipeline(PIE(epochs=3, batch_size=8)).run(scan, device="cpu", seed=2)
    assert result.object.tobytes() == again.object.tobytes()
    assert len(result.history["r"]) == 3
    assert result.metadata["method"] == "engine pie"
    assert (result.metadata["seed"], result.metadata["scan_digest"]) == (2, scan.digest())


def test_stages_follow_each_other_and_start_from_an_initial_estimate(scan: Scan) -> None:
    first = PIE(epochs=2).run(scan, device="cpu")
    result = Pipeline(PIE(epochs=2), LSQML(epochs=1, update_probe=True)).run(scan, device="cpu", initial=first)
    assert result.history["stage"] == [1, 1, 2]
    assert result.metadata["method"] == "engine pie → lsqml"
    assert result.history["r"][0] < first.history["r"][0] / 2
    assert scan.truth is not None
    from_truth = PIE(epochs=1).run(scan, device="cpu", initial=scan.truth)
    assert from_truth.history["r"][0] < first.history["r"][0] / 2


def test_held_out_pixels_are_scored(scan: Scan) -> None:
    result = PIE(epochs=2).run(scan, device="cpu", holdout=0.05)
    assert len(result.history["held_out_deviance"]) == 2


def test_a_pipeline_is_printed_with_the_changed_options(model: Model) -> None:
    assert repr(Pipeline(NetworkEngine(model), PIE(epochs=3))) == "Pipeline(NetworkEngine(model=…), PIE(epochs=3))"


def test_a_network_engine_accepts_a_folder() -> None:
    assert NetworkEngine("model") == NetworkEngine(model_path=Path("model"))
    with pytest.raises(ConfigError, match="`model` is of type int; expected a Model"):
        NetworkEngine(3)


def test_a_pipeline_checks_its_settings(scan: Scan, model: Model) -> None:
    with pytest.raises(ConfigError, match="no stage"):
        Pipeline()
    stages: list[Any] = [[PIE()], PIE, "pie", model]
    for stage, kind in zip(stages, ("a list", "the class PIE", "a str", "a Model"), strict=True):
        with pytest.raises(ConfigError, match=f"stage 1 is {kind}; expected engine options"):
            Pipeline(stage)
    with pytest.raises(DataError, match="`scan` is a str; expected a Scan"):
        PIE().run("scan.npz")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`seed`"):
        PIE().run(scan, seed=-1)
    with pytest.raises(ConfigError, match="`holdout`"):
        PIE().run(scan, holdout=0.9)
    with pytest.raises(ConfigError, match="`model_path`"):
        NetworkEngine().run(scan)
    with pytest.raises(ConfigError, match="`n_images`"):
        Pipeline(PIE(epochs=0), NetworkEngine(model, n_images=3)).run(scan, device="cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_inference_reconstruct_and_predict_give_the_same_object(
    run_main: Command, scan_file: Path, model_folder: Path, model: Model, scan: Scan, tmp_path: Path, precision: str
) -> None:
    inference, reconstruct = tmp_path / "inference", tmp_path / "reconstruct"
    arguments = ("--model_path", model_folder, "--test_data", scan_file, "--output_dir", inference, "--device", "cpu")
    assert run_main("inference", *arguments, "--no_report", "--precision", precision).code == 0
    stage = ("--engine", "pie", "--epochs", "0", "--then", f"neural:model_path={model_folder},precision={precision}")
    if precision == "auto":
        stage = ("--engine", "neural", "--model_path", str(model_folder))
    arguments = (scan_file, "--output_dir", reconstruct, "--device", "cpu", "--no_report", *stage)
    assert run_main("reconstruct", *arguments).code == 0
    first, second = (load_reconstruction(folder / "reconstruction.npz") for folder in (inference, reconstruct))
    assert first.object.tobytes() == second.object.tobytes()
    assert first.metadata["precision"] == second.metadata["precision"]
    assert predict(model, scan, precision=precision).object.tobytes() == first.object.tobytes()


def test_a_network_is_a_stage(scan: Scan, model: Model) -> None:
    alone = predict(model, scan)
    result = Pipeline(NetworkEngine(model), PIE(epochs=2)).run(scan, device="cpu")
    assert alone.metadata["method"] == f"network {model.model.config.name}"
    assert alone.metadata["precision"] in ("fp32", "bf16")
    assert result.history["stage"] == [2, 2]
    assert "epochs" not in result.metadata
    assert result.metadata["network_epochs"] == alone.metadata["epochs"]
    assert result.object.shape == alone.object.shape


def test_a_network_predicts_some_positions_with_uncertainty(scan: Scan, model: Model) -> None:
    result = predict(model, scan, n_images=7, uncertainty=True)
    assert len(result.positions) == 7
    assert result.uncertainty is not None
    assert result.uncertainty.shape == result.object.shape
    assert np.isfinite(result.uncertainty[result.coverage > 0]).all()


def test_an_interrupt_leaves_the_estimate_of_the_last_complete_epoch(
    scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupter(SilentObserver):
        epochs = 0

        def advance(self, steps: int = 1, **values: float) -> None:
            self.epochs += steps
            if self.epochs == 3:
                raise KeyboardInterrupt

    result = Pipeline(PIE(epochs=20)).run(scan, observer=Interrupter())
    assert len(result.history["r"]) == 2
    assert np.isfinite(result.object).all()
    assert "interrupted" in caplog.text


def test_positions_in_meters_and_refinement_that_never_starts_are_logged(
    scan: Scan, caplog: pytest.LogCaptureFixture
) -> None:
    Pipeline(PIE(epochs=0, update_positions=True)).run(replace(scan, positions=scan.positions * 1e-8), device="cpu")
    assert "they may be in meters" in caplog.text
    assert "no epoch of pie refines positions: `epochs` is 0 and `position_start` is 3" in caplog.text


def test_halves_share_the_initial_estimate_and_do_not_change_the_whole_run(scan: Scan) -> None:
    stages = PIE(epochs=3, batch_size=8, update_probe=True), LSQML(epochs=2, patience=1)
    unsplit, run = make_run(scan, *stages), make_run(scan, *stages)
    halves = run.split(make_rng())
    probe = run.state.probe
    assert all(half.state.probe is probe for half in halves)
    assert all(half.held_out is not None and half.held_out.shape == half.scan.amplitudes.shape for half in halves)
    results = [reconstruct(half) for half in halves]
    assert run.state.probe is probe
    assert run.history["r"] == []
    whole = reconstruct(run)
    assert whole.object.tobytes() == reconstruct(unsplit).object.tobytes()
    assert sum(len(result.positions) for result in results) == len(scan)
    for result in results:
        assert result.object.shape == whole.object.shape
        assert result.history["stage"][-1] == 2


def test_the_patterns_of_one_half_have_no_effect_on_the_other(scan: Scan) -> None:
    first_half, _ = split_half_indices(scan.positions, make_rng())
    corrupted = scan.amplitudes.copy()
    corrupted[first_half] = 3
    probe = scale_probe_to_photons(scan, 1.0)
    objects = []
    for amplitudes in (scan.amplitudes, corrupted):
        state = make_vacuum_state(torch.from_numpy(scan.positions.copy()), probe)
        run = PipelineRun(replace(scan, amplitudes=amplitudes), 1.0, [PIE(epochs=2, batch_size=8)], state)
        _, second = run.split(make_rng())
        objects.append(reconstruct(second).object.tobytes())
    assert objects[0] == objects[1]


def test_counting_noise_limits_the_correlation_of_the_halves(scan_factory: Callable[..., Scan]) -> None:
    crossings = []
    for photons in (1e2, 1e4, 1e7):
        run = make_run(scan_factory(n=64, photons=photons), PIE(epochs=10, batch_size=12))
        first, second = run.split(make_rng())
        crossing = correlate_half_scans(reconstruct(first), reconstruct(second)).frc.crossing
        crossings.append(0.5 if crossing is None else crossing)
    assert crossings[0] < crossings[1] < crossings[2]


def test_a_single_position_cannot_be_split(scan: Scan) -> None:
    with pytest.raises(DataError, match="expected at least 2"):
        make_run(scan.select(np.array([0]))).split(make_rng())


def test_scan_without_a_probe_is_reconstructed_with_an_estimated_probe_that_is_updated(
    scan_factory: Callable[..., Scan], caplog: pytest.LogCaptureFixture
) -> None:
    scan = scan_factory(100, 24, photons=1e6)
    without = replace(scan, probe=None)
    with caplog.at_level("WARNING"):
        result = PIE(epochs=40, batch_size=8).run(without)
    assert "no probe" in caplog.text
    assert "`init_probe`" in caplog.text
    scores = result.scores(without)
    assert scores["r"] < 10 * scores["r_floor"]
    assert result.compare(scan.truth, remove_ramp=True, remove_shift=True)["nrmse"] < 0.2


def test_earlier_result_of_the_whole_scan_starts_a_part_by_its_source_indices(scan: Scan) -> None:
    whole = replace(scan, source_index=np.arange(len(scan)))
    earlier = PIE(epochs=1).run(whole)
    moved = replace(
        earlier,
        positions=earlier.positions + 0.25,
        intensities=np.linspace(0.9, 1.1, len(scan), dtype=np.float32),
    )
    chosen = np.arange(5, 30, 2)
    run = Pipeline(PIE(epochs=1)).start(whole.select(chosen), initial=moved)
    np.testing.assert_array_equal(run.state.positions.numpy(), moved.positions[chosen])
    assert moved.intensities is not None
    np.testing.assert_array_equal(run.state.intensities.numpy(), moved.intensities[chosen])


def test_results_of_engines_networks_and_halves_have_the_geometry_of_the_scan(scan: Scan, model_folder: Path) -> None:
    geometry = Geometry(object_pixel_m=(1e-8, 2e-8), wavelength_m=1e-10)
    known = replace(scan, geometry=geometry)
    run = Pipeline(PIE(epochs=1)).start(known)
    halves = run.split(np.random.default_rng(0))
    results = [finish_pipeline(each).make_reconstruction() for each in (run, *halves)]
    results.append(load_model(model_folder).predict(known))
    for result in results:
        assert result.geometry == geometry
        assert result.scores(known)["object_pixel_nm"] == pytest.approx([10, 20])
    metrics = correlate_half_scans(*results[1:3]).to_metrics()
    assert metrics["half_scan_resolution_nm"] == pytest.approx(metrics["half_scan_resolution_pixels"] * 10 * 2**0.5)


@pytest.mark.parametrize(("factor", "warned"), [(0.5, True), (1.05, False), (2.0, True)])
def test_initial_positions_of_another_object_pixel_give_a_warning(
    scan: Scan, caplog: pytest.LogCaptureFixture, factor: float, warned: bool
) -> None:
    with caplog.at_level("WARNING"):
        Pipeline(PIE(epochs=1)).start(scan, init_positions=factor * scan.positions)
    assert ("another object pixel" in caplog.text.replace("\n", " ")) is warned
