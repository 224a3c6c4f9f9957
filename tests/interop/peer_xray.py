"""Write scan files with the public writers of X-ray programs, and compute the patterns as these programs do.

The module runs in the environment of the other programs and imports each of them only inside its functions.
`write_*` stores a truth under the program's conventions and returns the file to open; `simulate_*` reads the file
back with the program and returns the intensities of its own forward model at its own positions.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from truth import DETECTOR_PIXEL_M, DISTANCE_M, PHOTON_ENERGY_EV, Truth

Intensities = NDArray[np.float64]


def restore_origin(positions: NDArray[Any], truth: Truth) -> NDArray[np.float64]:
    """Move positions in pixels by the constant that the file does not store."""
    return positions + (truth.positions - positions).mean(0)


# --- cdtools: CXI with the positions of the sample and the detector's basis -------------------------------------


def write_cdtools(folder: Path, truth: Truth) -> Path:
    """Write a dataset of cdtools: its translations are the probe's, (x, y, z) in the laboratory's frame."""
    from cdtools.datasets import Ptycho2DDataset

    basis = np.array([[0, -1], [-1, 0], [0, 0]]) * DETECTOR_PIXEL_M
    exit_wave_basis = basis * truth.object_pixel_m / DETECTOR_PIXEL_M
    dataset = Ptycho2DDataset(
        truth.positions @ exit_wave_basis.T,
        truth.counts.astype(np.float32),
        wavelength=truth.wavelength_m,
        detector_geometry={"distance": DISTANCE_M, "basis": basis, "corner": None},
        entry_info={"title": "interop"},
        sample_info={"name": "interop"},
        mask=make_mask(truth.side),
    )
    path = folder / f"cdtools_{truth.side}.cxi"
    dataset.to_cxi(path)
    return path


def require_frames(frames: Any, truth: Truth) -> None:
    """Raise an error unless frames that a program has read are the counts of the truth, in order and orientation."""
    good = make_mask(truth.side)
    if not np.array_equal(np.asarray(frames)[:, good], truth.counts[:, good]):
        raise RuntimeError("the frames differ from the counts of the truth")


def make_mask(side: int) -> NDArray[np.bool_]:
    """Make a mask without symmetry; True = the pixel counts."""
    mask = np.ones((side, side), bool)
    mask[2, 5:9] = False
    return mask


def simulate_cdtools(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns with the interaction and the propagator of cdtools."""
    import torch
    from cdtools.datasets import Ptycho2DDataset
    from cdtools.tools import initializers, interactions, propagators

    dataset = Ptycho2DDataset.from_cxi(path)
    require_frames(dataset.patterns, truth)
    geometry = dataset.detector_geometry
    basis = initializers.exit_wave_geometry(
        geometry["basis"], dataset.patterns.shape[-2:], dataset.wavelength, geometry["distance"]
    )
    pixels = interactions.translations_to_pixel(basis, dataset.translations)
    corners = restore_origin(pixels.numpy(), truth) - truth.side // 2
    exit_waves = interactions.ptycho_2D_round(
        torch.as_tensor(truth.probe), torch.as_tensor(truth.obj), torch.as_tensor(corners)
    )
    return propagators.far_field(exit_waves).abs().numpy() ** 2


# --- ptychodus: product and diffraction, as HDF5, CXI and NPZ; files for training --------------------------------


def make_ptychodus_input(truth: Truth) -> Any:
    """Make what a reconstruction of ptychodus starts from: patterns, bad pixels, product."""
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.object import Object, ObjectCenter
    from ptychodus.api.probe import ProbeSequence
    from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
    from ptychodus.api.product import Product, ProductMetadata
    from ptychodus.api.reconstruct import ReconstructInput

    pixel = PixelGeometry(truth.object_pixel_m, truth.object_pixel_m)
    center = ObjectCenter(x_m=-1.3e-6, y_m=2.1e-6)
    obj = Object(truth.obj, pixel, center)
    # the center of the probe's array is at (side - 1) / 2; the probe's pixel [side // 2] is at the position
    middle = truth.positions - truth.side // 2 + (truth.side - 1) / 2
    offsets = (middle - (np.array(truth.obj.shape) - 1) / 2) * truth.object_pixel_m
    positions = [ProbePosition(index, center.x_m + x, center.y_m + y) for index, (y, x) in enumerate(offsets.tolist())]
    product = Product(
        metadata=ProductMetadata(
            name="interop",
            comments="",
            detector_distance_m=DISTANCE_M,
            photon_energy_eV=PHOTON_ENERGY_EV,
            probe_photon_count=float(np.sum(np.abs(truth.probe) ** 2)),
            exposure_time_s=0.1,
            mass_attenuation_m2_per_kg=0.0,
            tomography_angle_deg=0.0,
        ),
        probe_positions=ProbePositionSequence(positions),
        probes=ProbeSequence(truth.probe, None, pixel),
        object_=obj,
        losses=[],
    )
    return ReconstructInput(truth.counts.astype(np.uint32), ~make_mask(truth.side), product)


