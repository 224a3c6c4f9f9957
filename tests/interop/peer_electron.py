"""Write scan files with the public writers of programs for electrons; see `peer_xray.py`.

Lengths are in angstrom, angles in mrad and voltages in V, as these programs have them.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_xray import Intensities, normalize
from truth import ELECTRON_PIXEL_ANGSTROM, SCAN_SHAPE, VOLTAGE_V, Truth, compute_intensities


def get_scan_step(truth: Truth) -> float:
    """Return the step of a raster in angstrom."""
    return float(truth.positions[1, 1] - truth.positions[0, 1]) * ELECTRON_PIXEL_ANGSTROM


def fold_scan(counts: NDArray[Any]) -> NDArray[np.float32]:
    """Return patterns as (scan rows, scan columns, rows, columns)."""
    return counts.astype(np.float32).reshape(*SCAN_SHAPE, *counts.shape[1:])


def simulate_raster(step: float, pixel: float, truth: Truth) -> Intensities:
    """Compute the patterns of a raster by its definition: row by row, the step in the unit of the pixel."""
    rows, columns = np.meshgrid(*(np.arange(count) for count in SCAN_SHAPE), indexing="ij")
    index = np.stack([rows.ravel(), columns.ravel()], axis=1)
    return compute_intensities(truth.obj, truth.probe, truth.positions[0] + index * (step / pixel))


# --- ptydy ----------------------------------------------------------------------------------------------------------


def write_ptydy(folder: Path, truth: Truth) -> Path:
    """Write a dataset of ptydy."""
    from ptydy.core.datacube import Calibration, DataCube
    from ptydy.io.writers import save_datacube

    calibration = Calibration(
        R_pixel_size=get_scan_step(truth),
        R_pixel_units="A",
        Q_pixel_size=truth.electron_detector_pixel_per_angstrom,
        Q_pixel_units="A^-1",
        voltage=VOLTAGE_V,
    )
    path = folder / f"ptydy_{truth.side}.h5"
    return Path(save_datacube(DataCube(fold_scan(truth.counts), calibration, "interop"), path))


def simulate_ptydy(path: Path, truth: Truth) -> Intensities:
    """Read the dataset back and compute the patterns of its raster."""
    from ptydy.io.base import ReadOptions
    from ptydy.io.formats import PtydyReader

    cube = PtydyReader().read(path, ReadOptions())
    if not np.array_equal(np.asarray(cube.data).reshape(truth.counts.shape), truth.counts):
        raise RuntimeError("the dataset differs")
    calibration = cube.calibration
    pixel = 1 / (truth.side * calibration.get_Q_pixel_size())
    return simulate_raster(calibration.get_R_pixel_size(), pixel, truth)


# --- PtyRAD: the result of a reconstruction ----------------------------------------------------------------------


def write_ptyrad(folder: Path, truth: Truth) -> Path:
    """Write a result of PtyRAD; the patterns lie beside it in `<stem>_patterns.npy`."""
    import torch
    from ptyrad.io.save import make_save_dict, save_dict_to_hdf5

    side = truth.side
    corners = np.rint(truth.positions - side // 2).astype(np.int32)
    shifts = (truth.positions - side // 2 - corners).astype(np.float32)
    obj = truth.obj[None, None]
    tensors = {
        "obja": torch.as_tensor(np.abs(obj), dtype=torch.float32),
        "objp": torch.as_tensor(np.angle(obj), dtype=torch.float32),
        "obj_tilts": torch.zeros(1, 2),
        "slice_thickness": torch.tensor(10.0),
        "probe": torch.as_tensor(truth.probe[None], dtype=torch.complex64),
        "probe_pos_shifts": torch.as_tensor(shifts),
    }
    model = SimpleNamespace(
        optimizable_tensors=tensors,
        get_complex_probe_view=lambda: tensors["probe"],
        detector_blur_std=None,
        start_iter={"obja": 1},
        lr_params={"obja": 5e-4},
        omode_occu=torch.ones(1),
        H=torch.ones(side, side, dtype=torch.complex64),
        N_scan_slow=torch.tensor(SCAN_SHAPE[0], dtype=torch.int32),
        N_scan_fast=torch.tensor(SCAN_SHAPE[1], dtype=torch.int32),
        crop_pos=torch.as_tensor(corners),
        slice_thickness=torch.tensor(10.0),
        dx=torch.tensor(ELECTRON_PIXEL_ANGSTROM),
        dk=torch.tensor(truth.electron_detector_pixel_per_angstrom),
        lambd=torch.tensor(truth.electron_wavelength_angstrom),
        meas_Npix=side,
        simu_Npix=side,
        simu_match_mode=None,
        scan_affine=None,
        tilt_obj=False,
        probe_int_sum=tensors["probe"].abs().square().sum(),
        random_seed=None,
        loss_iters=[(1, 0.5), (2, 0.4)],
        iter_times=[0.1, 0.1],
        dz_iters=[(1, 10.0)],
        lr_iters={"niter": [1, 2]},
        avg_tilt_iters={"niter": [1, 2]},
        convergence_iters={},
    )
    params = {
        "init_params": {"probe_kv": VOLTAGE_V / 1e3, "meas_Npix": side, "meas_flipT": None},
        "recon_params": {"save_result": ["model"]},
    }
    path = folder / f"ptyrad_{side}.hdf5"
    content = make_save_dict(str(folder), model, params, None, None, 2, np.arange(len(corners)), {"loss_single": [0.4]})
    save_dict_to_hdf5(content, str(path))
    np.save(folder / f"ptyrad_{side}_patterns.npy", truth.counts.astype(np.float32))
    return path


def stand_in_for_torchvision() -> None:
    """Let PtyRAD's forward model load without torchvision, which only its constraints use."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = ModuleType(name)
        vars(sys.modules[name])["gaussian_blur"] = None


