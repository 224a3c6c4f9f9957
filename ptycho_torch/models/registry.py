"""Networks by name, and the network of patterns: physics input, backbones, data-consistency steps, object stages."""

import logging
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

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

log = logging.getLogger(__name__)

INPUTS = ("backprojection", "amplitude")
"""Inputs of a network: the back-projected pattern with its log amplitude, or the log amplitude only."""


class NetworkPreset(NamedTuple):
    """The architecture of a network."""

    backbone: type[Backbone]
    """Class of the learned layers."""

    input: str = "backprojection"
    """One of :data:`INPUTS`."""

    cascades: int = 0
    """Backbones after the first. Each reads the patch and its data-consistency step, and adds a correction."""

    dc_steps: int = 0
    """Data-consistency steps after every backbone, including the last. They correct whatever contradicts the measured
    pattern. At low dose they may fit noise."""

    object_stages: int = 0
    """Refinement stages of the object that all patches form, with one common network."""


NETWORKS: dict[str, NetworkPreset] = {
    "lifted_unet": NetworkPreset(UNet),
    "stepped_unet": NetworkPreset(UNet, dc_steps=1),
    "unrolled_unet": NetworkPreset(UNet, cascades=1),
    "refined_unet": NetworkPreset(UNet, cascades=1, dc_steps=3),
    "overlap_unet": NetworkPreset(UNet, object_stages=4),
    "unet": NetworkPreset(UNet, input="amplitude"),
    "ffno": NetworkPreset(FFNO),
    "vit": NetworkPreset(ViT),
}
"""Presets by name. A network with the input "amplitude" has to learn the optics from the loss."""


