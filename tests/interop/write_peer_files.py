"""Write the file of one program; run with the Python that has this program.

    python write_peer_files.py NAME FOLDER
    python write_peer_files.py NAME FILE SIDE

The first form writes one file per side of the patterns, `truth_<name>_<side>.npz` and `.json` beside it, and computes
with the program's own forward model how well the file reproduces the patterns (`forward_error`, for integer
positions). The second form does the latter for a file that another program has written from the truth with integer
positions, and prints the error. The exit code is 3 if the program is absent.
"""

import importlib
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from truth import describe_geometry, make_truth, save_truth

ABSENT = 3
LARGEST_FORWARD_ERROR = 2e-3  # single precision and the curvature that a Fresnel transform keeps


class PeerFile(NamedTuple):
    """A file that a program writes."""

    program: str  # the module to import
    distribution: str  # whose version is recorded; empty: the program is a checkout
    writer: str  # the module here
    function: str = ""  # `write_<function>`; empty: the name of the file
    simulator: str = ""  # `simulate_<simulator>`; empty: as the function
    sides: tuple[int, ...] = (32, 33)
    layout: str = "jittered"
    radiation: str = "photon"


FILES = {
    "cdtools": PeerFile("cdtools", "cdtools-py", "peer_xray"),
    "ptychodus": PeerFile("ptychodus", "ptychodus", "peer_xray"),
    "ptychodus_cxi": PeerFile("ptychodus", "ptychodus", "peer_xray"),
    "ptychodus_npz": PeerFile("ptychodus", "ptychodus", "peer_xray"),
    "ptychodus_training": PeerFile("ptychodus", "ptychodus", "peer_xray"),
    "ptychodus_ptychopinn": PeerFile("ptychodus", "ptychodus", "peer_xray"),
    "fold_slice": PeerFile("ptychodus", "ptychodus", "peer_pairs"),
    "ptycho_fm": PeerFile("ptychodus", "ptychodus", "peer_pairs", simulator="ptychovit"),
    "ptychovit": PeerFile("ptycho.interop.ptychovit", "", "peer_pairs"),
    "nexus": PeerFile("nxptycho", "", "peer_pairs"),
    "xptycho": PeerFile("xptycho", "xptycho", "peer_xray", sides=(32,)),
    "ptylab": PeerFile("PtyLab", "ptylab", "peer_xray"),
    "ptypy": PeerFile("ptypy", "", "peer_ptypy"),
    "ptypy_result": PeerFile("ptypy", "", "peer_ptypy"),
    "emdfile": PeerFile("emdfile", "emdfile", "peer_emdfile", layout="raster", radiation="electron"),
    "ptydy": PeerFile("ptydy", "ptydy", "peer_electron", layout="raster", radiation="electron"),
    "ptyrad": PeerFile("ptyrad", "ptyrad", "peer_electron", radiation="electron"),
    "phaser": PeerFile("phaser", "phaserem", "peer_electron", radiation="electron"),
    "empad": PeerFile("phaser", "phaserem", "peer_electron", sides=(128,), layout="raster", radiation="electron"),
}


def get_functions(name: str) -> tuple[Any, Any]:
    """Return the functions that write and simulate a file."""
    peer = FILES[name]
    module = importlib.import_module(peer.writer)
    function = peer.function or name
    return getattr(module, f"write_{function}"), getattr(module, f"simulate_{peer.simulator or function}")


def write_peer_file(name: str, folder: Path) -> None:
    """Write the files of a program and their truths into a folder."""
    peer = FILES[name]
    write, _ = get_functions(name)
    for side in peer.sides:
        truth = make_truth(side, peer.layout)
        path = write(folder, truth)
        facts: dict[str, object] = {
            "name": name,
            "version": metadata.version(peer.distribution) if peer.distribution else find_version(peer.program),
            "file": str(path.relative_to(folder)),
            "forward_error": compute_forward_error(name, side),
            "radiation": peer.radiation,
        }
        facts |= describe_geometry(truth, peer.radiation)
        save_truth(folder / f"truth_{name}_{side}.npz", truth, facts)


def compute_forward_error(name: str, side: int, path: Path | None = None) -> float:
    """Return the relative difference of the program's own patterns from the truth, at integer positions.

    Args:
        name: Name of the file in `FILES`.
        side: Rows and columns of a pattern.
        path: File of another writer; None: the program writes one.
    """
    layout = FILES[name].layout
    truth = make_truth(side, "integer" if layout == "jittered" else layout)
    write, simulate = get_functions(name)
    with tempfile.TemporaryDirectory() as folder:
        simulated: Any = simulate(path or write(Path(folder), truth), truth)
    error = float(np.abs(simulated - truth.intensities).sum() / truth.intensities.sum())
    if not error < LARGEST_FORWARD_ERROR:
        raise RuntimeError(f"{name}: the program's own forward model differs by {error:.2g} from the truth")
    return error


def find_version(program: str) -> str:
    """Return the version that a checkout states, else "checkout"."""
    try:
        version = importlib.import_module(f"{program}.version")
    except ImportError:
        return "checkout"
    return str(version.short_version)


def main(name: str, target: Path, side: int | None = None) -> int:
    """Write the files under `name` into a folder, or check one file; return 3 if the program is absent."""
    try:
        importlib.import_module(FILES[name].program)
    except ImportError as error:
        sys.stderr.write(f"{error}\n")
        return ABSENT
    if side is not None:
        sys.stdout.write(f"{compute_forward_error(name, side, target)}\n")
        return 0
    target.mkdir(parents=True, exist_ok=True)
    write_peer_file(name, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])))
