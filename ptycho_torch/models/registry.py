"""The networks by name. A new one is a new entry here; its tests follow from the name."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.models.backbone import Body
from ptycho_torch.models.ffno import FFNO
from ptycho_torch.models.heads import HEADS
from ptycho_torch.models.input_lift import correction, lift, log_amplitude, probe_amplitude
from ptycho_torch.models.object_refinement import ObjectLook
from ptycho_torch.models.unet import UNet
from ptycho_torch.models.vit import ViT
from ptycho_torch.physics.updates import Scene


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


class Network(NamedTuple):
    """How a network is made."""

    body: type[Body]
    """What learns."""

    lifted: bool
    """Whether it sees the pattern lifted into real space beside its log amplitude, or the latter alone."""

    corrections: int = 0
    """How often physics corrects what has been said, and another body of the same kind says what to add."""

    steps: int = 0
    """Steps of physics towards the pattern after each body has spoken, also after the last. They take away what the
    pattern contradicts, so that bodies are left with what it cannot tell; of few photons they can draw the noise."""

    looks: int = 0
    """How often another network looks at the object that all patches make together, always the same one."""


NETWORKS: dict[str, Network] = {
    "lifted_unet": Network(UNet, lifted=True),
    "stepped_unet": Network(UNet, lifted=True, steps=1),
    "unrolled_unet": Network(UNet, lifted=True, corrections=1),
    "refined_unet": Network(UNet, lifted=True, corrections=1, steps=3),
    "overlap_unet": Network(UNet, lifted=True, looks=4),
    "unet": Network(UNet, lifted=False),
    "ffno": Network(FFNO, lifted=True),
    "vit": Network(ViT, lifted=True),
}
"""One that does not see the lift has to learn the optics from the loss."""


LOOK = "object_look"
"""Name of the network that looks at whole objects among the weights of a bundle."""


class PatternNetwork(nn.Module):
    """The physics before, the body, and the head behind; all that learns is in the body, and in those after it.

    It maps amplitudes (n, N, N) in √photons, corner-origin, and the probe at each fraction (n, M, N, N) to patches
    (n, N, N) complex.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        body, self.lifted, corrections, self.steps, self.looks = NETWORKS[config.name]
        self.part, self.probe_channel, self.head = body.part, config.probe_channel, HEADS[config.head]
        channels = 1 + 2 * self.lifted + self.probe_channel
        self.later_parts = [f"{self.part}_{number}" for number in range(2, corrections + 2)]
        for part in [self.part, *self.later_parts]:
            made = body(channels + 4 * (part != self.part), config.width)
            # In the memory order that convolutions on a CPU are fastest with.
            self.add_module(part, made.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
        if self.looks:
            look = ObjectLook(config.width)
            self.add_module(LOOK, look.to(memory_format=torch.channels_last))  # type: ignore[call-overload]

    def forward(
        self, amplitudes: Tensor, probe: Tensor, channels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """``channels`` may be given where they are at hand; steps of physics leave out what ``mask`` does."""
        channels = self.channels(amplitudes, probe) if channels is None else channels
        obj = self._stepped(self.head(self.body(channels).float()), amplitudes, probe, mask)
        for part in self.later_parts:
            step = correction(obj, amplitudes, probe, mask)
            said = torch.stack([obj.real - 1, obj.imag, step.real, step.imag], 1)
            seen = torch.cat([said, channels], 1)
            more = self.get_submodule(part)(seen).float()
            obj = self._stepped(obj + torch.complex(more[:, 0], more[:, 1]), amplitudes, probe, mask)
        return obj

    def untaught(self, amplitudes: Tensor, probe: Tensor, mask: Tensor | None) -> Tensor:
        """What it would say before it has learned anything: vacuum, and the steps of physics from there."""
        obj = torch.ones_like(amplitudes) + 0j
        for _ in (self.part, *self.later_parts):
            obj = self._stepped(obj, amplitudes, probe, mask)
        return obj

    def _stepped(self, obj: Tensor, amplitudes: Tensor, probe: Tensor, mask: Tensor | None) -> Tensor:
        """``obj`` after the steps of physics, if there are any."""
        for _ in range(self.steps):
            obj = obj + correction(obj, amplitudes, probe, mask)
        return obj

    def look(self, obj: Tensor, velocity: Tensor, scene: Scene) -> tuple[Tensor, Tensor]:
        """See :meth:`~ptycho_torch.models.object_refinement.ObjectLook.forward`."""
        better, velocity = self.get_submodule(LOOK)(obj, velocity, scene)
        return better, velocity

    @property
    def body(self) -> nn.Module:
        """A :class:`Body`, or the same by another runtime."""
        return self.get_submodule(self.part)

    def channels(self, amplitudes: Tensor, probe: Tensor) -> Tensor:
        """What the body sees, (n, C, N, N): lift (real, imaginary part), log amplitude, probe's amplitude."""
        seen = [log_amplitude(amplitudes)]
        if self.lifted:
            lifted = lift(amplitudes, probe)
            seen = [lifted.real, lifted.imag, *seen]
        if self.probe_channel:
            seen.append(probe_amplitude(probe))
        return torch.stack(seen, 1)


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
    body, lifted, *_ = NETWORKS[config.name]
    if size % body.divisor:
        raise ConfigError(
            f"patterns of {size} × {size} pixels: --network {config.name} needs a side divisible by {body.divisor}; "
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
        assert isinstance(part, Body | ObjectLook)
        part.initialise(generator)
    return network
