"""The forward model at the positions of an estimate, batch by batch, with what may be kept between batches."""

from typing import NamedTuple

import torch
from torch import Tensor

from ptycho_torch.engines.state import Estimate, Measurement
from ptycho_torch.physics.forward import from_patches
from ptycho_torch.physics.fourier import inverse_far_field, shift_factors
from ptycho_torch.physics.patches import extract_patches, place_patches
from ptycho_torch.physics.probe import power_of

KEPT_BYTES = 2**29
"""Probes at every position are kept where they take no more than this."""


class Correction(NamedTuple):
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


class Scene:
    """An estimate seen from its scan positions: probes and patches, and the adjoints of both.

    The estimate is looked at anew for every batch; after its positions or intensities changed, :meth:`moved` must be
    called.
    """

    def __init__(self, estimate: Estimate) -> None:
        self.estimate = estimate
        self._kept: Tensor | None = None
        self.moved()

    def moved(self) -> None:
        """The positions or the intensities changed: find corners and fractions anew."""
        corners, fractions = self.estimate.placement()
        probe = self.estimate.probe
        self.corners = corners.to(probe.device)
        down, self._across = shift_factors(fractions.to(probe.device, probe.real.dtype), *probe.shape[-2:])
        self._down = down * self.estimate.intensities.sqrt()[:, None, None]

    def probes(self, indices: Tensor) -> Tensor:
        """The probe at the fractions of some positions, as bright as it was there, (b, M, N, N)."""
        if self._kept is not None:
            return self._kept[indices]
        return self.moved_to_fractions(self.estimate.probe, indices)

    def moved_to_fractions(self, modes: Tensor, indices: Tensor) -> Tensor:
        """Waves (M, N, N) moved by the fraction of each of some positions and as bright as the probe, (b, M, N, N)."""
        return torch.fft.ifft2(torch.fft.fft2(modes) * self._down[indices, None] * self._across[indices, None])

    def probe_gradient(self, waves: Tensor, indices: Tensor) -> Tensor:
        """The adjoint of :meth:`moved_to_fractions`: waves (b, M, N, N) moved back and summed, (M, N, N)."""
        spectra = torch.fft.fft2(waves)
        spectra *= self._down[indices, None].conj()
        spectra *= self._across[indices, None].conj()
        return torch.fft.ifft2(spectra.sum(0))

    def patches(self, indices: Tensor) -> Tensor:
        """The object under some positions, (b, N, N)."""
        return self.cut(self.estimate.object, indices)

    def cut(self, canvas: Tensor, indices: Tensor) -> Tensor:
        """Windows of a canvas (rows, columns) at some positions, (b, N, N)."""
        return extract_patches(canvas, self.corners[indices], self.estimate.size)

    def placed(self, patches: Tensor, indices: Tensor) -> Tensor:
        """The adjoint of :meth:`patches`: (b, N, N) added up on the canvas."""
        return place_patches(patches, self.corners[indices], self.estimate.frame.shape)

    def light(self, coarse: int = 1) -> "Light":
        """What the probe lights at whole pixels, averaged over blocks of ``coarse`` pixels a side, for speed."""
        return Light(self.corners, power_of(self.estimate.probe), self.estimate.frame.shape, coarse)


class Optics(Scene):
    """An estimate compared with the measured patterns.

    Args:
        measurement: the patterns.
        estimate: looked at anew for every batch.
        fixed_probe: whether the probe at every position stays as it is, so that shifted probes may be kept.
    """

    def __init__(self, measurement: Measurement, estimate: Estimate, *, fixed_probe: bool) -> None:
        super().__init__(estimate)
        self.measurement = measurement
        wanted = len(measurement) * estimate.probe.numel() * estimate.probe.element_size()
        if fixed_probe and wanted <= KEPT_BYTES:
            self._kept = torch.cat([self.probes(part) for part in torch.arange(len(measurement)).split(64)])

    def correction(self, indices: Tensor, *, excess: bool = False) -> Correction:
        """Compare the patterns at ``indices`` with the measured ones."""
        measurement = self.measurement
        patches, probes = self.patches(indices), self.probes(indices)
        waves = from_patches(patches, probes, self.estimate.background)
        counts, mask = measurement.counts[indices], measurement.mask_of(indices)
        update = measurement.noise.wave_update(waves.detector, waves.intensity, counts)
        beyond = counts - waves.intensity if excess else None
        if mask is not None:
            # Multiplication would let what is not finite through.
            update = torch.where(mask[:, None], update, torch.zeros_like(update))
            beyond = None if beyond is None else torch.where(mask, beyond, torch.zeros_like(beyond))
        change = inverse_far_field(update)
        if bool(self.estimate.background.any()):  # the waves are then asked for their share of the misfit alone
            misfit = waves.intensity.sqrt() - counts.sqrt()
            asked = misfit if mask is None else torch.where(mask, misfit, torch.zeros_like(misfit))
        else:
            asked = torch.view_as_real(change)
        error = float(torch.linalg.vector_norm(asked, dtype=torch.float32).square())
        return Correction(patches, probes, change, beyond, error)


class Light:
    """Illumination of the canvas by the probe at whole pixels: a convolution of the positions with its power."""

    def __init__(self, corners: Tensor, power: Tensor, shape: tuple[int, int], coarse: int) -> None:
        self.shape = (-(-shape[0] // coarse), -(-shape[1] // coarse))
        self._padded = (self.shape[0] + 1, self.shape[1] + 1)  # rounding may put a block one further
        self._corners = corners // coarse
        if coarse > 1:
            power = torch.nn.functional.avg_pool2d(power[None, None], coarse, ceil_mode=True)[0, 0]
        self._kernel = torch.fft.rfft2(power, s=self._padded)

    def of(self, indices: Tensor | None = None) -> Tensor:
        """Probe power summed over some positions (None: all), (rows, columns) in blocks, real."""
        corners = self._corners if indices is None else self._corners[indices]
        weights = self._kernel.real.new_zeros(self._padded)
        weights.index_put_((corners[:, 0], corners[:, 1]), weights.new_ones(len(corners)), accumulate=True)
        spread = torch.fft.irfft2(torch.fft.rfft2(weights) * self._kernel, s=self._padded)
        return spread[: self.shape[0], : self.shape[1]].clamp_min(0)
