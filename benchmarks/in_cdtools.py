"""Run cdtools on what ``peers.py`` wrote: executed by the Python of cdtools' own environment, not by this package's.

::

    peer_environment/cdtools/bin/python benchmarks/in_cdtools.py task.npz result.npz

What comes in and goes out is in this package's conventions. cdtools cuts a patch at the floor of its corner and moves
the probe by the rest, transforms with energy kept, and scales its probe by the largest value.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from cdtools.datasets import Ptycho2DDataset
from cdtools.models import FancyPtycho

BASIS = np.array([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
"""One pixel is one unit: rows go down in y, columns against x."""


def make_model(data: dict[str, Any], options: dict[str, Any]) -> tuple[FancyPtycho, Ptycho2DDataset]:
    """Model and data set; what is not to be learned takes no gradient."""
    torch.manual_seed(0)
    size = data["counts"].shape[-1]
    corners = data["positions"] - size // 2
    places = np.stack([-corners[:, 1], -corners[:, 0], np.zeros(len(corners))], 1).astype(np.float32)
    mask = torch.from_numpy(data["mask"])
    dataset = Ptycho2DDataset(places, torch.from_numpy(data["counts"]), mask=mask)
    model = FancyPtycho(
        1.0,
        {"basis": BASIS, "distance": 1.0},
        BASIS,
        data["probe"],
        data["object"],
        background=1e-6 * torch.ones(size, size),
        translation_offsets=np.zeros((len(places), 2), np.float32),
        weights=torch.ones(len(places)),
        mask=mask,
        translations=places,
        plot_level=0,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in options["learn"]
    return model, dataset


def main(source: str, destination: str) -> None:
    """Run until the epochs or the seconds are up, and keep the state after each epoch; one epoch goes ahead."""
    with np.load(source) as file:
        data = dict(file)
    told = json.loads(str(data["settings"]))
    clock, settings = getattr(time, told["clock"]), told["options"]["adam"]
    model, dataset = make_model(data, told["options"])
    next(iter(model.Adam_optimize(1, dataset, thread=False, **settings)))
    model, dataset = make_model(data, told["options"])
    seconds: list[float] = []
    states: dict[str, list[np.ndarray]] = {"object": [], "probe": [], "positions": []}
    run = iter(model.Adam_optimize(told["epochs"], dataset, thread=False, **settings))
    while len(seconds) < told["epochs"] and sum(seconds) < told["time_limit"]:
        started = clock()
        next(run)
        seconds.append(clock() - started)
        moved = (model.translation_offsets * model.translation_scale).detach().numpy()
        states["object"].append(model.obj.detach().numpy().copy())
        states["probe"].append((model.probe * model.probe_norm).detach().numpy().copy())
        states["positions"].append(data["positions"] + moved)
    np.savez(destination, seconds=np.cumsum(seconds), **{name: np.stack(kept) for name, kept in states.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