@dataclass(frozen=True)
class NetworkConfig:
    """The settings from which a network is built: a preset, and values in place of those of the preset."""

    name: str = "stepped_unet"
    """Key of :data:`NETWORKS`."""

    head: str = "polar"
    """Key of :data:`~ptycho_torch.models.heads.HEADS`."""

    width: int = 16
    """Channels of the finest scale."""

    probe_channel: bool = False
    """Whether the probe amplitude is an input channel, which a network for many probes may need."""

    input: str | None = None
    """As in :class:`NetworkPreset`. None: of the preset."""

    cascades: int | None = None
    """As in :class:`NetworkPreset`. None: of the preset."""

    dc_steps: int | None = None
    """As in :class:`NetworkPreset`. None: of the preset."""

    object_stages: int | None = None
    """As in :class:`NetworkPreset`. None: of the preset."""

    @property
    def architecture(self) -> NetworkPreset:
        """The preset with the values of this configuration.

        Raises:
            ConfigError: there is no preset of this name, or a value is invalid.
        """
        if self.name not in NETWORKS:
            raise ConfigError(f"`network` is {self.name}; expected one of {', '.join(sorted(NETWORKS))}")
        values = {name: getattr(self, name) for name in NetworkPreset._fields[1:]}
        architecture = NETWORKS[self.name]._replace(
            **{name: value for name, value in values.items() if value is not None}
        )
        if architecture.input not in INPUTS:
            raise ConfigError(f"`input` is {architecture.input}; expected one of {', '.join(INPUTS)}")
        for name in ("cascades", "dc_steps", "object_stages"):
            if getattr(architecture, name) < 0:
                raise ConfigError(f"`{name}` is {getattr(architecture, name)}; expected 0 or more")
        return architecture

    def to_record(self) -> dict[str, Any]:
        """Return the settings as JSON, without the values that are those of the preset."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class PatternNetwork(nn.Module):
    """A network from patterns to patches.

    It maps amplitudes (n, N, N) in √photons, zero frequency at [0, 0], and the probe (n, M, N, N), shifted to each
    position's fraction of a pixel, to patches (n, N, N) complex. The backbones and the object stage contain all learned
    parameters.
    """

    backbone: nn.Module
    """The first :class:`Backbone`, or the same network in another runtime."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        make_backbone, self.input, cascades, self.dc_steps, self.object_stages = config.architecture
        self.state_key, self.probe_channel, self.head = (
            make_backbone.state_key,
            config.probe_channel,
            HEADS[config.head],
        )
        channels = 1 + 2 * (self.input == "backprojection") + self.probe_channel
        self.backbone = make_backbone(channels, config.width)
        self.cascades = nn.ModuleList(make_backbone(channels + 4, config.width) for _ in range(cascades))
        self.object_stage = ObjectRefinementStage(config.width) if self.object_stages else None
        # The memory order in which convolutions on a CPU are fastest.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, amplitudes: Tensor, probe: Tensor, channels: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Predict the patches (n, N, N) complex.

        Args:
            amplitudes: (n, N, N) in √photons.
            probe: (n, M, N, N) complex.
            channels: result of :meth:`compute_channels`, if it is cached.
            mask: (n or 1, N, N) bool, True where a pixel counts: data-consistency steps exclude other pixels.
        """
        channels = self.compute_channels(amplitudes, probe) if channels is None else channels
        obj = self._apply_data_consistency(self.head(self.backbone(channels).float()), amplitudes, probe, mask)
        for backbone in self.cascades:
            step = data_consistency_step(obj, amplitudes, probe, mask)
            object_channels = torch.stack([obj.real - 1, obj.imag, step.real, step.imag], 1)
            update = backbone(torch.cat([object_channels, channels], 1)).float()
            obj = self._apply_data_consistency(obj + torch.complex(update[:, 0], update[:, 1]), amplitudes, probe, mask)
        return obj

    def predict_untrained(self, amplitudes: Tensor, probe: Tensor, mask: Tensor | None) -> Tensor:
        """Predict the patches of the untrained network: data-consistency steps from vacuum."""
        obj = torch.ones_like(amplitudes) + 0j
        for _ in range(1 + len(self.cascades)):
            obj = self._apply_data_consistency(obj, amplitudes, probe, mask)
        return obj

    def _apply_data_consistency(self, obj: Tensor, amplitudes: Tensor, probe: Tensor, mask: Tensor | None) -> Tensor:
        for _ in range(self.dc_steps):
            obj = obj + data_consistency_step(obj, amplitudes, probe, mask)
        return obj

    def refine_object(self, obj: Tensor, velocity: Tensor, object_patterns: ObjectPatterns) -> tuple[Tensor, Tensor]:
        """Apply one object stage; see :meth:`~ptycho_torch.models.object_refinement.ObjectRefinementStage.forward`."""
        assert self.object_stage is not None
        refined, velocity = self.object_stage(obj, velocity, object_patterns)
        return refined, velocity

    @property
    def learned_modules(self) -> list[nn.Module]:
        """The modules with learned parameters, in the order of their use."""
        stages = [] if self.object_stage is None else [self.object_stage]
        return [self.backbone, *self.cascades, *stages]

    def compute_channels(self, amplitudes: Tensor, probe: Tensor) -> Tensor:
        """Compute the input of the first backbone, (n, C, N, N) real.

        The channels are the back-projection (real and imaginary part), the log amplitude and the probe amplitude, as
        far as the configuration includes them.
        """
        features = [compute_log_amplitude(amplitudes)]
        if self.input == "backprojection":
            backprojection = backproject_pattern(amplitudes, probe)
            features = [backprojection.real, backprojection.imag, *features]
        if self.probe_channel:
            features.append(compute_probe_amplitude(probe))
        return torch.stack(features, 1)


def build_network(config: NetworkConfig, size: int, generator: torch.Generator | None = None) -> PatternNetwork:
    """Build the network of ``config`` for patterns of ``size`` pixels.

    The global generator of torch is neither read nor advanced.

    Args:
        config: settings of the network.
        size: N, the side of the patterns in pixels.
        generator: source of the initial weights; None: seed 0.

    Raises:
        ConfigError: an unknown network or head, or a probe channel without the back-projection.
    """
    architecture = config.architecture
    if config.head not in HEADS:
        raise ConfigError(f"`head` is {config.head}; expected one of {', '.join(sorted(HEADS))}")
    divisor = architecture.backbone.divisor
    if size % divisor:
        padded = size + -size % divisor
        log.info("the network pads its images from %d × %d to %d × %d pixels", size, size, padded, padded)
    if config.probe_channel and architecture.input != "backprojection":
        raise ConfigError(
            f"`network` {config.name} with a probe channel; expected the input backprojection; choose another `network`"
        )
    with torch.device("meta"):  # layers on this device draw no weights
        network = PatternNetwork(config)
    for module in network.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            # Not to_empty(), which imports a computer algebra system to compute the strides.
            setattr(module, name, nn.Parameter(torch.empty_strided(empty.shape, empty.stride())))
    generator = generator or torch.Generator().manual_seed(0)
    for part in network.learned_modules:
        assert isinstance(part, Backbone | ObjectRefinementStage)
        part.initialize(generator)
    return network
