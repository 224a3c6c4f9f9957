"""Write the formats of two files and of NeXus with other programs; see `peer_xray.py`."""

from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from peer_xray import (
    Intensities,
    make_ptychodus_dataset,
    make_ptychodus_input,
    require_frames,
    restore_origin,
)
from truth import DETECTOR_PIXEL_M, DISTANCE_M, PHOTON_ENERGY_EV, Truth, compute_intensities


def write_ptycho_fm(folder: Path, truth: Truth) -> Path:
    """Write the pair for PtychoViT (ptycho-fm) with ptychodus."""
    from ptychodus.api.settings import SettingsRegistry
    from ptychodus.model.ptycho_fm import settings
    from ptychodus.model.ptycho_fm.reconstructor import build_reconstructor

    registry = SettingsRegistry()
    model = settings.PtychoFMModelSettings(registry)
    model.img_size.set_value(truth.side)
    reconstructor = build_reconstructor(
        "Supervised",
        settings.PtychoFMDataSettings(registry),
        model,
        settings.PtychoFMInferenceSettings(registry),
        settings.PtychoFMTrainingSettings(registry),
    )
    reconstructor.export_training_data(folder / f"ptychofm_{truth.side}.hdf5", make_ptychodus_input(truth))
    return folder / f"ptychofm_{truth.side}_para.hdf5"


def write_fold_slice(folder: Path, truth: Truth) -> Path:
    """Write the patterns of a fold_slice pair with ptychodus, and the parameters that ptychodus reads beside them."""
    from ptychodus.plugins.h5_diffraction_file import H5DiffractionFileWriter

    path = folder / f"fold_slice_{truth.side}_dp.hdf5"
    dataset = make_ptychodus_dataset(truth, np.zeros((truth.side, truth.side), bool))
    H5DiffractionFileWriter(data_path="/dp").write(path, dataset)
    with h5py.File(path.with_name(f"fold_slice_{truth.side}_para.hdf5"), "w") as file:
        file["ppY"], file["ppX"] = (truth.positions.T - 40) * truth.object_pixel_m
        file["lambda"], file["dx"] = truth.wavelength_m, truth.object_pixel_m
    return path


def simulate_fold_slice(path: Path, truth: Truth) -> Intensities:
    """Read the pair with ptychodus and compute the patterns by the forward model of its products."""
    from ptychodus.api.probe_positions import ProbePositionSequence
    from ptychodus.plugins.fold_slice.position_file import FoldSlicePositionFileReader, read_fold_slice_parameters
    from ptychodus.plugins.h5_diffraction_file import H5DiffractionFileReader

    para = path.with_name(path.name.replace("_dp", "_para"))
    dataset = H5DiffractionFileReader(data_path="/dp", detector_pixel_size_m=75e-6).read(path)
    require_frames(np.concatenate([array.get_patterns() for array in dataset]), truth)
    read: ProbePositionSequence = FoldSlicePositionFileReader().read(para)
    meters = np.stack([read.get_coordinates_y_m(), read.get_coordinates_x_m()], axis=1)
    pixel = read_fold_slice_parameters(para).object_pixel_size_m
    positions = restore_origin(meters / pixel, truth)
    return compute_intensities(truth.obj, truth.probe, np.round(positions))


def write_ptychovit(folder: Path, truth: Truth) -> Path:
    """Write the pair for PtychoViT with PtychoPINN's converter of its own NPZ files."""
    from ptycho.interop.ptychovit import convert_npz_split_to_hdf5_pair

    source = folder / "source.npz"
    np.savez(
        source,
        diffraction=np.sqrt(truth.counts.astype(np.float32)),
        probeGuess=truth.probe,
        YY_full=truth.obj,
        coords_offsets=truth.positions,
    )
    pair = convert_npz_split_to_hdf5_pair(source, folder, f"ptychovit_{truth.side}", truth.object_pixel_m)
    source.unlink()
    return Path(pair.para_hdf5)


def simulate_ptychovit(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns of the pair from its probe and object, up to the constant of its positions."""
    with h5py.File(path) as file:
        obj, probe = file["object"], file["probe"]
        steps = np.array([obj.attrs["pixel_height_m"], obj.attrs["pixel_width_m"]])
        meters = np.stack([file["probe_position_y_m"][()], file["probe_position_x_m"][()]], axis=1)
        positions = restore_origin(meters / steps, truth)
        with h5py.File(path.with_name(path.name.replace("_para", "_dp"))) as frames:
            require_frames(np.rint(frames["dp"]), truth)
        return compute_intensities(obj[0], probe[0, 0], np.round(positions))


def write_nexus(folder: Path, truth: Truth) -> Path:
    """Write an NXptycho file with NX-cxi-ptycho, the positions as in its converter of CXI files (the sample's)."""
    from nxptycho.creator import NXCreator

    path = folder / f"nexus_{truth.side}.nxs"
    # the CXI frame with the default basis: the sample's y grows with rows, its x with columns
    translation = truth.positions * truth.object_pixel_m
    with NXCreator(str(path)) as creator:
        entry = creator.create_entry_group(entry_index=1, title="interop")
        instrument = creator.create_instrument_group(entry, "interop")
        creator.create_beam_group(instrument, PHOTON_ENERGY_EV, "eV")
        creator.create_detector_group(
            instrument,
            truth.counts,
            "counts",
            DISTANCE_M * 1e3,
            "mm",
            DETECTOR_PIXEL_M * 1e6,
            DETECTOR_PIXEL_M * 1e6,
            "um",
        )
        creator.create_data_group(entry, "data")
        sample = creator.create_sample_group(entry)
        transformations = creator.create_transformation_group(sample)
        for index, (name, column) in enumerate((("horizontal", 1), ("vertical", 0)), start=1):
            positioner = creator.create_positioner_group(
                sample, name, raw_value=translation[:, column] * 1e6, positioner_index=index, units="um"
            )
            creator.create_axis(
                transformations,
                f"{'xy'[index - 1]}_fine_translation",
                "translation",
                np.eye(3)[index - 1],
                ".",
                np.zeros(3),
                units="um",
                offset_units="um",
                value=positioner["raw_value"],
            )
    return path


def simulate_nexus(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns at the sample's translations by the rule of CXI: the program has no forward model."""
    with h5py.File(path) as file:
        sample = file["entry_1/sample"]
        micrometers: list[NDArray[np.float64]] = [sample[f"positioner_{index}/raw_value"][()] for index in (2, 1)]
        require_frames(file["entry_1/instrument/detector/data"], truth)
    positions = restore_origin(np.stack(micrometers, axis=1) * 1e-6 / truth.object_pixel_m, truth)
    return compute_intensities(truth.obj, truth.probe, np.round(positions))
