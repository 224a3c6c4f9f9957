"""The vision transformer: a token knows where it is by its place alone, and hears all others."""

import pytest
import torch

from ptycho_torch.models.vit import Block, ViT, make_position_embedding


def made(network: Block | ViT) -> Block | ViT:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return network


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (8, 8), (16, 5)])
def test_no_two_places_are_alike(rows: int, columns: int) -> None:
    found = make_position_embedding(rows, columns, 24, torch.empty(0))
    assert found.shape == (rows * columns, 24)
    assert (torch.cdist(found, found) + torch.eye(len(found))).min() > 0.1


def test_the_middle_is_the_same_place_on_any_grid() -> None:
    small, large = (make_position_embedding(side, side, 24, torch.empty(0)).reshape(side, side, 24) for side in (4, 10))
    assert torch.allclose(small, large[3:7, 3:7], atol=1e-6)


def test_rows_are_not_columns() -> None:
    found = make_position_embedding(4, 4, 24, torch.empty(0)).reshape(4, 4, 24)
    assert not torch.allclose(found, found.transpose(0, 1))
    assert torch.allclose(found[..., :12], found.transpose(0, 1)[..., 12:], atol=1e-6)


def test_a_block_hears_every_token_and_cares_for_no_order() -> None:
    block, tokens = made(Block(8)), randn(2, 9, 8).requires_grad_()
    heard = block(tokens)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(block(tokens[:, order]), heard[:, order], atol=1e-4)
    (gradient,) = torch.autograd.grad(heard[0, 4].sum(), tokens)
    assert (gradient[0].abs().amax(-1) > 0).all()
    assert (gradient[1] == 0).all()


def test_the_network_does_care_where_a_token_is() -> None:
    network, image = made(ViT(3, 4)), randn(1, 3, 24, 24)
    moved = network(image.roll(8, -1))
    assert (moved - network(image).roll(8, -1)).abs().max() > 0.01
