"""The self-supervised model: from patterns to object patches to expected photons."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import ConfigError
from ptycho_torch.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from ptycho_torch.models.input_lift import inpaint_masked
from ptycho_torch.models.registry import NetworkConfig, build_network
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


class ScanParameters(nn.Module):
    """The parameters of one scan: its probe, and offsets of its positions and a background if they are optimized.

    Args:
        probe: (M, N, N) complex, in √photons.
        update_probe: whether the probe is optimized.
        positions: number of patterns whose position offsets are optimized; 0: none.
        update_background: whether a background is optimized.
    """

    position_offsets: nn.Parameter | None
    """(n, 2) real (y, x), in pixels."""

    background: nn.Parameter | None
    """(N, N) real, in photons, zero frequency at [0, 0]."""

    def __init__(self, probe: Tensor, update_probe: bool, positions: int, update_background: bool) -> None:
        super().__init__()
        # A real view: optimizers and safetensors then need no complex arithmetic.
        self.probe = nn.Parameter(torch.view_as_real(probe).clone(), requires_grad=update_probe)
        self.position_offsets = nn.Parameter(torch.zeros(positions, 2)) if positions else None
        self.background = nn.Parameter(torch.zeros(probe.shape[-2:])) if update_background else None


class PtychoModel(nn.Module):
    """A network and the probes of its training scans, or no probe.

    The probe is an input of the network, so that another probe can be passed instead.

    Args:
        config: settings of the network.
        probe: (M, N, N) complex64, in √photons; a sequence of probes, which may differ in M; or an empty one.
        update_probe: whether the probes are optimized.
        generator: source of the initial weights; None: seed 0.
        size: N; needed only without a probe.
        positions: number of patterns of each scan whose position offsets are optimized; 0: none.
        backgrounds: whether a background of each scan is optimized.
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
        counts = [*positions, *(0 for _ in probes[len(positions) :])]
        learned_backgrounds = [*backgrounds, *(False for _ in probes[len(backgrounds) :])]
        self.scans = nn.ModuleList(
            ScanParameters(modes, update_probe, count, background)
            for modes, count, background in zip(probes, counts, learned_backgrounds, strict=True)
        )

    def get_position_offsets(self, scan_index: int) -> Tensor | None:
        """Return the offsets (n, 2) of the positions (y, x) of a scan, in pixels; None: not optimized."""
        parameters = self._get_scan(scan_index)
        return None if parameters is None else parameters.position_offsets

    def get_background(self, scan_index: int) -> Tensor | None:
        """Return the background (N, N) of a scan, in photons, zero frequency at [0, 0]; None: not optimized."""
        parameters = self._get_scan(scan_index)
        return None if parameters is None else parameters.background

    def _get_scan(self, scan_index: int) -> ScanParameters | None:
        """Return the parameters of a scan; None: the model has none of it."""
        if scan_index >= len(self.scans):
            return None
        parameters = self.scans[scan_index]
        assert isinstance(parameters, ScanParameters)
        return parameters

    @property
    def probes(self) -> list[Tensor]:
        """The probe modes of each scan, (M, N, N) complex, in √photons."""
        return [torch.view_as_complex(parts) for parts in self.probe_parameters]

    @property
    def probe_parameters(self) -> list[Tensor]:
        """The parameters of :attr:`probes`, (M, N, N, 2) real."""
        return [parameters.probe for parameters in self.scans if isinstance(parameters, ScanParameters)]

    @property
    def probe(self) -> Tensor:
        """The only probe, (M, N, N) complex, in √photons.

        Raises:
            ConfigError: there are several, or none.
        """
        if len(self.scans) != 1:
            raise ConfigError(f"the model has {len(self.scans)} probes; expected one; select one by `probe`")
        return self.probes[0]

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def predict(self, batch: Batch, probe: Tensor | None = None) -> Tensor:
        """Predict the object patch of each pattern independently, (n, N, N) complex.

        ``probe`` is the probe at the fractions of the batch, (n, M, N, N); None: it is computed.
        """
        if not len(batch.amplitudes):  # most layers raise for an empty batch; the gradients must be zero, not missing
            return batch.amplitudes + 0j * sum(weight.sum() for weight in self.network.parameters())
        if batch.cached_inputs is not None:
            return self.network(*batch.cached_inputs, mask=batch.mask)
        return self.network(*self._prepare_inputs(batch, probe), mask=batch.mask)

    @torch.no_grad()
    def compute_inputs(self, batch: Batch) -> NetworkInputs:
        """Compute the network inputs of each pattern, valid while probe and positions are fixed."""
        amplitudes, probe = self._prepare_inputs(batch, None)
        return NetworkInputs(amplitudes, probe, self.network.compute_channels(amplitudes, probe))

    @torch.no_grad()
    def _prepare_inputs(self, batch: Batch, probe: Tensor | None) -> tuple[Tensor, Tensor]:
        """Fill masked amplitudes, and shift the probe to each fraction."""
        probe = (
            shift_probe(self.probes[batch.scan_index], self._compute_fractions(batch))
            if probe is None
            else probe.detach()
        )
        return inpaint_masked(batch.amplitudes, batch.mask, probe), probe

    def has_trainable_illumination(self, scan_index: int) -> bool:
        """Return True if the probe or the positions of a scan are optimized."""
        return self.probe_parameters[scan_index].requires_grad or self.get_position_offsets(scan_index) is not None

    @property
    def object_stages(self) -> int:
        """Number of object stages."""
        return self.config.architecture.object_stages

    def refine_object(self, obj: Tensor, velocity: Tensor, object_patterns: ObjectPatterns) -> tuple[Tensor, Tensor]:
        """Apply one object stage to ``obj`` (rows, columns) complex, sides divisible by 8; return object and velocity.

        The phase of the object is free: its mean over the illumination is made real for the network. ``velocity`` is
        zero before the first stage.
        """
        phase_factor = torch.sgn((object_patterns.illumination * obj.detach()).sum())
        refined, velocity = self.network.refine_object(
            obj * phase_factor.conj(), velocity * phase_factor.conj(), object_patterns
        )
        return refined * phase_factor, velocity * phase_factor

    def refine_object_stages(self, obj: Tensor, object_patterns: ObjectPatterns) -> list[Tensor]:
        """Return ``obj`` and the object after each stage of the training."""
        objects, velocity = [obj], torch.zeros_like(obj)
        for _ in range(self.object_stages):
            obj, velocity = self.refine_object(obj, velocity, object_patterns)
            objects.append(obj)
        return objects

    def forward(self, batch: Batch) -> Wavefields:
        """Predict all patches, apply the overlap constraint over the batch, and propagate the patches."""
        return self.forward_details(batch).fields

    def forward_details(
        self, batch: Batch, probe: Tensor | None = None, process_group: ProcessGroup = SINGLE_PROCESS
    ) -> "ForwardResult":
        """Predict as :meth:`forward`, and return the patches before the overlap constraint, too.

        ``probe`` (M, N, N) replaces the probe of the model, unless the batch has cached inputs. Each process of
        ``process_group`` has a part of the batch; the overlap constraint spans the whole batch.
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
        """Compute the shift of the probe on each patch, (n, 2), including position offsets."""
        shifts = self.get_position_offsets(batch.scan_index)
        return batch.fractions if shifts is None or batch.indices is None else batch.fractions + shifts[batch.indices]


class ForwardResult(NamedTuple):
    """Prediction of a batch in all its steps."""

    patches: Tensor
    """(n, N, N) complex: predicted for each pattern independently."""

    probes: Tensor
    """(n, M, N, N) complex: the probe at each position's fraction."""

    fields: Wavefields
    """Wavefields of the patches after the overlap constraint and after all object stages."""

    intermediate: tuple[Wavefields, ...] = ()
    """Wavefields of the patches before each object stage. No gradient is propagated from a stage to earlier stages, and
    only the last stage has a gradient to the probe."""
