"""Run cdtools on the input file of ``peers.py``, with the Python of the environment of cdtools.

::

    peer_environment/cdtools/bin/python benchmarks/in_cdtools.py task.npz result.npz

Input and output use the conventions of this package. cdtools extracts a patch at the floor of its corner and shifts the
probe by the remainder, uses an orthonormal transform, and scales its probe by the largest value. Pixels with negative
counts do not count; cdtools itself has one mask for all patterns.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cdtools.datasets import Ptycho2DDataset
from cdtools.models import FancyPtycho
from cdtools.reconstructors import AdamReconstructor
from cdtools.tools.losses import amplitude_mse

BASIS = np.array([[0.0, -1.0], [-1.0, 0.0], [0.0, 0.0]])
"""One pixel is one unit: rows along −y, columns along −x."""


def make_model(data: dict[str, Any], options: dict[str, Any]) -> tuple[FancyPtycho, Ptycho2DDataset]:
    """Return model and data set; only the parameters to optimize require a gradient."""
    torch.manual_seed(0)
    size = data["counts"].shape[-1]
    corners = data["positions"] - size // 2
    translations = np.stack([-corners[:, 1], -corners[:, 0], np.zeros(len(corners))], 1).astype(np.float32)
    mask = torch.from_numpy(data["mask"])
    dataset = Ptycho2DDataset(translations, torch.from_numpy(data["counts"]), mask=mask)
    model = FancyPtycho(
        1.0,
        {"basis": BASIS, "distance": 1.0},
        BASIS,
        data["probe"],
        data["object"],
        background=1e-6 * torch.ones(size, size),
        translation_offsets=np.zeros((len(translations), 2), np.float32),
        weights=torch.ones(len(translations)),
        mask=mask,
        translations=translations,
        plot_level=0,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in options["learn"]
    model.loss = compute_loss
    return model, dataset


def compute_loss(counts: torch.Tensor, intensity: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the loss of cdtools over the pixels that count."""
    return amplitude_mse(counts, intensity, mask & (counts >= 0), use_sum=True)


def iterate_epochs(
    model: FancyPtycho, dataset: Ptycho2DDataset, options: dict[str, Any], epochs: int
) -> Iterator[float]:
    """Run Adam one epoch per step of the iterator.

    The settings ``adam`` apply to all epochs, ``adam_stages`` to their own number of epochs each.
    """
    optimizer = AdamReconstructor(model, dataset)
    for settings in options.get("adam_stages") or [{"epochs": epochs} | options["adam"]]:
        rest = {name: value for name, value in settings.items() if name != "epochs"}
        yield from optimizer.optimize(settings["epochs"], thread=False, **rest)


def main(source: str, destination: str) -> None:
    """Run until the limit of epochs or seconds, and store the state after each epoch; one epoch before it warms up."""
    with np.load(source) as file:
        data = dict(file)
    task = json.loads(str(data["settings"]))
    clock = getattr(time, task["clock"])
    model, dataset = make_model(data, task["options"])
    next(iterate_epochs(model, dataset, task["options"], 1))
    model, dataset = make_model(data, task["options"])
    seconds: list[float] = []
    states: dict[str, list[np.ndarray]] = {
        name: [] for name in ("object", "probe", "positions", "background", "intensities")
    }
    run = iterate_epochs(model, dataset, task["options"], task["epochs"])
    while len(seconds) < task["epochs"] and sum(seconds) < task["time_limit"]:
        started = clock()
        next(run)
        seconds.append(clock() - started)
        shift = (model.translation_offsets * model.translation_scale).detach().numpy()
        states["object"].append(model.obj.detach().numpy().copy())
        states["probe"].append((model.probe * model.probe_norm).detach().numpy().copy())
        states["positions"].append(data["positions"] + shift)
        states["background"].append(np.fft.ifftshift(model.background.detach().numpy() ** 2))
        power = model.weights.detach().numpy() ** 2
        states["intensities"].append(np.broadcast_to(power, (len(model.probe), len(power))).copy())
    np.savez(destination, seconds=np.cumsum(seconds), **{name: np.stack(arrays) for name, arrays in states.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
