"""Run by torchrun on two ranks: a network that looks at the whole object does what one rank alone would."""

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


def stirred(size: int, probe: Tensor | None = None) -> PtychoModel:
    model = PtychoModel(NetworkConfig("overlap_unet", "residual", 4), [] if probe is None else probe, size=size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return model


def steps_are_those_of_one_rank(process_group: ProcessGroup) -> None:
    """Also where one of them has hardly a pattern, or none."""
    scan = make_scan()
    batch = make_batch(scan, 1.0)
    probes = shift_probe(scale_probe_to_photons(scan, 1.0), batch.fractions).to(torch.complex128)
    everything = IlluminatedPatterns(batch.amplitudes.double(), None, probes, batch.corners)
    patches = torch.randn(probes[:, 0].shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for split in (18, 1, 0, 36):
        own = slice(0, split) if process_group.is_main else slice(split, 36)
        part = IlluminatedPatterns(everything.amplitudes[own], None, probes[own], batch.corners[own])
        offset = process_group.count_before(len(part.amplitudes))
        shared, alone = make_batch_patterns(part, process_group, offset), make_batch_patterns(everything)
        assert (shared.shape, shared.index_offset) == (alone.shape, 0 if process_group.is_main else split)
        start = average_patches(alone, patches)
        assert (average_patches(shared, patches[own]) - start).abs().max() < 1e-10
        assert torch.equal(extract_object_patches(shared, start), extract_object_patches(alone, start)[own])
        assert (full_gradient_step(shared, start) - full_gradient_step(alone, start)).abs().max() < 1e-10
        for here, there in zip(minibatch_pass(shared, start, start), minibatch_pass(alone, start, start), strict=True):
            assert (here - there).abs().max() < 1e-9


def gradients_of(model: PtychoModel, lesson: SimulatedBatch, process_group: ProcessGroup) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    marks = compute_loss_terms(model, lesson, process_group)
    marks.loss.backward()
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    process_group.all_reduce_sum_(found)
    return float(process_group.all_reduce_sum(marks.loss.detach())), [gradient.clone() for gradient in found]


def lessons_are_those_of_one_rank(process_group: ProcessGroup) -> None:
    stream = SimulatedDataset(SimulatedDatasetSettings(size=32, patterns=5, overlap=(0.6, 0.9), photons=(1e4, 1e5)))
    model = stirred(32)
    for number in range(2):
        here, there = (gradients_of(model, stream.make_batch(number), some) for some in (process_group, SINGLE_PROCESS))
        assert abs(here[0] - there[0]) < 1e-3 * there[0]
        for one, other in zip(here[1], there[1], strict=True):
            assert (one - other).norm() < 1e-2 * other.norm() + 1e-4


def pictures_are_those_of_one_rank(process_group: ProcessGroup) -> None:
    scan = make_scan()
    probe = scale_probe_to_photons(scan, 1.0)
    model = stirred(scan.size, probe)
    shared, alone = (
        predict_scan(model, scan, 1.0, batch_size=5, process_group=group) for group in (process_group, SINGLE_PROCESS)
    )
    assert np.array_equal(shared.object, alone.object)
    assert np.array_equal(shared.coverage, alone.coverage)


if __name__ == "__main__":
    ranks = init_process_group()
    steps_are_those_of_one_rank(ranks)
    lessons_are_those_of_one_rank(ranks)
    pictures_are_those_of_one_rank(ranks)
    ranks.close()
