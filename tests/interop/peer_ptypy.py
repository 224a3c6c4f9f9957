"""Write the prepared data (.ptyd) and the result (.ptyr) of ptypy with ptypy itself; see `peer_xray.py`."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_xray import Intensities, make_mask, require_frames
from truth import DETECTOR_PIXEL_M, DISTANCE_M, PHOTON_ENERGY_EV, Truth


def make_geometry(truth: Truth) -> dict[str, Any]:
    """Return the geometry of a scan under the names of ptypy (keV, m)."""
    return {
        "shape": truth.side,
        "center": "fftshift",
        "psize": DETECTOR_PIXEL_M,
        "distance": DISTANCE_M,
        "energy": PHOTON_ENERGY_EV / 1e3,
        "num_frames": len(truth.counts),
    }


def write_ptypy(folder: Path, truth: Truth, save: str = "append") -> Path:
    """Write a .ptyd file in chunks of 17 frames."""
    from ptypy import defaults_tree
    from ptypy.core.data import EOS, PtyScan
    from ptypy.utils import Param

    @defaults_tree.parse_doc("scandata.InteropScan")
    class InteropScan(PtyScan):
        """A scan in memory.

        Defaults:

        [name]
        default = InteropScan
        type = str
        help =
        doc =
        """

        def load_positions(self) -> NDArray[np.float64]:
            return truth.positions * truth.object_pixel_m - 2e-6

        def load_weight(self) -> NDArray[np.float64]:
            return make_mask(truth.side).astype(float)

        def load(self, indices: list[int]) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
            return {index: truth.counts[index].astype(np.int32) for index in indices}, {}, {}

    path = folder / f"ptypy_{truth.side}.ptyd"
    path.unlink(missing_ok=True)
    pars = Param(make_geometry(truth), dfile=str(path), save=save, label="interop")
    scan = InteropScan(pars)
    scan.initialize()
    while scan.auto(17) != EOS:
        pass
    return path


def open_ptypy(prepared: Path, truth: Truth) -> tuple[Any, NDArray[np.int64]]:
    """Open a .ptyd file in ptypy and give ptypy the object and the probe of the truth.

    Returns:
        The `Ptycho` instance, and the corner of the truth's object in ptypy's object array.
    """
    from ptypy.core import Ptycho
    from ptypy.utils import Param

    pars = Param()
    pars.verbose_level = 0
    pars.io = Param(autosave=Param(active=False), interaction=Param(active=False), autoplot=Param(active=False))
    pars.scans = Param()
    pars.scans.interop = Param(
        name="Full",
        data=Param(name="PtydScan", source="file", dfile=str(prepared)),
        illumination=Param(model=truth.probe[None]),
    )
    ptycho = Ptycho(pars, level=2)
    ptycho.record_positions = True
    (probe,) = ptycho.probe.storages.values()
    probe.data[:] = truth.probe
    (obj,) = ptycho.obj.storages.values()
    lows = np.array([pod.ob_view.dlow for pod in sorted_pods(ptycho)])
    corner = np.rint(np.median(lows - (truth.positions - truth.side // 2), axis=0)).astype(int)
    place_object(obj.data[0], truth.obj, corner)
    return ptycho, corner


def sorted_pods(ptycho: Any) -> list[Any]:
    """Return the pods of ptypy in the order of the frames."""
    return sorted(ptycho.pods.values(), key=lambda pod: pod.di_view.layer)


def place_object(target: NDArray[Any], obj: NDArray[Any], corner: NDArray[np.int64]) -> None:
    """Write an object into an array of another shape."""
    target[:] = 1
    low = np.maximum(corner, 0)
    high = np.minimum(corner + obj.shape, target.shape)
    inner = low - corner
    part = obj[inner[0] : inner[0] + high[0] - low[0], inner[1] : inner[1] + high[1] - low[1]]
    target[low[0] : high[0], low[1] : high[1]] = part


def simulate_ptypy(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns with the views and the propagator of ptypy."""
    ptycho, _ = open_ptypy(path, truth)
    require_frames([pod.diff for pod in sorted_pods(ptycho)], truth)
    return np.array([np.abs(pod.fw(pod.probe * pod.object)) ** 2 for pod in sorted_pods(ptycho)])


def write_ptypy_result(folder: Path, truth: Truth) -> Path:
    """Write a .ptyr file that holds the probe and the object of the truth; the .ptyd file lies beside it."""
    prepared = write_ptypy(folder, truth)
    ptycho, _ = open_ptypy(prepared, truth)
    path = folder / f"ptypy_{truth.side}.ptyr"
    ptycho.save_run(str(path), kind="minimal")
    return path


def simulate_ptypy_result(path: Path, truth: Truth) -> Intensities:
    """Compute the patterns from the stored probe, object and positions by ptypy's rule for illumination centers."""
    from ptypy.io import h5read

    content = h5read(str(path), "content")["content"]
    (probe,) = content["probe"].values()
    (obj,) = content["obj"].values()
    (positions,) = content["positions"].values()
    pixels = (np.asarray(positions) - np.asarray(obj["_origin"])) / np.asarray(obj["_psize"])
    corners = np.rint(pixels).astype(int) - truth.side // 2
    patches = np.stack([obj["data"][0][y : y + truth.side, x : x + truth.side] for y, x in corners])
    waves = np.fft.fft2(probe["data"][0] * patches, norm="ortho")
    return np.abs(np.fft.fftshift(waves, axes=(-2, -1))) ** 2
