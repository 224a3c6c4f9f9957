"""Object stages: refinement of the object that all patches form, where overlapping patterns constrain each other.

A network reads one pattern at a time. Its patches are averaged to an object; data-consistency steps move the object
toward all patterns, and a U-Net on the object gates these steps and adds a correction. The stages are an unrolled
engine with a learned regularizer (as Hammernik et al., Magn. Reson. Med. 79, 3055 (2018), for linear measurements).
"""

import torch
from torch import Tensor, nn

from ptycho_torch.models.unet import UNet
from ptycho_torch.physics.object_patterns import ObjectPatterns, full_gradient_step, minibatch_pass

MINIBATCH_PASSES = 2
"""Passes through the patterns before each application of the network."""

COMPRESSION_MODULUS = 3.0
"""Modulus above which the network input is compressed, so that no pixel grows from stage to stage."""


class ObjectRefinementStage(nn.Module):
    """One object stage, which is applied repeatedly.

    No gradient is propagated to earlier stages; each stage has its own loss. A gradient without the data-consistency
    steps misleads the earlier stages, and a gradient through these steps is expensive and diverges.

    Args:
        width: channels of the finest scale.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unet = UNet(7, width, channels_out=4)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights: initially most of the passes and half of the full step are taken, without a correction."""
        self.unet.initialize(generator)

    def forward(self, obj: Tensor, velocity: Tensor, object_patterns: ObjectPatterns) -> tuple[Tensor, Tensor]:
        """Return the refined object and the velocity of its passes, (rows, columns) complex, sides divisible by 8."""
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
        # The illumination determines the noise of the steps.
        inputs = torch.stack([*features, torch.log1p(object_patterns.illumination) / 8])[None]
        outputs = self.unet(inputs.contiguous(memory_format=torch.channels_last))[0].float()
        change_gate, step_gate = torch.sigmoid(outputs[2] + 2), torch.sigmoid(outputs[3])
        return obj + torch.complex(outputs[0], outputs[1]) + change_gate * change + step_gate * step, velocity


def _compress_modulus(values: Tensor) -> Tensor:
    return values / (1 + (values.real.square() + values.imag.square()) / COMPRESSION_MODULUS**2).sqrt()