def shuffle_frames(patterns: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Store the frames in another order than the positions: the format pairs them by index."""
    order = np.random.default_rng(3).permutation(len(patterns))
    return order, patterns[order]


def write_ptychodus(folder: Path, truth: Truth) -> Path:
    """Write the product and the diffraction file of ptychodus side by side, the frames in another order."""
    from ptychodus.api import io
    from ptychodus.api.assemble import AssembledDiffractionData
    from ptychodus.api.geometry import PixelGeometry

    data = make_ptychodus_input(truth)
    target = folder / f"ptychodus_{truth.side}"
    target.mkdir(exist_ok=True)
    order, patterns = shuffle_frames(data.diffraction_patterns)
    pixel = PixelGeometry(DETECTOR_PIXEL_M, DETECTOR_PIXEL_M)
    io.save_diffraction_data(
        target / "diffraction.h5", AssembledDiffractionData(order, patterns, pixel, data.bad_pixels)
    )
    io.save_product(target / "product.h5", data.product)
    return target / "product.h5"


def simulate_ptychodus(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns of the product with the forward model of ptychodus."""
    from ptychodus.api import io
    from ptychodus.api.simulate.diffraction import generate_diffraction_data

    product = io.load_product(path)
    diffraction = path.with_name("diffraction.h5")
    if diffraction.exists():  # a result has none
        assembled = io.load_diffraction_data(diffraction)
        require_frames(assembled.get_patterns()[np.argsort(assembled.get_indexes())], truth)
    return normalize(generate_diffraction_data(product)._patterns, truth)


def normalize(intensities: NDArray[Any], truth: Truth) -> Intensities:
    """Scale intensities in a program's own unit to the total of the truth."""
    return np.asarray(intensities) * (truth.intensities.sum() / np.sum(intensities))


def make_ptychodus_dataset(truth: Truth, bad_pixels: NDArray[np.bool_]) -> Any:
    """Make a diffraction dataset of ptychodus."""
    from ptychodus.api.diffraction import (
        DiffractionMetadata,
        SimpleDiffractionArray,
        SimpleDiffractionDataset,
    )
    from ptychodus.api.geometry import ImageExtent, PixelGeometry

    metadata = DiffractionMetadata(
        num_patterns_per_array=[len(truth.counts)],
        pattern_dtype=np.dtype(np.uint32),
        detector_extent=ImageExtent(truth.side, truth.side),
        detector_distance_m=DISTANCE_M,
        detector_pixel_geometry=PixelGeometry(DETECTOR_PIXEL_M, DETECTOR_PIXEL_M),
        photon_energy_eV=PHOTON_ENERGY_EV,
    )
    array = SimpleDiffractionArray("interop", np.arange(len(truth.counts)), truth.counts)
    tree = SimpleDiffractionDataset.create_null()._contents_tree
    return SimpleDiffractionDataset(metadata, tree, [array], bad_pixels)


def write_ptychodus_cxi(folder: Path, truth: Truth) -> Path:
    """Write the product and the diffraction file of ptychodus in CXI."""
    from ptychodus.plugins.cxi_file import CXIDiffractionFileWriter, CXIProductFileIO

    data = make_ptychodus_input(truth)
    target = folder / f"ptychodus_cxi_{truth.side}"
    target.mkdir(exist_ok=True)
    CXIDiffractionFileWriter().write(target / "diffraction.cxi", make_ptychodus_dataset(truth, data.bad_pixels))
    CXIProductFileIO().write(target / "product.cxi", data.product)
    return target / "product.cxi"


def simulate_ptychodus_cxi(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns of the CXI product with the forward model of ptychodus."""
    from ptychodus.api.simulate.diffraction import generate_diffraction_data
    from ptychodus.plugins.cxi_file import CXIProductFileIO

    return normalize(generate_diffraction_data(CXIProductFileIO().read(path))._patterns, truth)


def write_ptychodus_npz(folder: Path, truth: Truth) -> Path:
    """Write the product and the diffraction file of ptychodus in NPZ."""
    from ptychodus.plugins.npz_diffraction_file import NPZDiffractionFileIO
    from ptychodus.plugins.npz_product_file import NPZProductFileIO

    data = make_ptychodus_input(truth)
    target = folder / f"ptychodus_npz_{truth.side}"
    target.mkdir(exist_ok=True)
    NPZDiffractionFileIO().write(target / "diffraction.npz", make_ptychodus_dataset(truth, data.bad_pixels))
    NPZProductFileIO().write(target / "product.npz", data.product)
    return target / "product.npz"


def simulate_ptychodus_npz(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns of the NPZ product with the forward model of ptychodus."""
    from ptychodus.api.simulate.diffraction import generate_diffraction_data
    from ptychodus.plugins.npz_product_file import NPZProductFileIO

    return normalize(generate_diffraction_data(NPZProductFileIO().read(path))._patterns, truth)


def write_ptychodus_training(folder: Path, truth: Truth) -> Path:
    """Write the HDF5 file for training of ptychodus."""
    from ptychodus.api import io

    path = folder / f"ptychodus_training_{truth.side}.h5"
    io.save_training_data(path, make_ptychodus_input(truth), inpaint_bad_pixels=False)
    return path


def simulate_ptychodus_training(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns of the HDF5 training file with the reader and the forward model of ptychodus."""
    from ptychodus.api.simulate.diffraction import generate_diffraction_data
    from ptychodus.plugins.training_data_file import TrainingDataProductFileReader

    return normalize(generate_diffraction_data(TrainingDataProductFileReader().read(path))._patterns, truth)


def write_ptychodus_ptychopinn(folder: Path, truth: Truth) -> Path:
    """Write the NPZ file for PtychoPINN of ptychodus: counts under the name of amplitudes."""
    from ptychodus.api import io

    path = folder / f"ptychodus_ptychopinn_{truth.side}.npz"
    io.save_ptychopinn_training_data(path, make_ptychodus_input(truth), inpaint_bad_pixels=False)
    return path


def simulate_ptychodus_ptychopinn(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns of the NPZ file at its positions, which count from the middle of the arrays."""
    from ptychodus.api.fourier import fourier_shift_2d
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.probe import ProbeSequence

    with np.load(path) as file:
        arrays = {name: file[name] for name in ("xcoords", "ycoords", "probeGuess", "objectGuess")}
    probe = ProbeSequence(arrays["probeGuess"], None, PixelGeometry(1.0, 1.0))
    patterns = []
    for x, y in zip(arrays["xcoords"], arrays["ycoords"], strict=True):
        bounds = probe.get_geometry().resolve_patch_bounds(x, y)
        moved = fourier_shift_2d(arrays["probeGuess"][0], bounds.dx, bounds.dy)
        exit_wave = moved * arrays["objectGuess"][bounds.y_slice, bounds.x_slice]
        patterns.append(np.abs(np.fft.fftshift(np.fft.fft2(exit_wave))) ** 2)
    return normalize(np.array(patterns), truth)


# --- xptycho ------------------------------------------------------------------------------------------------------


def write_xptycho(folder: Path, truth: Truth) -> Path:
    """Write the scan and the sample of xptycho into one file."""
    import xptycho

    path = folder / f"xptycho_{truth.side}.h5"
    path.unlink(missing_ok=True)
    pixel = truth.object_pixel_m
    origin = np.array([3e-6, -1e-6])  # of the object's first pixel
    xptycho.Scan(
        truth.counts,
        truth.positions * pixel + origin,
        wavelength=truth.wavelength_m,
        det_distance=DISTANCE_M,
        det_pixel_pitch=DETECTOR_PIXEL_M,
        name="interop",
    ).save(path)
    xptycho.Sample(truth.obj, truth.probe, pixel, origin, "interop").save(path)
    return path


def simulate_xptycho(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns with the forward model of xptycho (even sides only)."""
    import xptycho

    sample, scan = xptycho.Sample.load(path), xptycho.Scan.load(path)
    require_frames(scan.frames, truth)
    model = xptycho.PtychoModel.from_scan(scan)
    model.set_params(object_shape=sample.object.shape, object_origin=sample.origin)
    return normalize(model.simulate(sample).frames, truth)


# --- PtyLab: it has no writer of datasets; its generator and its page give the names -----------------------------


def write_ptylab(folder: Path, truth: Truth) -> Path:
    """Write the datasets that PtyLab's reader requires, as its generator does (scalars of shape (1,))."""
    path = folder / f"ptylab_{truth.side}.hdf5"
    size = np.array(truth.obj.shape)
    encoder = (truth.positions - size // 2) * truth.object_pixel_m
    with h5py.File(path, "w") as file:
        file.create_dataset("ptychogram", data=truth.counts, dtype="f")
        file.create_dataset("encoder", data=encoder)
        for name, value in (
            ("dxd", DETECTOR_PIXEL_M),
            ("zo", DISTANCE_M),
            ("wavelength", truth.wavelength_m),
            ("entrancePupilDiameter", 12 * truth.object_pixel_m),
        ):
            file.create_dataset(name, data=(value,))
        file.create_dataset("binningFactor", data=1)
        file.create_dataset("orientation", data=0)
    return path


def simulate_ptylab(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns at the positions and with the transform of PtyLab."""
    from PtyLab.ExperimentalData.ExperimentalData import ExperimentalData
    from PtyLab.Params.Params import Params
    from PtyLab.Reconstruction.Reconstruction import Reconstruction
    from PtyLab.utils.utils import fft2c

    data = ExperimentalData(path)
    require_frames(data.ptychogram, truth)
    reconstruction = Reconstruction(data, Params())
    corners = restore_origin(reconstruction.positions + truth.side // 2, truth) - truth.side // 2
    patches = [
        truth.obj[row : row + truth.side, column : column + truth.side] for row, column in np.rint(corners).astype(int)
    ]
    return np.abs(np.stack([fft2c(truth.probe * patch) for patch in patches])) ** 2