def simulate_ptyrad(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns with the forward model of PtyRAD."""
    import torch

    stand_in_for_torchvision()
    from ptyrad.core.forward import multislice_forward
    from ptyrad.core.functional import imshift_batch
    from ptyrad.io.load import load_ptyrad

    content = load_ptyrad(str(path))
    tensors, attributes = content["optimizable_tensors"], content["model_attributes"]
    patches = [
        [tensors[name][..., y : y + truth.side, x : x + truth.side] for y, x in attributes["crop_pos"]]
        for name in ("obja", "objp")
    ]
    frequency = torch.fft.fftfreq(truth.side)
    grid = torch.stack(torch.meshgrid(frequency, frequency, indexing="ij"))
    probes = imshift_batch(torch.as_tensor(tensors["probe"]), torch.as_tensor(tensors["probe_pos_shifts"]), grid)
    amplitudes, phases = (torch.as_tensor(np.array(part)) for part in patches)
    propagator = torch.ones(1, truth.side, truth.side, dtype=torch.complex64)
    return multislice_forward(amplitudes, phases, probes, propagator).numpy()


# --- phaser: its state and raw EMPAD frames ------------------------------------------------------------------------


def make_phaser_state(truth: Truth) -> Any:
    """Make the state of a reconstruction of phaser."""
    from phaser.state import (
        IterState,
        PixelatedObjectState,
        PixelatedProbeState,
        ReconsState,
        ScanState,
    )
    from phaser.utils.num import Sampling
    from phaser.utils.object import ObjectSampling

    side, pixel = truth.side, ELECTRON_PIXEL_ANGSTROM
    corner = np.array([-5.5, 7.25])
    # a window is centered at (side - 1) / 2; the probe's pixel [side // 2] is at the position
    scan = corner + (truth.positions - side // 2 + (side - 1) / 2) * pixel
    return ReconsState(
        iter=IterState.empty(),
        wavelength=truth.electron_wavelength_angstrom,
        probe=PixelatedProbeState(Sampling((side, side), sampling=pixel), truth.probe[None]),
        object=PixelatedObjectState(ObjectSampling(truth.obj.shape, pixel, corner), truth.obj[None], np.array([10.0])),
        scan=ScanState(scan, initial=scan.copy()),
    )


def write_phaser(folder: Path, truth: Truth) -> Path:
    """Write a state of phaser; the patterns lie beside it in `<stem>_patterns.npy`."""
    from phaser.utils.io import hdf5_write_state

    path = folder / f"phaser_{truth.side}.h5"
    hdf5_write_state(make_phaser_state(truth), path)
    np.save(folder / f"phaser_{truth.side}_patterns.npy", truth.counts.astype(np.float32))
    return path


def simulate_phaser(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns with the cutouts and the transform of phaser."""
    from phaser.engines.common.simulation import cutout_group
    from phaser.utils.io import hdf5_read_state
    from phaser.utils.num import abs2, fft2, fft2shift

    state = hdf5_read_state(path)
    ky, kx = state.probe.sampling.recip_grid(dtype=np.float64)
    probes, objects, _ = cutout_group(ky, kx, state, np.arange(len(truth.positions))[None])
    return fft2shift(abs2(fft2(probes[:, 0] * objects[:, 0])))


def write_empad(folder: Path, truth: Truth) -> Path:
    """Write raw EMPAD frames with phaser (by its rule: rows reversed) and their metadata (JSON and XML)."""
    from phaser.io.empad import EmpadMetadata, save_4d

    target = folder / "empad_128"
    target.mkdir(exist_ok=True)
    step = get_scan_step(truth) * 1e-10
    save_4d(fold_scan(truth.counts), folder=target)
    path = target / f"scan_x{SCAN_SHAPE[1]}_y{SCAN_SHAPE[0]}.raw"
    metadata = EmpadMetadata(
        name="interop",
        raw_filename=path.name,
        voltage=VOLTAGE_V,
        diff_step=truth.electron_wavelength_angstrom * truth.electron_detector_pixel_per_angstrom * 1e3,
        scan_shape=SCAN_SHAPE[::-1],
        scan_fov=(step * SCAN_SHAPE[1], step * SCAN_SHAPE[0]),
        scan_step=(step, step),
        adu=1.0,
    )
    metadata.write_json(str(target / "interop.json"))
    return path


def simulate_empad(path: Path, truth: Truth) -> Intensities:
    """Read the frames back with phaser and compute the patterns of their raster."""
    from phaser.io.empad import EmpadMetadata, load_4d

    metadata = EmpadMetadata.from_json(path.parent / "interop.json")
    if not np.array_equal(load_4d(path).reshape(truth.counts.shape), truth.counts):
        raise RuntimeError("the frames differ")
    pixel = truth.electron_wavelength_angstrom / (metadata.diff_step * 1e-3 * truth.side)
    return normalize(simulate_raster(metadata.scan_step[0] * 1e10, pixel, truth), truth)
