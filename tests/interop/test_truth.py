"""The literal forward model behind the files of other programs is the one of the package."""

import numpy as np
import pytest
import torch
from truth import make_truth

from ptycho_torch.physics.forward import from_object


@pytest.mark.parametrize("side", [32, 33])
def test_the_package_computes_the_intensities_of_a_truth(side: int) -> None:
    """Compare the intensities of 63 jittered positions in double precision."""
    truth = make_truth(side)
    fields = (torch.from_numpy(array) for array in (truth.obj, truth.probe[None], truth.positions))
    computed = np.fft.fftshift(from_object(*fields).intensity.numpy(), axes=(-2, -1))
    np.testing.assert_allclose(computed, truth.intensities, rtol=1e-9, atol=1e-9 * truth.intensities.max())


@pytest.mark.parametrize("side", [32, 33])
def test_no_flip_leaves_the_patterns_unchanged(side: int) -> None:
    """Every other orientation changes at least a quarter of the intensity, so that a wrong one is found."""
    intensities = make_truth(side).intensities
    for transposed in (intensities, intensities.swapaxes(1, 2)):
        for rows in (1, -1):
            for columns in (1, -1):
                other = transposed[:, ::rows, ::columns]
                if other is not intensities and not np.array_equal(other, intensities):
                    assert np.abs(other - intensities).sum() > intensities.sum() / 4
