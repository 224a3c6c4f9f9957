"""The networks by name. A new one is a new entry here; its tests follow from the name."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.networks.heads import HEADS
from ptycho_torch.networks.lift import lift, log_amplitude
from ptycho_torch.networks.unet import UNet


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build a network again."""

    name: str = "lifted_unet"
    """Key of :data:`NETWORKS`."""

    head: str = "polar"
    """Key of :data:`~ptycho_torch.networks.heads.HEADS`."""

    width: int = 16
    """Channels of the finest scale."""


def _channels_last(unet: UNet) -> UNet:
    """Weights in the memory order that convolutions on a CPU are fastest with."""
    return unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class LiftedUNet(nn.Module):
    """U-Net on the pattern lifted into real space (real and imaginary part) beside its log amplitude."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.unet = _channels_last(UNet(3, config.width))
        self.head = HEADS[config.head]

    def forward(self, amplitudes: Tensor, probe: Tensor) -> Tensor:
        lifted = lift(amplitudes, probe)
        channels = torch.stack([lifted.real, lifted.imag, log_amplitude(amplitudes)], 1)
        return self.head(self.unet(channels.contiguous(memory_format=torch.channels_last)).float())


class AmplitudeUNet(nn.Module):
    """The same U-Net on the log amplitude alone: it has to learn the optics from the loss."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.unet = _channels_last(UNet(1, config.width))
        self.head = HEADS[config.head]

    def forward(self, amplitudes: Tensor, probe: Tensor) -> Tensor:
        del probe
        channels = log_amplitude(amplitudes)[:, None]
        return self.head(self.unet(channels.contiguous(memory_format=torch.channels_last)).float())


NETWORKS: dict[str, type[LiftedUNet] | type[AmplitudeUNet]] = {"lifted_unet": LiftedUNet, "unet": AmplitudeUNet}
"""Each maps amplitudes (n, N, N) in √photons, corner-origin, and the probe at each fraction (n, M, N, N) to patches
(n, N, N) complex."""


def build_network(config: NetworkConfig, size: int, generator: torch.Generator | None = None) -> nn.Module:
    """Build the network of ``config`` for patterns of ``size`` pixels, with weights drawn from ``generator``.

    Torch's global generator is neither read nor moved. Without a generator the weights are those of seed 0.

    Raises:
        ConfigError: an unknown network or head, or a size that the network cannot take.
    """
    if config.name not in NETWORKS:
        raise ConfigError(f"--network is {config.name}: known are {', '.join(sorted(NETWORKS))}")
    if config.head not in HEADS:
        raise ConfigError(f"--head is {config.head}: known are {', '.join(sorted(HEADS))}")
    if size % UNet.divisor:
        raise ConfigError(
            f"patterns of {size} × {size} pixels: --network {config.name} needs a side divisible by {UNet.divisor}; "
            "crop or pad the patterns"
        )
    with torch.device("meta"):  # layers made here draw nothing
        network = NETWORKS[config.name](config)
    for module in network.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            # Not to_empty(), which imports a computer algebra system to find out the strides.
            setattr(module, name, nn.Parameter(torch.empty_strided(empty.shape, empty.stride())))
    network.unet.initialise(generator or torch.Generator().manual_seed(0))
    return network
