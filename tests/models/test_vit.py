"""The vision transformer: position embedding, and attention among all tokens of a pattern."""

import pytest
import torch

from ptycho_torch.models.vit import Block, ViT, make_position_embedding


def randomize(network: Block | ViT) -> Block | ViT:
    """Return ``network`` with random weights."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return network


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (8, 8), (16, 5)])
def test_embeddings_of_different_positions_differ(rows: int, columns: int) -> None:
    embedding = make_position_embedding(rows, columns, 24, torch.empty(0))
    assert embedding.shape == (rows * columns, 24)
    assert (torch.cdist(embedding, embedding) + torch.eye(len(embedding))).min() > 0.1


def test_embedding_of_the_center_does_not_depend_on_the_size_of_the_grid() -> None:
    small, large = (make_position_embedding(side, side, 24, torch.empty(0)).reshape(side, side, 24) for side in (4, 10))
    assert torch.allclose(small, large[3:7, 3:7], atol=1e-6)


def test_embedding_distinguishes_rows_and_columns() -> None:
    embedding = make_position_embedding(4, 4, 24, torch.empty(0)).reshape(4, 4, 24)
    assert not torch.allclose(embedding, embedding.transpose(0, 1))
    assert torch.allclose(embedding[..., :12], embedding.transpose(0, 1)[..., 12:], atol=1e-6)


def test_block_depends_on_every_token_of_a_pattern_and_not_on_their_order() -> None:
    block, tokens = randomize(Block(8)), randn(2, 9, 8).requires_grad_()
    outputs = block(tokens)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(block(tokens[:, order]), outputs[:, order], atol=1e-4)
    (gradient,) = torch.autograd.grad(outputs[0, 4].sum(), tokens)
    assert (gradient[0].abs().amax(-1) > 0).all()
    assert (gradient[1] == 0).all()


def test_network_depends_on_the_position_of_a_token() -> None:
    network, image = randomize(ViT(3, 4)), randn(1, 3, 24, 24)
    shifted = network(image.roll(8, -1))
    assert (shifted - network(image).roll(8, -1)).abs().max() > 0.01
