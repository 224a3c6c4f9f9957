"""Program for two ranks: identities of the collective operations and of gradients over ranks.

A failed assertion gives a nonzero exit code.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from helpers import make_scan
from numpy.typing import NDArray
from torch import Tensor

from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup, init_process_group
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig
from ptycho_torch.physics.batch import Batch, make_batch, scale_probe_to_photons
from ptycho_torch.physics.patches import extract_patches
from ptycho_torch.training.batches import PatternGroups
from ptycho_torch.training.targets import ObjectTarget
from ptycho_torch.training.trainer import Trainer, TrainerSettings

EXACT = 1e-10


def check_sum_and_its_adjoint(process_group: ProcessGroup) -> None:
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩ over all ranks, where A puts the sum of x over ranks on every rank."""
    generator = torch.Generator().manual_seed(process_group.rank)
    for dtype in (torch.float64, torch.complex128):
        x, y = (torch.randn(5, 7, dtype=dtype, generator=generator) for _ in range(2))
        x.requires_grad_()
        forward = torch.vdot(y.flatten(), process_group.all_reduce_sum(x).flatten()).real
        forward.backward()
        assert x.grad is not None
        adjoint = torch.vdot(x.flatten(), x.grad.flatten()).real
        sums = process_group.all_reduce_sum(torch.stack([forward, adjoint]).detach())
        assert (sums[0] - sums[1]).abs() < EXACT * sums[0].abs()
        assert (process_group.all_reduce_sum(x.detach()) - x.detach()).abs().max() > 0.1, "x differs between ranks"


def check_shards_and_messages(process_group: ProcessGroup) -> None:
    for count in (0, 1, 2, 7):
        parts = [range(count)[process_group.shard(count, rank)] for rank in range(process_group.size)]
        assert [index for part in parts for index in part] == list(range(count))
    assert process_group.all_reduce_max(torch.tensor([process_group.rank, -process_group.rank])).tolist() == [1, 0]
    for count in (1, 5):  # with one row, one rank has none
        rows = [process_group.shard(count, rank) for rank in range(process_group.size)]
        filled = torch.zeros(count, 2, dtype=torch.complex64)
        filled[rows[process_group.rank]] = 1 + 1j
        process_group.gather_rows(filled, rows)
        assert not process_group.is_main or bool((filled == 1 + 1j).all())
    own = torch.full((3, 2), float(process_group.rank)).T  # not contiguous
    process_group.broadcast_([own])
    assert not own.any()
    gradients = [torch.ones(2, 3).T, torch.full((4,), 2.0)]
    process_group.all_reduce_sum_(gradients)
    assert [set(gradient.flatten().tolist()) for gradient in gradients] == [{2.0}, {4.0}]


def make_trainer(process_group: ProcessGroup, modes: int, target: str) -> Trainer:
    """Make a trainer that learns all quantities, with masks; the initial weights differ between ranks."""
    mask = np.ones((36, 24, 24), dtype=bool)
    mask[::2, :5] = False
    scan = replace(make_scan(modes=modes), mask=mask)
    assert scan.truth is not None
    truth = torch.from_numpy(scan.truth)
    batch = make_batch(scan, 1.0)._replace(indices=torch.arange(36))
    if target == "labels":
        batch = batch._replace(labels=extract_patches(truth, batch.corners, scan.size))
    patterns = PatternGroups(batch, np.arange(36)[:, None], scan.positions)
    generator = torch.Generator().manual_seed(process_group.rank)
    network, probe = NetworkConfig("lifted_unet", "polar", 4), scale_probe_to_photons(scan, 1.0)
    model = PtychoModel(network, probe, True, generator, positions=[36], backgrounds=[True])
    with torch.no_grad():  # the initial zeros of the last layer give zero gradients to all other layers
        for weight in model.network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    teachers = [ObjectTarget(truth, torch.zeros(2, dtype=torch.int64))] if target == "teacher" else []
    return Trainer(model, [patterns], [patterns], TrainerSettings(3, 6, 3e-3), teachers, process_group)


def compute_gradients(trainer: Trainer, batch: Batch) -> tuple[float, list[Tensor]]:
    trainer.optimizer.zero_grad()
    loss = trainer._compute_loss(batch).minimized
    loss.backward()
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
    trainer.process_group.all_reduce_sum_(gradients)
    return float(trainer.process_group.all_reduce_sum(loss.detach())), [gradient.clone() for gradient in gradients]


def check_gradients_equal_those_of_one_rank(process_group: ProcessGroup, modes: int, target: str) -> None:
    distributed = make_trainer(process_group, modes, target)
    single = make_trainer(SINGLE_PROCESS, modes, target)
    single.model.load_state_dict(distributed.model.state_dict())
    batches: list[NDArray[np.intp]] = [np.arange(3, 15), np.arange(30, 31), np.array([0, 7, 35])]
    for indices in map(torch.from_numpy, batches):
        part = indices[process_group.shard(len(indices))]
        loss, gradients = compute_gradients(distributed, distributed.scans[0].scan.take(part))
        expected_loss, expected_gradients = compute_gradients(single, single.scans[0].scan.take(indices))
        assert abs(loss - expected_loss) < 1e-5 * expected_loss
        assert len(gradients) == len(list(distributed.model.parameters()))
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert abs(distributed.validate() / single.validate() - 1) < 1e-5


def check_weights_are_equal_on_all_ranks(process_group: ProcessGroup) -> None:
    trainer = make_trainer(process_group, 1, "teacher")
    before = trainer.model.probe.clone()
    trainer._train_epoch(1, SilentObserver())
    assert not torch.equal(trainer.model.probe, before)
    tensors: list[Any] = [*trainer.model.state_dict().values(), *trainer.optimizer.averaged_weights.values()]
    for tensor in tensors:
        assert torch.equal(process_group.all_reduce_max(tensor), tensor)
        assert torch.equal(process_group.all_reduce_max(-tensor), -tensor)


if __name__ == "__main__":
    process_group = init_process_group()
    assert process_group.size == 2
    check_sum_and_its_adjoint(process_group)
    check_shards_and_messages(process_group)
    for modes, target in ((1, "patterns"), (2, "teacher"), (1, "labels")):
        check_gradients_equal_those_of_one_rank(process_group, modes, target)
    check_weights_are_equal_on_all_ranks(process_group)
    process_group.close()
