"""Compare networks at equal training time: the error after a number of processor seconds, on one thread.

::

    OMP_NUM_THREADS=1 python benchmarks/networks.py --twin Run1084_twin_legacy.npz --seconds 60 --teacher pie

Prints one Markdown table. Every network is trained on the Run1084 simulated scan with default settings for the number
of epochs nearest to the time limit, including validation and checkpoints, excluding the computation of targets.
Patterns per second use processor time, with input and stitching. The error is NRMSE in the scanned box, by
``ptycho_torch.evaluate``. Other processes affect the result through the caches only.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ptycho_torch.config.inference import EvaluateConfig
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.core.observer import SilentObserver
from ptycho_torch.distributed.devices import select_precision
from ptycho_torch.evaluate import evaluate
from ptycho_torch.io.scan import load_scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.train import train


class TimeLimit(SilentObserver):
    """Observer that interrupts a training at the end of the epoch nearest to its time limit."""

    def __init__(self, seconds: float, batches: int) -> None:
        self.seconds, self.batches = seconds, batches
        self.steps, self.started, self.spent = 0, 0.0, 0.0

    def start(self, task: str, total: int) -> None:
        del task, total
        self.started = time.process_time()

    def advance(self, steps: int = 1, **figures: float) -> None:
        del figures
        # Called after each batch: at the first batch of an epoch, the previous epoch is validated and saved.
        epochs, batch = divmod(self.steps, self.batches)
        self.steps += steps
        if epochs and batch == 0:
            self.spent = time.process_time() - self.started
            if self.spent * (1 + 0.5 / epochs) > self.seconds:
                raise KeyboardInterrupt


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Set torch to one thread, so that processor time is the time of one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_groups(twin: Path, folder: Path) -> int:
    """Return the number of groups that the defaults train on, without the held-out region."""
    train(TrainConfig(train_data_file=twin, output_dir=folder, max_epochs=0, logger="none", device="cpu"))
    (scan,) = load_model(folder).scans
    return len(load_scan(twin)) - len(scan.held_out)


def row(name: str, arguments: argparse.Namespace, folder: Path) -> str:
    """Return the row of the network preset ``name``."""
    limit = TimeLimit(arguments.seconds, -(-arguments.groups // arguments.batch_size))
    config = TrainConfig(
        train_data_file=arguments.twin,
        output_dir=folder / "model",
        network=name,
        width=arguments.width,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        precision=arguments.precision,
        teacher=arguments.teacher,
        seed=arguments.seed,
        max_epochs=100_000,
        logger="none",
        device="cpu",
    )
    result = train(config, limit)
    bundle, scan = load_model(folder / "model"), load_scan(arguments.twin)
    precision = select_precision(arguments.precision, bundle.model.device)
    started = time.process_time()
    reconstruction = predict_scan(bundle.model, scan, bundle.photons_per_unit, precision=precision)
    inferred = time.process_time() - started
    reconstruction.save(folder / "reconstruction.npz")
    metrics = evaluate(
        EvaluateConfig(
            reconstruction=folder / "reconstruction.npz",
            output_dir=folder / "evaluation",
            truth=arguments.twin,
            scan=arguments.twin,
            report=False,
        )
    )
    parameters = sum(weight.numel() for weight in bundle.model.network.parameters())
    epochs = len(result.history)
    trained = epochs * arguments.groups / limit.spent
    return (
        f"| `{name}` | {parameters:,} | {epochs} in {limit.spent:.0f} s | {trained:.0f} | {len(scan) / inferred:.0f} "
        f"| {metrics['nrmse_scanned_box']:.3f} | {metrics['r']:.4f} |"
    )


def main() -> None:
    """Print the table."""
    defaults = TrainConfig.__dataclass_fields__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--networks", nargs="+", default=["stepped_unet", "lifted_unet", "ffno", "vit", "unet"])
    parser.add_argument("--seconds", type=float, default=60.0, help="processor seconds per training")
    parser.add_argument("--teacher", help="teacher of train; default: none")
    parser.add_argument("--width", type=int, default=defaults["width"].default)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--learning_rate", type=float, default=defaults["learning_rate"].default)
    parser.add_argument("--precision", default=defaults["precision"].default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print("| network | weights | epochs | patterns/s, training | patterns/s, inference | NRMSE, box | R |")
    print("|---|---|---|---|---|---|---|")
    with use_one_thread(), tempfile.TemporaryDirectory() as folder:
        arguments.groups = count_groups(arguments.twin, Path(folder) / "untrained")
        for name in arguments.networks:
            print(row(name, arguments, Path(folder) / name), flush=True)


if __name__ == "__main__":
    main()
