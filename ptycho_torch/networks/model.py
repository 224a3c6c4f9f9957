"""The self-supervised model: patterns in, expected photons out, with the object in between."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptycho_torch.networks.batch import Batch
from ptycho_torch.networks.registry import NetworkConfig, build_network
from ptycho_torch.physics.forward import Wavefields, from_patches, merge_patches, probe_at
from ptycho_torch.physics.probe import power_of


class PtychoModel(nn.Module):
    """A network and the probe that it sees by.

    Args:
        config: which network.
        probe: (M, N, N) complex64, in √photons.
        update_probe: whether the probe learns.
        generator: source of the network's weights; without one they are those of seed 0.
    """

    def __init__(
        self,
        config: NetworkConfig,
        probe: Tensor,
        update_probe: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.network = build_network(config, probe.shape[-1], generator)
        # A real view: optimisers and safetensors then need no complex arithmetic.
        self.probe_parts = nn.Parameter(torch.view_as_real(probe).clone(), requires_grad=update_probe)

    @property
    def probe(self) -> Tensor:
        """The probe modes, (M, N, N) complex, in √photons."""
        return torch.view_as_complex(self.probe_parts)

    def predict(self, batch: Batch, probe: Tensor | None = None) -> Tensor:
        """The object under the probe for each pattern by itself, (n, N, N) complex.

        ``probe`` may give the probe at the batch's fractions, (n, M, N, N), where it is at hand.
        """
        if probe is None:
            probe = probe_at(self.probe, batch.fractions)
        return self.network(batch.amplitudes, probe.detach())

    def forward(self, batch: Batch) -> Wavefields:
        """Predict all patches, make them agree over the whole batch (the overlap constraint), and propagate them."""
        return self.explain(batch).fields

    def explain(self, batch: Batch) -> "Explained":
        """As :meth:`forward`, with what the network said of each pattern by itself."""
        probe = probe_at(self.probe, batch.fractions)
        patches = self.predict(batch, probe)
        weights = power_of(probe.detach())
        merged = merge_patches(patches[None], weights[None], batch.corners[None])[0]
        return Explained(patches, probe, from_patches(merged, probe))


class Explained(NamedTuple):
    """A batch as the model explains it."""

    patches: Tensor
    """(n, N, N) complex: predicted for each pattern by itself."""

    probes: Tensor
    """(n, M, N, N) complex: the probe at each position's fraction."""

    fields: Wavefields
    """Of the patches after the overlap constraint."""
