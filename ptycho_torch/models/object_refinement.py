"""Looks at the object that all patches make together: there, patterns that overlap tell of each other.

A network at a pattern says of its patch what that pattern's photons can. The patches merged, physics takes the object
towards all patterns, and a network on the object says what to keep of that and what to add; that several times. It is
an engine unrolled, with a learned regulariser between its sweeps (as Hammernik et al., Magn. Reson. Med. 79, 3055
(2018), for linear measurements), from a start that one pattern at a time gives.
"""

import torch
from torch import Tensor, nn

from ptycho_torch.models.unet import UNet
from ptycho_torch.physics.object_patterns import ObjectPatterns, full_gradient_step, minibatch_pass

MINIBATCH_PASSES = 2
"""Sweeps through the patterns before each look."""

COMPRESSION_MODULUS = 3.0
"""Modulus beyond which what a look sees is compressed, so that no bright pixel can start an avalanche."""


class ObjectRefinementStage(nn.Module):
    """A look at an object and at where its patterns lead it, to be repeated.

    No gradient goes through it to what was before: each look does the best it can from where it finds itself. A
    gradient that leaves out the steps of physics misleads the looks before them, and one through them is dear and
    explodes.

    Args:
        width: channels of the finest scale.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unet = UNet(7, width, channels_out=4)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights: at first most of the sweeps and half of the step behind is taken, and nothing is added."""
        self.unet.initialize(generator)

    def forward(self, obj: Tensor, velocity: Tensor, object_patterns: ObjectPatterns) -> tuple[Tensor, Tensor]:
        """A better object, and the velocity of its sweeps; (rows, columns) complex, the sides divisible by 8."""
        obj = updated = obj.detach()
        for _ in range(MINIBATCH_PASSES):
            updated, velocity = minibatch_pass(object_patterns, updated, velocity)
        step = full_gradient_step(object_patterns, updated)
        change = updated - obj
        features = [
            part
            for features in map(_compress_modulus, (obj - 1, change, step))
            for part in (features.real, features.imag)
        ]
        # The light tells how far photons can be trusted.
        inputs = torch.stack([*features, torch.log1p(object_patterns.illumination) / 8])[None]
        outputs = self.unet(inputs.contiguous(memory_format=torch.channels_last))[0].float()
        change_gate, step_gate = torch.sigmoid(outputs[2] + 2), torch.sigmoid(outputs[3])
        return obj + torch.complex(outputs[0], outputs[1]) + change_gate * change + step_gate * step, velocity


def _compress_modulus(values: Tensor) -> Tensor:
    return values / (1 + (values.real.square() + values.imag.square()) / COMPRESSION_MODULUS**2).sqrt()
