"""Run pty-chi on the input file of ``peers.py``, with the Python of the environment of pty-chi.

::

    peer_environment/ptychi/bin/python benchmarks/in_ptychi.py task.npz result.npz

Input and output use the conventions of this package, and this script converts. The transform of pty-chi has no
normalization, so its probe is the probe of this package divided by N. Its patch of even side is centered between
pixels, so the origin of its positions is (−½, −½); with (0, 0) half of the patches would be rounded to the wrong pixel.
Pixels with negative counts do not count: pty-chi excludes counts below a limit, above which zeros are raised. The
intensity of a pattern is the square of the first weight of a variable probe (OPR), which pty-chi applies to the first
incoherent mode and only if the probe has a second OPR mode.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import ptychi.api as api
import torch
from ptychi.api.task import PtychographyTask
from ptychi.utils import add_additional_opr_probe_modes_to_probe, generate_initial_opr_mode_weights

ALWAYS = {
    "reconstructor_options.default_device": "cpu",
    "object_options.determine_position_origin_coords_by": "specified",
    "object_options.position_origin_coords": [-0.5, -0.5],
}

ZERO_COUNT = 1e-6
"""Stands for a measured zero, so that the limit on counts excludes only the held-out pixels, which are zero."""


def make_task(data: dict[str, Any], engine: str, settings: dict[str, Any]) -> PtychographyTask:
    """Return a task of ``engine`` with ``settings`` by their dotted names, as "reconstructor_options.batch_size"."""
    options = getattr(api, f"{engine}Options")()
    counts = np.where(data["counts"] < 0, 0, np.maximum(data["counts"], ZERO_COUNT)).astype(np.float32)
    if (counts == 0).any():
        settings = settings | {"reconstructor_options.exclude_measured_pixels_below": ZERO_COUNT / 2}
    probe, weights = data["probe"][None] / data["probe"].shape[-1], None
    if settings.get("opr_mode_weight_options.optimizable"):
        probe = add_additional_opr_probe_modes_to_probe(torch.from_numpy(probe), 1).numpy()
        weights = generate_initial_opr_mode_weights(len(counts), 2).numpy()
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
        diffraction_data=counts,
        object_data=data["object"][None],
        probe_data=probe,
        probe_position_y_px=data["positions"][:, 0],
        probe_position_x_px=data["positions"][:, 1],
        valid_pixel_mask=data["mask"],
        opr_mode_weights_data=weights,
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
    states: dict[str, list[np.ndarray]] = {
        name: [] for name in ("object", "probe", "positions", "background", "intensities")
    }
    while len(seconds) < request["epochs"] and sum(seconds) < request["time_limit"]:
        started = clock()
        task.run(1)
        seconds.append(clock() - started)
        states["object"].append(task.get_data_to_cpu("object", as_numpy=True)[0].copy())
        states["probe"].append(task.get_data_to_cpu("probe", as_numpy=True)[0] * data["probe"].shape[-1])
        states["positions"].append(task.get_data_to_cpu("probe_positions", as_numpy=True).copy())
        states["background"].append(np.zeros_like(data["counts"][0]))
        power = np.ones((len(data["probe"]), len(data["counts"])), np.float32)
        if task.probe.has_multiple_opr_modes:
            power[0] = task.get_data_to_cpu("opr_mode_weights", as_numpy=True)[:, 0] ** 2
        states["intensities"].append(power)
    np.savez(destination, seconds=np.cumsum(seconds), **{name: np.stack(arrays) for name, arrays in states.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
