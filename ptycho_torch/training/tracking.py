"""Trackers: records of a training in MLflow or TensorBoard, in addition to ``history.csv``."""

import logging
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ptycho_torch.core.errors import ConfigError

log = logging.getLogger(__name__)

PACKAGES = {"mlflow": "mlflow-skinny", "tensorboard": "ptycho-torch[tensorboard]"}
"""Package or extra to install for each tracker."""


class Tracker(Protocol):
    """Receiver of the records of one training."""

    def log_parameters(self, values: dict[str, Any]) -> None:
        """Record the resolved configuration."""

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        """Record the losses of one epoch."""

    def log_artifact(self, path: Path) -> None:
        """Record a file, such as an image of the result."""

    def finish(self, completed: bool) -> None:
        """End the record."""


class NullTracker:
    """A tracker that records nothing."""

    def log_parameters(self, values: dict[str, Any]) -> None:
        del values

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        del epoch, values

    def log_artifact(self, path: Path) -> None:
        del path

    def finish(self, completed: bool) -> None:
        del completed


class MlflowTracker:
    """MLflow: an SQLite store under the output folder, or the store of ``MLFLOW_TRACKING_URI``.

    It uses an ``MlflowClient`` of its own, which leaves the process-wide state of MLflow unchanged.
    """

    EXPERIMENT_NAME = "ptycho_torch"

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        # After the import, which sets the levels: both packages log each table of a new store.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        _check_reachable(uri)
        store = (folder / "mlflow.db").resolve()
        if not uri and set(str(store)) & set("?#%"):
            raise OSError(f"{store} contains a ?, # or %, which the address of an SQLite store cannot contain")
        self._client = MlflowClient(uri or f"sqlite:///{store}")
        existing = self._client.get_experiment_by_name(self.EXPERIMENT_NAME)
        artifacts = None if uri else (folder / "mlruns").resolve().as_uri()
        experiment = (
            existing.experiment_id if existing else self._client.create_experiment(self.EXPERIMENT_NAME, artifacts)
        )
        self._run = self._client.create_run(experiment, run_name=folder.name).info.run_id

    def log_parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(self._run, params=[Param(key, str(value)) for key, value in values.items()])

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(key, value, now, epoch) for key, value in values.items()])

    def log_artifact(self, path: Path) -> None:
        self._client.log_artifact(self._run, str(path))

    def finish(self, completed: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if completed else "KILLED")


class TensorboardTracker:
    """TensorBoard event files in ``tensorboard/`` under the output folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log_parameters(self, values: dict[str, Any]) -> None:
        self._writer.add_text("config", "\n".join(f"    {key}: {value}" for key, value in values.items()))

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, epoch)

    def log_artifact(self, path: Path) -> None:
        from matplotlib.image import imread

        if path.suffix == ".png":
            self._writer.add_image(path.stem, imread(path)[..., :3], dataformats="HWC")

    def finish(self, completed: bool) -> None:
        del completed
        self._writer.close()


class GuardedTracker:
    """A wrapper that disables a failing tracker after one warning, because a tracker must not end a training.

    Args:
        name: name of the tracker, for the warning.
        make: makes the tracker.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Tracker = NullTracker()
        self._guard(lambda: setattr(self, "_tracker", make()))

    def log_parameters(self, values: dict[str, Any]) -> None:
        self._guard(lambda: self._tracker.log_parameters(values))

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        self._guard(lambda: self._tracker.log_metrics(epoch, values))

    def log_artifact(self, path: Path) -> None:
        self._guard(lambda: self._tracker.log_artifact(path))

    def finish(self, completed: bool) -> None:
        self._guard(lambda: self._tracker.finish(completed))

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except list_tracker_errors() as error:
            self._tracker = NullTracker()
            reason = " ".join(str(error).split())[:200]
            log.warning(
                "the tracker %s failed and is disabled for this run: %s; history.csv contains the losses",
                self._name,
                reason,
            )


def list_tracker_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a tracker raises if its store is unreachable."""
    import sys

    failures: list[type[Exception]] = [OSError, ImportError]  # ImportError: the driver of a database is not installed
    # Only an imported library can have raised.
    for module, name in (("mlflow.exceptions", "MlflowException"), ("sqlalchemy.exc", "SQLAlchemyError")):
        if module in sys.modules:
            failures.append(getattr(sys.modules[module], name))
    return tuple(failures)


def _check_reachable(uri: str | None) -> None:
    """Raise ConnectionError if the server of ``uri`` accepts no connection; MLflow itself retries for minutes."""
    import socket

    try:
        parts = urlsplit(uri or "")
        if parts.scheme not in ("http", "https"):
            return
        if not parts.hostname:
            raise ValueError("it has no host")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=3).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"MLFLOW_TRACKING_URI {uri} accepts no connection ({error})") from error


def make_tracker(name: str, folder: Path) -> Tracker:
    """Make a tracker that writes under ``folder``.

    Args:
        name: mlflow, tensorboard, or csv or none for no record besides history.csv.
        folder: output folder of the training.

    Raises:
        ConfigError: the library behind the tracker is not installed.
    """
    if name in ("csv", "none"):
        return NullTracker()
    if find_spec(name) is None:
        package = PACKAGES[name]
        raise ConfigError(
            f"`logger` is {name}, and its package is not installed; install it with pip install '{package}', or set "
            "`logger` to csv"
        )
    return GuardedTracker(name, lambda: MlflowTracker(folder) if name == "mlflow" else TensorboardTracker(folder))
