"""The forward model at the positions of an estimate, batch by batch, with what may be kept between batches."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.engines.state import Measurement, ReconstructionState
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.fourier import compute_shift_factors
from ptycho_torch.physics.patches import extract_patches, place_patches
from ptycho_torch.physics.probe import compute_power
from ptycho_torch.physics.updates import compute_exit_wave_change

MAX_CACHED_PROBE_BYTES = 2**29
"""Probes at every position are kept where they take no more than this."""


class ExitWaveUpdate(NamedTuple):
    """What the measurement asks of the exit waves of a batch."""

    patches: Tensor
    """(b, N, N) complex: the object under the probe."""

    probes: Tensor
    """(b, M, N, N) complex: the probe at each position's fraction, as bright as it was there."""

    change: Tensor
    """(b, M, N, N) complex: change of the exit waves that brings their patterns to the measured ones."""

    excess: Tensor | None
    """(b, N, N) photons measured beyond the model's, where a pixel counts; None unless asked for."""

    error: float
    """Σ (√intensity − √counts)² over the pixels that count, to first order."""


class ProbeObjectView:
    """An estimate seen from its scan positions: probes and patches, and the adjoints of both.

    The estimate is looked at anew for every batch; after its positions or intensities changed, :meth:`refresh` must be
    called.
    """

    def __init__(self, state: ReconstructionState) -> None:
        self.state = state
        self._cached_probes: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """The positions or the intensities changed: find corners and fractions anew."""
        corners, fractions = self.state.compute_placement()
        probe = self.state.probe
        self.corners = corners.to(probe.device)
        down, self._across = compute_shift_factors(fractions.to(probe.device, probe.real.dtype), *probe.shape[-2:])
        self._down = down * self.state.intensities.sqrt()[:, None, None]

    def probes(self, indices: Tensor) -> Tensor:
        """The probe at the fractions of some positions, as bright as it was there, (b, M, N, N)."""
        if self._cached_probes is not None:
            return self._cached_probes[indices]
        return self.shift_modes(self.state.probe, indices)

    def shift_modes(self, modes: Tensor, indices: Tensor) -> Tensor:
        """Waves (M, N, N) moved by the fraction of each of some positions and as bright as the probe, (b, M, N, N)."""
        return torch.fft.ifft2(torch.fft.fft2(modes) * self._down[indices, None] * self._across[indices, None])

    def compute_probe_gradient(self, waves: Tensor, indices: Tensor) -> Tensor:
        """The adjoint of :meth:`shift_modes`: waves (b, M, N, N) moved back and summed, (M, N, N)."""
        spectra = torch.fft.fft2(waves)
        spectra *= self._down[indices, None].conj()
        spectra *= self._across[indices, None].conj()
        return torch.fft.ifft2(spectra.sum(0))

    def patches(self, indices: Tensor) -> Tensor:
        """The object under some positions, (b, N, N)."""
        return self.extract(self.state.object, indices)

    def extract(self, canvas: Tensor, indices: Tensor) -> Tensor:
        """Windows of a canvas (rows, columns) at some positions, (b, N, N)."""
        return extract_patches(canvas, self.corners[indices], self.state.size)

    def place(self, patches: Tensor, indices: Tensor) -> Tensor:
        """The adjoint of :meth:`patches`: (b, N, N) added up on the canvas."""
        return place_patches(patches, self.corners[indices], self.state.canvas.shape)

    def make_illumination_map(self, coarse: int = 1) -> "IlluminationMap":
        """What the probe lights at whole pixels, averaged over blocks of ``coarse`` pixels a side, for speed."""
        return IlluminationMap(self.corners, compute_power(self.state.probe), self.state.canvas.shape, coarse)


class MeasurementModel(ProbeObjectView):
    """An estimate compared with the measured patterns.

    Args:
        measurement: the patterns.
        estimate: looked at anew for every batch.
        fixed_probe: whether the probe at every position stays as it is, so that shifted probes may be kept.
    """

    def __init__(self, measurement: Measurement, state: ReconstructionState, *, fixed_probe: bool) -> None:
        super().__init__(state)
        self.measurement = measurement
        wanted = len(measurement) * state.probe.numel() * state.probe.element_size()
        if fixed_probe and wanted <= MAX_CACHED_PROBE_BYTES:
            self._cached_probes = torch.cat([self.probes(part) for part in torch.arange(len(measurement)).split(64)])

    def compute_update(self, indices: Tensor, *, excess: bool = False) -> ExitWaveUpdate:
        """Compare the patterns at ``indices`` with the measured ones."""
        measurement = self.measurement
        patches, probes = self.patches(indices), self.probes(indices)
        waves = from_patches(patches, probes, self.state.background)
        counts, mask = measurement.counts[indices], measurement.select_mask(indices)
        change = compute_exit_wave_change(waves.detector, waves.intensity, counts, mask, measurement.noise)
        beyond = counts - waves.intensity if excess else None
        if beyond is not None and mask is not None:
            beyond = torch.where(mask, beyond, torch.zeros_like(beyond))
        if bool(self.state.background.any()):  # the waves are then asked for their share of the misfit alone
            misfit = waves.intensity.sqrt() - counts.sqrt()
            asked = misfit if mask is None else torch.where(mask, misfit, torch.zeros_like(misfit))
        else:
            asked = torch.view_as_real(change)
        error = float(torch.linalg.vector_norm(asked, dtype=torch.float32).square())
        return ExitWaveUpdate(patches, probes, change, beyond, error)


class IlluminationMap:
    """Illumination of the canvas by the probe at whole pixels: a convolution of the positions with its power."""

    def __init__(self, corners: Tensor, power: Tensor, shape: tuple[int, int], coarse: int) -> None:
        self.shape = (-(-shape[0] // coarse), -(-shape[1] // coarse))
        self._padded = (self.shape[0] + 1, self.shape[1] + 1)  # rounding may put a block one further
        self._corners = corners // coarse
        if coarse > 1:
            power = torch.nn.functional.avg_pool2d(power[None, None], coarse, ceil_mode=True)[0, 0]
        self._kernel = torch.fft.rfft2(power, s=self._padded)

    def sum_positions(self, indices: Tensor | None = None) -> Tensor:
        """Probe power summed over some positions (None: all), (rows, columns) in blocks, real."""
        corners = self._corners if indices is None else self._corners[indices]
        weights = self._kernel.real.new_zeros(self._padded)
        weights.index_put_((corners[:, 0], corners[:, 1]), weights.new_ones(len(corners)), accumulate=True)
        spread = torch.fft.irfft2(torch.fft.rfft2(weights) * self._kernel, s=self._padded)
        return spread[: self.shape[0], : self.shape[1]].clamp_min(0)
