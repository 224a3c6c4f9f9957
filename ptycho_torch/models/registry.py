"""The networks by name. A new one is a new entry here; its tests follow from the name."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.models.backbone import Backbone
from ptycho_torch.models.ffno import FFNO
from ptycho_torch.models.heads import HEADS
from ptycho_torch.models.input_lift import (
    backproject_pattern,
    compute_log_amplitude,
    compute_probe_amplitude,
    data_consistency_step,
)
from ptycho_torch.models.object_refinement import ObjectRefinementStage
from ptycho_torch.models.unet import UNet
from ptycho_torch.models.vit import ViT
from ptycho_torch.physics.object_patterns import ObjectPatterns


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build a network again."""

    name: str = "stepped_unet"
    """Key of :data:`NETWORKS`."""

    head: str = "polar"
    """Key of :data:`~ptycho_torch.models.heads.HEADS`."""

    width: int = 16
    """Channels of the finest scale."""

    probe_channel: bool = False
    """Whether the network sees the probe's amplitude, too, which one that serves many probes may need."""


class NetworkPreset(NamedTuple):
    """How a network is made."""

    backbone: type[Backbone]
    """What learns."""

    physics_input: bool
    """Whether it sees the pattern lifted into real space beside its log amplitude, or the latter alone."""

    cascades: int = 0
    """How often physics corrects what has been said, and another body of the same kind says what to add."""

    dc_steps: int = 0
    """Steps of physics towards the pattern after each body has spoken, also after the last. They take away what the
    pattern contradicts, so that bodies are left with what it cannot tell; of few photons they can draw the noise."""

    object_stages: int = 0
    """How often another network looks at the object that all patches make together, always the same one."""


NETWORKS: dict[str, NetworkPreset] = {
    "lifted_unet": NetworkPreset(UNet, physics_input=True),
    "stepped_unet": NetworkPreset(UNet, physics_input=True, dc_steps=1),
    "unrolled_unet": NetworkPreset(UNet, physics_input=True, cascades=1),
    "refined_unet": NetworkPreset(UNet, physics_input=True, cascades=1, dc_steps=3),
    "overlap_unet": NetworkPreset(UNet, physics_input=True, object_stages=4),
    "unet": NetworkPreset(UNet, physics_input=False),
    "ffno": NetworkPreset(FFNO, physics_input=True),
    "vit": NetworkPreset(ViT, physics_input=True),
}
"""One that does not see the lift has to learn the optics from the loss."""


OBJECT_STAGE_KEY = "object_look"
"""Name of the network that looks at whole objects among the weights of a bundle."""


