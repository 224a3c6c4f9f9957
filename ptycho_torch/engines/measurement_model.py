"""The measurement model of the engines: predict a batch of patterns and compute the exit-wave update it requires."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import from_patches, project_onto_patches
from ptycho_torch.physics.fourier import compute_shift_factors
from ptycho_torch.physics.patches import extract_patches, place_patches
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import compute_exit_wave_change

MAX_CACHED_PROBE_BYTES = 2**29
"""Largest memory of cached probes at all positions; above it they are computed for each batch."""

PROBES_PER_CHUNK = 64
"""Number of positions per chunk when the probes of all positions are computed."""

COARSE_BLOCK_PX = 4
"""Side of the blocks of pixels on which engines evaluate the illumination of single batches."""


class ExitWaveUpdate(NamedTuple):
    """The change of the exit waves of a batch that the measurement requires."""

    patches: Tensor
    """(b, N, N) complex: the object under the probe."""

    probes: Tensor
    """(b, M, N, N) complex: the probe with the sub-pixel shift and the intensity of each position."""

    change: Tensor
    """(b, M, N, N) complex: Δψ, which brings the predicted patterns to the measured patterns."""

    excess: Tensor | None
    """(b, N, N) measured minus predicted photons, 0 where the mask is False; None unless requested."""

    error: float
    """Σ (√intensity − √counts)² over the pixels that count, to first order."""


class IlluminationMap:
    """Probe power on the canvas, for any set of positions, at whole pixels or on blocks of pixels.

    The illumination is a convolution of the patch corners with the power of the probe.

    Args:
        corners: (n, 2) int64 patch corners on the canvas.
        power: (N, N) real power of the probe.
        canvas_shape: Rows and columns of the canvas.
        block: Side in pixels of the blocks over which the illumination is averaged.
    """

    def __init__(self, corners: Tensor, power: Tensor, canvas_shape: tuple[int, int], block: int = 1) -> None:
        self.canvas_shape, self.block = canvas_shape, block
        self.shape = (-(-canvas_shape[0] // block), -(-canvas_shape[1] // block))
        self._padded_shape = (self.shape[0] + 1, self.shape[1] + 1)  # rounding can move a patch by one block
        self._corners = corners // block
        if block > 1:
            power = torch.nn.functional.avg_pool2d(power[None, None], block, ceil_mode=True)[0, 0]
        self._kernel = torch.fft.rfft2(power, s=self._padded_shape)

    def sum_positions(self, indices: Tensor | None = None) -> Tensor:
        """Return the probe power summed over the positions at ``indices`` (None: all), (rows, columns) in blocks."""
        corners = self._corners if indices is None else self._corners[indices]
        weights = self._kernel.real.new_zeros(self._padded_shape)
        weights.index_put_((corners[:, 0], corners[:, 1]), weights.new_ones(len(corners)), accumulate=True)
        illumination = torch.fft.irfft2(torch.fft.rfft2(weights) * self._kernel, s=self._padded_shape)
        return illumination[: self.shape[0], : self.shape[1]].clamp_min(0)

    def upsample(self, values: Tensor) -> Tensor:
        """Repeat ``values`` of the blocks on the pixels of the canvas, (rows, columns)."""
        rows, columns = self.canvas_shape
        return values.repeat_interleave(self.block, 0).repeat_interleave(self.block, 1)[:rows, :columns]


class ProbeObjectView:
    """Probes and patches of a state at its scan positions, and the adjoints of both operators.

    Object and probe are read from the state at each call. After positions or intensities changed, call :meth:`refresh`.
    """

    def __init__(self, state: ReconstructionState) -> None:
        self.state = state
        self._cached_probes: Tensor | None = None
        self.refresh()

    def refresh(self) -> Self:
        """Recompute patch corners and probe shifts from the positions and intensities of the state."""
        corners, fractions = self.state.compute_placement()
        probe = self.state.probe
        self.corners = corners.to(probe.device)
        phase_y, self._phase_x = compute_shift_factors(fractions.to(probe.device, probe.real.dtype), *probe.shape[-2:])
        self._phase_y = phase_y * self.state.intensities.sqrt()[:, None, None]
        return self

    def probes(self, indices: Tensor) -> Tensor:
        """Return the probe at the positions at ``indices``, (b, M, N, N), scaled by the root of the intensities."""
        if self._cached_probes is not None:
            return self._cached_probes[indices]
        return self.shift_modes(self.state.probe, indices)

    def shift_modes(self, modes: Tensor, indices: Tensor) -> Tensor:
        """Shift and scale ``modes`` (M, N, N) like the probe at the positions at ``indices``, (b, M, N, N)."""
        return torch.fft.ifft2(torch.fft.fft2(modes) * self._phase_y[indices, None] * self._phase_x[indices, None])

    def compute_probe_gradient(self, waves: Tensor, indices: Tensor) -> Tensor:
        """Apply the adjoint of :meth:`shift_modes` to ``waves`` (b, M, N, N): shift back and sum, (M, N, N)."""
        spectra = torch.fft.fft2(waves)
        spectra *= self._phase_y[indices, None].conj()
        spectra *= self._phase_x[indices, None].conj()
        return torch.fft.ifft2(spectra.sum(0))

    def patches(self, indices: Tensor) -> Tensor:
        """Return the object under the positions at ``indices``, (b, N, N)."""
        return self.extract(self.state.object, indices)

    def extract(self, canvas: Tensor, indices: Tensor) -> Tensor:
        """Return the patches of ``canvas`` (rows, columns) at the positions at ``indices``, (b, N, N)."""
        return extract_patches(canvas, self.corners[indices], self.state.size)

    def place(self, patches: Tensor, indices: Tensor) -> Tensor:
        """Apply the adjoint of :meth:`extract`: sum ``patches`` (b, N, N) on the canvas, (rows, columns)."""
        return place_patches(patches, self.corners[indices], self.state.canvas.shape)

    def compute_object_gradient(self, waves: Tensor, probes: Tensor, indices: Tensor) -> Tensor:
        """Return ``Σ P* waves`` on the canvas, (rows, columns): the adjoint of object to exit waves.

        Args:
            waves: (b, M, N, N) complex.
            probes: (b, M, N, N) complex, the probes at the same positions.
            indices: (b,) int64.
        """
        return self.place(project_onto_patches(waves, probes), indices)

    def make_illumination_map(self, block: int = 1) -> IlluminationMap:
        """Return the illumination map of the probe, averaged over blocks of ``block`` × ``block`` pixels."""
        return IlluminationMap(self.corners, compute_power(self.state.probe), self.state.canvas.shape, block)


class MeasurementModel(ProbeObjectView):
    """A state compared with the measured patterns.

    Args:
        measurement: The patterns.
        state: Read at each call.
        fixed_probe: Whether the probes at all positions stay the same during the run and can be cached.
    """

    def __init__(self, measurement: Measurement, state: ReconstructionState, *, fixed_probe: bool) -> None:
        super().__init__(state)
        self.measurement = measurement
        required = len(measurement) * state.probe.numel() * state.probe.element_size()
        if fixed_probe and required <= MAX_CACHED_PROBE_BYTES:
            chunks = torch.arange(len(measurement)).split(PROBES_PER_CHUNK)
            self._cached_probes = torch.cat([self.probes(chunk) for chunk in chunks])

    def compute_update(self, indices: Tensor, *, excess: bool = False) -> ExitWaveUpdate:
        """Predict the patterns at ``indices`` and compute the exit-wave update that the measurement requires.

        Args:
            indices: (b,) int64.
            excess: Whether to return the excess photons too.
        """
        patches, probes = self.patches(indices), self.probes(indices)
        fields = from_patches(patches, probes, self.state.background)
        counts, mask = self.measurement.counts[indices], self.measurement.select_mask(indices)
        change = compute_exit_wave_change(fields.detector, fields.intensity, counts, mask, self.measurement.noise)
        photons = None
        if excess:
            photons = counts - fields.intensity
            photons = photons if mask is None else torch.where(mask, photons, torch.zeros_like(photons))
        if bool(self.state.background.any()):  # the change of the exit waves is only part of the misfit then
            misfit = fields.intensity.sqrt() - counts.sqrt()
            misfit = misfit if mask is None else torch.where(mask, misfit, torch.zeros_like(misfit))
        else:
            misfit = torch.view_as_real(change)
        error = float(torch.linalg.vector_norm(misfit, dtype=torch.float32).square())
        return ExitWaveUpdate(patches, probes, change, photons, error)


def compute_patterns_per_pixel(illumination: Tensor, power: Tensor, count: int) -> float:
    """Return the number of patterns that illuminate a pixel, averaged with the illumination as weight.

    Args:
        illumination: (rows, columns) probe power summed over ``count`` positions.
        power: (N, N) power of the probe.
        count: Number of positions.
    """
    return float(illumination.square().sum() / (count * power.square().sum()))


def compute_coverage(state: ReconstructionState) -> torch.Tensor:
    """Return the power of the shifted probe summed over all positions, (rows, columns) real, in photons."""
    total = torch.zeros(state.canvas.shape, dtype=state.probe.real.dtype, device=state.probe.device)
    view = ProbeObjectView(state)
    for part in torch.arange(len(state.positions)).split(64):
        total += view.place(compute_power(view.probes(part)), part)
    return total
