"""Run by torchrun on two ranks: a network that looks at the whole object does what one rank alone would."""

import numpy as np
import torch
from helpers import make_scan
from torch import Tensor

from ptycho_torch.distributed.process_group import ALONE, Ranks, join
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.physics.batch import batch_of_scan, probe_in_photons
from ptycho_torch.physics.forward import probe_at
from ptycho_torch.physics.updates import Lit, common_step, cut, merged, neighbourhood, sweep
from ptycho_torch.prediction import predict as neural
from ptycho_torch.simulation.dataset import Lesson, Stream, StreamSettings
from ptycho_torch.training.losses import mark


def stirred(size: int, probe: Tensor | None = None) -> PtychoModel:
    model = PtychoModel(NetworkConfig("overlap_unet", "residual", 4), [] if probe is None else probe, size=size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.network.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return model


def steps_are_those_of_one_rank(ranks: Ranks) -> None:
    """Also where one of them has hardly a pattern, or none."""
    scan = make_scan()
    batch = batch_of_scan(scan, 1.0)
    probes = probe_at(probe_in_photons(scan, 1.0), batch.fractions).to(torch.complex128)
    everything = Lit(batch.amplitudes.double(), None, probes, batch.corners)
    patches = torch.randn(probes[:, 0].shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    for split in (18, 1, 0, 36):
        own = slice(0, split) if ranks.first else slice(split, 36)
        part = Lit(everything.amplitudes[own], None, probes[own], batch.corners[own])
        shared, alone = neighbourhood(part, ranks), neighbourhood(everything)
        assert (shared.shape, shared.before) == (alone.shape, 0 if ranks.first else split)
        start = merged(alone, patches)
        assert (merged(shared, patches[own]) - start).abs().max() < 1e-10
        assert torch.equal(cut(shared, start), cut(alone, start)[own])
        assert (common_step(shared, start) - common_step(alone, start)).abs().max() < 1e-10
        for here, there in zip(sweep(shared, start, start), sweep(alone, start, start), strict=True):
            assert (here - there).abs().max() < 1e-9


def gradients_of(model: PtychoModel, lesson: Lesson, ranks: Ranks) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    marks = mark(model, lesson, ranks)
    marks.loss.backward()
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    ranks.add_up(found)
    return float(ranks.sum(marks.loss.detach())), [gradient.clone() for gradient in found]


def lessons_are_those_of_one_rank(ranks: Ranks) -> None:
    stream = Stream(StreamSettings(size=32, patterns=5, overlap=(0.6, 0.9), photons=(1e4, 1e5)))
    model = stirred(32)
    for number in range(2):
        here, there = (gradients_of(model, stream.lesson(number), some) for some in (ranks, ALONE))
        assert abs(here[0] - there[0]) < 1e-3 * there[0]
        for one, other in zip(here[1], there[1], strict=True):
            assert (one - other).norm() < 1e-2 * other.norm() + 1e-4


def pictures_are_those_of_one_rank(ranks: Ranks) -> None:
    scan = make_scan()
    probe = probe_in_photons(scan, 1.0)
    model = stirred(scan.size, probe)
    words = {"gridsize": 1, "centres": np.arange(36), "batch_size": 5, "precision": "fp32"}
    if not ranks.first:
        return neural.assist(model, scan, 1.0, **words, probe=probe, ranks=ranks)
    here, there = (neural.reconstruct_by_network(model, scan, 1.0, **words, ranks=some) for some in (ranks, ALONE))
    assert np.array_equal(here.object, there.object)
    return None


if __name__ == "__main__":
    ranks = join()
    steps_are_those_of_one_rank(ranks)
    lessons_are_those_of_one_rank(ranks)
    pictures_are_those_of_one_rank(ranks)
    ranks.leave()