class PatternNetwork(nn.Module):
    """The physics before, the body, and the head behind; all that learns is in the body, and in those after it.

    It maps amplitudes (n, N, N) in √photons, corner-origin, and the probe at each fraction (n, M, N, N) to patches
    (n, N, N) complex.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        backbone, self.physics_input, cascades, self.dc_steps, self.object_stages = NETWORKS[config.name]
        self.state_key, self.probe_channel, self.head = backbone.state_key, config.probe_channel, HEADS[config.head]
        channels = 1 + 2 * self.physics_input + self.probe_channel
        self.cascade_keys = [f"{self.state_key}_{number}" for number in range(2, cascades + 2)]
        for part in [self.state_key, *self.cascade_keys]:
            made = backbone(channels + 4 * (part != self.state_key), config.width)
            # In the memory order that convolutions on a CPU are fastest with.
            self.add_module(part, made.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        if self.object_stages:
            look = ObjectRefinementStage(config.width)
            self.add_module(OBJECT_STAGE_KEY, look.to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    def forward(
        self, amplitudes: Tensor, probe: Tensor, channels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """``channels`` may be given where they are at hand; steps of physics leave out what ``mask`` does."""
        channels = self.compute_channels(amplitudes, probe) if channels is None else channels
        obj = self._apply_data_consistency(self.head(self.backbone(channels).float()), amplitudes, probe, mask)
        for part in self.cascade_keys:
            step = data_consistency_step(obj, amplitudes, probe, mask)
            object_channels = torch.stack([obj.real - 1, obj.imag, step.real, step.imag], 1)
            features = torch.cat([object_channels, channels], 1)
            update = self.get_submodule(part)(features).float()
            obj = self._apply_data_consistency(obj + torch.complex(update[:, 0], update[:, 1]), amplitudes, probe, mask)
        return obj

    def predict_untrained(self, amplitudes: Tensor, probe: Tensor, mask: Tensor | None) -> Tensor:
        """What it would say before it has learned anything: vacuum, and the steps of physics from there."""
        obj = torch.ones_like(amplitudes) + 0j
        for _ in (self.state_key, *self.cascade_keys):
            obj = self._apply_data_consistency(obj, amplitudes, probe, mask)
        return obj

    def _apply_data_consistency(self, obj: Tensor, amplitudes: Tensor, probe: Tensor, mask: Tensor | None) -> Tensor:
        """``obj`` after the steps of physics, if there are any."""
        for _ in range(self.dc_steps):
            obj = obj + data_consistency_step(obj, amplitudes, probe, mask)
        return obj

    def refine_object(self, obj: Tensor, velocity: Tensor, object_patterns: ObjectPatterns) -> tuple[Tensor, Tensor]:
        """See :meth:`~ptycho_torch.models.object_refinement.ObjectRefinementStage.forward`."""
        refined, velocity = self.get_submodule(OBJECT_STAGE_KEY)(obj, velocity, object_patterns)
        return refined, velocity

    @property
    def backbone(self) -> nn.Module:
        """A :class:`Backbone`, or the same by another runtime."""
        return self.get_submodule(self.state_key)

    def compute_channels(self, amplitudes: Tensor, probe: Tensor) -> Tensor:
        """What the body sees, (n, C, N, N): lift (real, imaginary part), log amplitude, probe's amplitude."""
        features = [compute_log_amplitude(amplitudes)]
        if self.physics_input:
            lifted = backproject_pattern(amplitudes, probe)
            features = [lifted.real, lifted.imag, *features]
        if self.probe_channel:
            features.append(compute_probe_amplitude(probe))
        return torch.stack(features, 1)


def build_network(config: NetworkConfig, size: int, generator: torch.Generator | None = None) -> PatternNetwork:
    """Build the network of ``config`` for patterns of ``size`` pixels, with weights drawn from ``generator``.

    Torch's global generator is neither read nor moved. Without a generator the weights are those of seed 0.

    Raises:
        ConfigError: an unknown network or head, a size that the network cannot take, or a probe's channel for a
            network that sees no lift.
    """
    if config.name not in NETWORKS:
        raise ConfigError(f"--network is {config.name}: known are {', '.join(sorted(NETWORKS))}")
    if config.head not in HEADS:
        raise ConfigError(f"--head is {config.head}: known are {', '.join(sorted(HEADS))}")
    backbone, lifted, *_ = NETWORKS[config.name]
    if size % backbone.divisor:
        raise ConfigError(
            f"patterns of {size} × {size} pixels: --network {config.name} needs a side divisible by {backbone.divisor}; "
            "crop or pad the patterns"
        )
    if config.probe_channel and not lifted:
        raise ConfigError(f"--network {config.name} sees nothing of the probe: choose one that sees the lifted pattern")
    with torch.device("meta"):  # layers made here draw nothing
        network = PatternNetwork(config)
    for module in network.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            # Not to_empty(), which imports a computer algebra system to find out the strides.
            setattr(module, name, nn.Parameter(torch.empty_strided(empty.shape, empty.stride())))
    generator = generator or torch.Generator().manual_seed(0)
    for part in network.children():
        assert isinstance(part, Backbone | ObjectRefinementStage)
        part.initialize(generator)
    return network
