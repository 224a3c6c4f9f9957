"""Run pty-chi on the input file of ``peers.py``, with the Python of the environment of pty-chi.

::

    peer_environment/ptychi/bin/python benchmarks/in_ptychi.py task.npz result.npz

Input and output use the conventions of this package, and this script converts. The transform of pty-chi has no
normalization, so its probe is the probe of this package divided by N. Its patch of even side is centered between
pixels, so the origin of its positions is (−½, −½); with (0, 0) half of the patches would be rounded to the wrong pixel.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import ptychi.api as api
from ptychi.api.task import PtychographyTask

ALWAYS = {
    "reconstructor_options.default_device": "cpu",
    "object_options.determine_position_origin_coords_by": "specified",
    "object_options.position_origin_coords": [-0.5, -0.5],
}


def make_task(data: dict[str, Any], engine: str, settings: dict[str, Any]) -> PtychographyTask:
    """Return a task of ``engine`` with ``settings`` by their dotted names, as "reconstructor_options.batch_size"."""
    options = getattr(api, f"{engine}Options")()
    for name, value in (ALWAYS | settings).items():
        *path, last = name.split(".")
        part = options
        for step in path:
            part = getattr(part, step)
        kind = type(getattr(part, last))
        # pty-chi uses string enumerations; the settings hold their names.
        setattr(part, last, kind(value) if issubclass(kind, str) else value)
    return PtychographyTask(
        options,
        diffraction_data=data["counts"],
        object_data=data["object"][None],
        probe_data=data["probe"][None] / data["probe"].shape[-1],
        probe_position_y_px=data["positions"][:, 0],
        probe_position_x_px=data["positions"][:, 1],
        valid_pixel_mask=data["mask"],
    )


def main(source: str, destination: str) -> None:
    """Run until the limit of epochs or seconds, and store the state after each epoch.

    One epoch of another task warms up. The clock runs only inside ``task.run(1)``, which continues from the previous
    epoch, including its momentum.
    """
    with np.load(source) as file:
        data = dict(file)
    request = json.loads(str(data["settings"]))
    clock = getattr(time, request["clock"])
    make_task(data, request["engine"], request["options"]).run(1)
    task = make_task(data, request["engine"], request["options"])
    seconds: list[float] = []
    states: dict[str, list[np.ndarray]] = {"object": [], "probe": [], "positions": []}
    while len(seconds) < request["epochs"] and sum(seconds) < request["time_limit"]:
        started = clock()
        task.run(1)
        seconds.append(clock() - started)
        states["object"].append(task.get_data_to_cpu("object", as_numpy=True)[0].copy())
        states["probe"].append(task.get_data_to_cpu("probe", as_numpy=True)[0] * data["probe"].shape[-1])
        states["positions"].append(task.get_data_to_cpu("probe_positions", as_numpy=True).copy())
    np.savez(destination, seconds=np.cumsum(seconds), **{name: np.stack(arrays) for name, arrays in states.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
