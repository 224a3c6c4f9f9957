"""Program for two ranks: object stages, their gradients and their results equal those of one rank."""

import numpy as np
import torch
from helpers import make_scan
from torch import Tensor

from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup, init_process_group
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.physics.batch import make_batch, scale_probe_to_photons
from ptycho_torch.physics.forward import shift_probe
from ptycho_torch.physics.object_patterns import (
    IlluminatedPatterns,
    average_patches,
    extract_object_patches,
    full_gradient_step,
    make_batch_patterns,
    minibatch_pass,
)
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.simulation.dataset import SimulatedBatch, SimulatedDataset, SimulatedDatasetSettings
from ptycho_torch.training.losses import compute_loss_terms


def make_model(size: int, probe: Tensor | None = None) -> PtychoModel:
    """Make a model with nonzero weights in its last layer."""
    model = PtychoModel(NetworkConfig("overlap_unet", "residual", 4), [] if probe is None else probe, size=size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return model


def check_steps_equal_those_of_one_rank(process_group: ProcessGroup) -> None:
    """Also if one rank has only one pattern or none."""
    scan = make_scan()
    batch = make_batch(scan, 1.0)
    probes = shift_probe(scale_probe_to_photons(scan, 1.0), batch.fractions).to(torch.complex128)
    all_patterns = IlluminatedPatterns(batch.amplitudes.double(), None, probes, batch.corners)
    patches = torch.randn(probes[:, 0].shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for split in (18, 1, 0, 36):
        own = slice(0, split) if process_group.is_main else slice(split, 36)
        part = IlluminatedPatterns(all_patterns.amplitudes[own], None, probes[own], batch.corners[own])
        offset = process_group.count_before(len(part.amplitudes))
        distributed, single = make_batch_patterns(part, process_group, offset), make_batch_patterns(all_patterns)
        assert (distributed.shape, distributed.index_offset) == (single.shape, 0 if process_group.is_main else split)
        start = average_patches(single, patches)
        assert (average_patches(distributed, patches[own]) - start).abs().max() < 1e-10
        assert torch.equal(extract_object_patches(distributed, start), extract_object_patches(single, start)[own])
        assert (full_gradient_step(distributed, start) - full_gradient_step(single, start)).abs().max() < 1e-10
        passes = (minibatch_pass(patterns, start, start) for patterns in (distributed, single))
        for result, expected in zip(*passes, strict=True):
            assert (result - expected).abs().max() < 1e-9


def compute_gradients(
    model: PtychoModel, batch: SimulatedBatch, process_group: ProcessGroup
) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    terms = compute_loss_terms(model, batch, process_group)
    terms.loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    process_group.all_reduce_sum_(gradients)
    return float(process_group.all_reduce_sum(terms.loss.detach())), [gradient.clone() for gradient in gradients]


def check_gradients_equal_those_of_one_rank(process_group: ProcessGroup) -> None:
    dataset = SimulatedDataset(SimulatedDatasetSettings(size=32, patterns=5, overlap=(0.6, 0.9), photons=(1e4, 1e5)))
    model = make_model(32)
    for number in range(2):
        (loss, gradients), (expected_loss, expected_gradients) = (
            compute_gradients(model, dataset.make_batch(number), group) for group in (process_group, SINGLE_PROCESS)
        )
        assert abs(loss - expected_loss) < 1e-3 * expected_loss
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            assert (gradient - expected).norm() < 1e-2 * expected.norm() + 1e-4


def check_reconstructions_equal_those_of_one_rank(process_group: ProcessGroup) -> None:
    scan = make_scan()
    probe = scale_probe_to_photons(scan, 1.0)
    model = make_model(scan.size, probe)
    distributed, single = (
        predict_scan(model, scan, 1.0, batch_size=5, process_group=group) for group in (process_group, SINGLE_PROCESS)
    )
    assert np.array_equal(distributed.object, single.object)
    assert np.array_equal(distributed.coverage, single.coverage)


if __name__ == "__main__":
    process_group = init_process_group()
    check_steps_equal_those_of_one_rank(process_group)
    check_gradients_equal_those_of_one_rank(process_group)
    check_reconstructions_equal_those_of_one_rank(process_group)
    process_group.close()
