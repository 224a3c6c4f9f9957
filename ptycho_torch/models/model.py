"""The self-supervised model: patterns in, expected photons out, with the object in between."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.input_lift import inpaint_masked
from ptycho_torch.models.registry import NETWORKS, NetworkConfig, build_network
from ptycho_torch.physics.batch import Batch, NetworkInputs
from ptycho_torch.physics.forward import Wavefields, from_patches, shift_probe
from ptycho_torch.physics.object_patterns import (
    IlluminatedPatterns,
    ObjectPatterns,
    average_patches,
    extract_object_patches,
    make_batch_patterns,
)
from ptycho_torch.physics.overlap import apply_overlap_constraint
from ptycho_torch.physics.probe import compute_power


class PtychoModel(nn.Module):
    """A network and the probes that it sees by: one for each scan that it was trained on, or none.

    The probe is an input of the network, so that any other may be given in their place.

    Args:
        config: which network.
        probe: (M, N, N) complex64, in √photons; or several of them, which may differ in M; or none.
        update_probe: whether the probes learn.
        generator: source of the network's weights; without one they are those of seed 0.
        size: N; needed only where there is no probe.
        positions: of each scan, the number of patterns whose positions learn; 0 or nothing: none.
        backgrounds: of each scan, whether a background learns.
    """

    def __init__(
        self,
        config: NetworkConfig,
        probe: Tensor | Sequence[Tensor],
        update_probe: bool = False,
        generator: torch.Generator | None = None,
        size: int | None = None,
        positions: Sequence[int] = (),
        backgrounds: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        probes = [probe] if isinstance(probe, Tensor) else list(probe)
        self.config = config
        self.size = int(probes[0].shape[-1]) if size is None else size
        self.network = build_network(config, self.size, generator)
        self._probe_names = [_parameter_name("probe_parts", index) for index in range(len(probes))]
        for name, modes in zip(self._probe_names, probes, strict=True):
            # A real view: optimisers and safetensors then need no complex arithmetic.
            self.register_parameter(name, nn.Parameter(torch.view_as_real(modes).clone(), requires_grad=update_probe))

        for index, count in enumerate(positions):
            if count:
                self.register_parameter(_parameter_name("shifts", index), nn.Parameter(torch.zeros(count, 2)))
        for index, learned in enumerate(backgrounds):
            if learned:
                self.register_parameter(
                    _parameter_name("background", index), nn.Parameter(torch.zeros(self.size, self.size))
                )

    def get_position_offsets(self, scan_index: int) -> Tensor | None:
        """What was added to the positions (y, x) of a scan, (n, 2) in pixels; None: they are as given."""
        return getattr(self, _parameter_name("shifts", scan_index), None)

    def get_background(self, scan_index: int) -> Tensor | None:
        """Photons added to every pattern of a scan, (N, N), zero frequency at [0, 0], not negative; None: none."""
        return getattr(self, _parameter_name("background", scan_index), None)

    @property
    def probes(self) -> list[Tensor]:
        """The probe modes of each scan, (M, N, N) complex, in √photons."""
        return [torch.view_as_complex(parts) for parts in self.probe_parameters]

    @property
    def probe_parameters(self) -> list[Tensor]:
        """The parameters behind :attr:`probes`, (M, N, N, 2) real."""
        return [getattr(self, name) for name in self._probe_names]

    @property
    def probe(self) -> Tensor:
        """The only probe, (M, N, N) complex, in √photons.

        Raises:
            ConfigError: there are several, or none.
        """
        if len(self._probe_names) != 1:
            raise ConfigError(
                f"the model holds {len(self._probe_names)} probes, so that none is the model's own: give --probe"
            )
        return self.probes[0]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def predict(self, batch: Batch, probe: Tensor | None = None) -> Tensor:
        """The object under the probe for each pattern by itself, (n, N, N) complex.

        ``probe`` may give the probe at the batch's fractions, (n, M, N, N), where it is at hand.
        """
        if not len(batch.amplitudes):  # most layers refuse to compute nothing; the gradients are zero and not missing
            return batch.amplitudes + 0j * sum(weight.sum() for weight in self.network.parameters())
        if batch.cached_inputs is not None:
            return self.network(*batch.cached_inputs, mask=batch.mask)
        return self.network(*self._prepare_inputs(batch, probe), mask=batch.mask)

    @torch.no_grad()
    def compute_inputs(self, batch: Batch) -> NetworkInputs:
        """What the network is shown of each pattern, as long as nothing of the light changes."""
        amplitudes, probe = self._prepare_inputs(batch, None)
        return NetworkInputs(amplitudes, probe, self.network.compute_channels(amplitudes, probe))

    @torch.no_grad()
    def _prepare_inputs(self, batch: Batch, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """Amplitudes without holes, and the probe at each fraction."""
        probe = (
            shift_probe(self.probes[batch.scan_index], self._compute_fractions(batch))
            if probe is None
            else probe.detach()
        )
        return inpaint_masked(batch.amplitudes, batch.mask, probe), probe

    def has_trainable_illumination(self, scan_index: int) -> bool:
        """Whether the probe of a scan, or where it lies, changes in training."""
        return self.probe_parameters[scan_index].requires_grad or self.get_position_offsets(scan_index) is not None

    @property
    def object_stages(self) -> int:
        """How often the network looks at the object that all patches make together."""
        return NETWORKS[self.config.name].object_stages

    def refine_object(self, obj: Tensor, velocity: Tensor, object_patterns: ObjectPatterns) -> tuple[Tensor, Tensor]:
        """The object (rows, columns) complex, sides divisible by 8, after a look at it and all its patterns.

        Its phase is free: a network sees it turned so that its mean over the light is real. ``velocity`` is that of its
        sweeps through the patterns, zero before the first look; what it is now comes second.
        """
        phase_factor = torch.sgn((object_patterns.illumination * obj.detach()).sum())
        refined, velocity = self.network.refine_object(
            obj * phase_factor.conj(), velocity * phase_factor.conj(), object_patterns
        )
        return refined * phase_factor, velocity * phase_factor

    def refine_object_stages(self, obj: Tensor, object_patterns: ObjectPatterns) -> list[Tensor]:
        """``obj`` and what becomes of it by each of the looks that the network learns by."""
        found, velocity = [obj], torch.zeros_like(obj)
        for _ in range(self.object_stages):
            obj, velocity = self.refine_object(obj, velocity, object_patterns)
            found.append(obj)
        return found

    def forward(self, batch: Batch) -> Wavefields:
        """Predict all patches, make them agree over the whole batch (the overlap constraint), and propagate them."""
        return self.forward_details(batch).fields

    def forward_details(
        self, batch: Batch, probe: Tensor | None = None, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> "ForwardResult":
        """As :meth:`forward`, with what the network said of each pattern by itself.

        ``probe`` (M, N, N) lights the batch in place of the model's, unless the batch says what it is shown. ``ranks``
        each have a part of the batch; the overlap constraint spans all of it.
        """
        background = self.get_background(batch.scan_index) if probe is None else None
        if batch.cached_inputs is not None:
            probe = batch.cached_inputs.probes
        else:
            probe = shift_probe(
                self.probes[batch.scan_index] if probe is None else probe, self._compute_fractions(batch)
            )
        patches = self.predict(batch, probe)
        added = torch.zeros(()) if background is None else background
        detached_probe = probe.detach()
        if self.object_stages:
            object_patterns = make_batch_patterns(
                IlluminatedPatterns(batch.amplitudes, batch.mask, detached_probe, batch.corners),
                process_group,
                process_group.count_before(len(batch.amplitudes)),
            )
            *intermediate, last = (
                extract_object_patches(object_patterns, obj)
                for obj in self.refine_object_stages(average_patches(object_patterns, patches), object_patterns)
            )
            before = tuple(from_patches(some, detached_probe, added.detach()) for some in intermediate)
            return ForwardResult(patches, probe, from_patches(last, probe, added), before)
        merged_patches = apply_overlap_constraint(patches, compute_power(detached_probe), batch.corners, process_group)
        return ForwardResult(patches, probe, from_patches(merged_patches, probe, added))

    def _compute_fractions(self, batch: Batch) -> Tensor:
        """Shift of the probe on each patch (n, 2): what learned positions add moves the probe too."""
        shifts = self.get_position_offsets(batch.scan_index)
        return batch.fractions if shifts is None or batch.indices is None else batch.fractions + shifts[batch.indices]


def _parameter_name(kind: str, scan_index: int) -> str:
    """Name of a parameter of a scan. The first one has no number, as when there was only one."""
    return f"{kind}_{scan_index}" if scan_index else kind


class ForwardResult(NamedTuple):
    """A batch as the model explains it."""

    patches: Tensor
    """(n, N, N) complex: predicted for each pattern by itself."""

    probes: Tensor
    """(n, M, N, N) complex: the probe at each position's fraction."""

    fields: Wavefields
    """Of the patches after the overlap constraint, and after any looks at the object that they make."""

    intermediate: tuple[Wavefields, ...] = ()
    """Of the patches before each of these looks. Each part of such a network learns by what it leaves, and by no more:
    no gradient goes from one to those before, or to the probe but from the last."""
