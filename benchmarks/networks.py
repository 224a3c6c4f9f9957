"""Compare the networks under one budget: the error after so many seconds of the processor, on one thread.

::

    OMP_NUM_THREADS=1 python benchmarks/networks.py --twin Run1084_twin_legacy.npz --seconds 60 --teacher pie

Prints one Markdown table. Every network is trained on the twin with the default recipe, but for as many epochs as the
seconds allow (to the nearest; validation and checkpoints included, a teacher's own time not). Patterns a second are by
the processor's time too, for inference with lift and stitching. The error is NRMSE in the box of scan positions, as
``ptycho_torch.evaluate`` has it. Other work on the machine matters little, but for the caches.
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
from ptycho_torch.io.npz import load_scan
from ptycho_torch.models.saved_model import load_model
from ptycho_torch.prediction.predict import predict_scan
from ptycho_torch.train import train


class Budget(SilentObserver):
    """Ends a training, as ctrl-C does, at the end of the epoch that is nearest to its seconds."""

    def __init__(self, seconds: float, batches: int) -> None:
        self.seconds, self.batches = seconds, batches
        self.steps, self.started, self.spent = 0, 0.0, 0.0

    def start(self, task: str, total: int) -> None:
        del task, total
        self.started = time.process_time()

    def advance(self, steps: int = 1, **figures: float) -> None:
        del figures
        # Told after a batch: with the first one of an epoch, the one before is whole, validated and saved.
        epochs, batch = divmod(self.steps, self.batches)
        self.steps += steps
        if epochs and batch == 0:
            self.spent = time.process_time() - self.started
            if self.spent * (1 + 0.5 / epochs) > self.seconds:
                raise KeyboardInterrupt


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, so that the processor's time is what one person's core would take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def groups_of(twin: Path, folder: Path) -> int:
    """Groups that the default recipe trains on, one region being held out."""
    train(TrainConfig(train_data_file=twin, output_dir=folder, max_epochs=0, logger="none", device="cpu"))
    (scan,) = load_model(folder).scans
    return len(load_scan(twin)) - len(scan.held_out)


def row(name: str, arguments: argparse.Namespace, folder: Path) -> str:
    """One row of the table: what ``name`` comes to within the seconds."""
    budget = Budget(arguments.seconds, -(-arguments.groups // arguments.batch_size))
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
    result = train(config, budget)
    bundle, scan = load_model(folder / "model"), load_scan(arguments.twin)
    precision = select_precision(arguments.precision, bundle.model.device)
    started = time.process_time()
    found = predict_scan(bundle.model, scan, bundle.photons_per_unit, precision=precision)
    inferred = time.process_time() - started
    found.save(folder / "reconstruction.npz")
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
    trained = epochs * arguments.groups / budget.spent
    return (
        f"| `{name}` | {parameters:,} | {epochs} in {budget.spent:.0f} s | {trained:.0f} | {len(scan) / inferred:.0f} "
        f"| {metrics['nrmse_scanned_box']:.3f} | {metrics['r']:.4f} |"
    )


def main() -> None:
    """Print the table."""
    defaults = TrainConfig.__dataclass_fields__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twin", type=Path, required=True, help="Run1084_twin_legacy.npz")
    parser.add_argument("--networks", nargs="+", default=["stepped_unet", "lifted_unet", "ffno", "vit", "unet"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of the processor, for each training")
    parser.add_argument("--teacher", help="as train has it; default: none")
    parser.add_argument("--width", type=int, default=defaults["width"].default)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--learning_rate", type=float, default=defaults["learning_rate"].default)
    parser.add_argument("--precision", default=defaults["precision"].default)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    print("| network | weights | epochs | patterns/s, training | patterns/s, inference | NRMSE, box | R |")
    print("|---|---|---|---|---|---|---|")
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        arguments.groups = groups_of(arguments.twin, Path(folder) / "untrained")
        for name in arguments.networks:
            print(row(name, arguments, Path(folder) / name), flush=True)


if __name__ == "__main__":
    main()
