"""Many unknowns at once: the default schedule keeps object, probe and positions from a common deformation."""

import numpy as np
import pytest
import torch

from ptycho_torch.config.engines import PIE
from ptycho_torch.evaluation.metrics import compare_with_truth
from ptycho_torch.physics.position_refinement import remove_affine_part
from ptycho_torch.simulation.imperfections import Imperfections, ImperfectScan, simulate_imperfect_scan
from ptycho_torch.simulation.scan import SimulationSettings


@pytest.fixture(scope="module")
def imperfect() -> ImperfectScan:
    """169 patterns with two modes, a background, position errors, a fluctuating source and dead pixels."""
    settings = SimulationSettings("cells", "structured", "spiral", 48, 169, 0.85, 0.3, 2, 1e6)
    return simulate_imperfect_scan(settings, Imperfections())


def test_all_unknowns_at_once_give_the_object_and_the_positions(imperfect: ImperfectScan) -> None:
    stage = PIE(
        epochs=40,
        update_probe=True,
        probe_modes=2,
        update_positions=True,
        update_background=True,
        update_intensity=True,
    )
    result = stage.run(imperfect.scan, device="cpu")
    assert imperfect.scan.truth is not None
    comparison = compare_with_truth(result, imperfect.scan.truth, remove_ramp=True, remove_shift=True)
    assert comparison.nrmse < 0.04
    errors = result.positions - imperfect.positions
    assert np.sqrt(np.square(errors - errors.mean(0)).mean()) < 0.2
    assert result.intensities is not None
    assert np.std(result.intensities / imperfect.intensities) < 0.04


def test_displacements_without_their_affine_part_are_orthogonal_to_every_affine_map() -> None:
    rng = np.random.default_rng(0)
    positions = torch.from_numpy(rng.uniform(0, 100, (40, 2)))
    jitter = remove_affine_part(torch.from_numpy(rng.normal(size=(40, 2))), positions)
    affine = (positions - 7) @ torch.tensor([[0.01, 0.02], [-0.03, 0.02]], dtype=torch.float64)
    torch.testing.assert_close(remove_affine_part(affine + jitter, positions), jitter)
    line = positions * torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert float((line.T @ remove_affine_part(jitter, line)).abs().max()) < 1e-6
