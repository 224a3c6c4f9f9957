"""Trackers: where figures and pictures of a training go besides ``history.csv``."""

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


class Tracker(Protocol):
    """Follows one training run."""

    def log_parameters(self, values: dict[str, Any]) -> None:
        """The resolved configuration."""

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        """The figures of one epoch."""

    def log_artifact(self, path: Path) -> None:
        """A file worth keeping with the run, such as a picture."""

    def finish(self, completed: bool) -> None:
        """The run is over."""


class NullTracker:
    """Keeps nothing."""

    def log_parameters(self, values: dict[str, Any]) -> None:
        del values

    def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
        del epoch, values

    def log_artifact(self, path: Path) -> None:
        del path

    def finish(self, completed: bool) -> None:
        del completed


class MlflowTracker:
    """MLflow, in a SQLite store under the output folder unless ``MLFLOW_TRACKING_URI`` says otherwise.

    Speaks through an ``MlflowClient`` of its own, so that MLflow's process-wide state stays as it is.
    """

    EXPERIMENT_NAME = "ptycho_torch"

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        # After the import, which sets levels of its own: both tell of each table of a new store.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        _check_reachable(uri)
        store = (folder / "mlflow.db").resolve()
        if not uri and set(str(store)) & set("?#%"):
            raise OSError(f"{store} holds a ?, # or %, which the address of an SQLite store cannot hold")
        self._client = MlflowClient(uri or f"sqlite:///{store}")
        found = self._client.get_experiment_by_name(self.EXPERIMENT_NAME)
        artifacts = None if uri else (folder / "mlruns").resolve().as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(self.EXPERIMENT_NAME, artifacts)
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
    """Passes everything on to another tracker, until that fails: then one warning, and silence. Never the run."""

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
            log.warning("the tracker %s is left out of this run: %s; history.csv has the figures", self._name, reason)


def list_tracker_errors() -> tuple[type[Exception], ...]:
    """What a tracker may raise when its store is out of reach."""
    import sys

    failures: list[type[Exception]] = [OSError, ImportError]  # the latter: the driver of a database is not installed
    # Only libraries that are loaded can have raised.
    for module, name in (("mlflow.exceptions", "MlflowException"), ("sqlalchemy.exc", "SQLAlchemyError")):
        if module in sys.modules:
            failures.append(getattr(sys.modules[module], name))
    return tuple(failures)


def _check_reachable(uri: str | None) -> None:
    """Raise ConnectionError at once if the server of ``uri`` takes no connection: MLflow itself retries for minutes."""
    import socket

    try:
        parts = urlsplit(uri or "")
        if parts.scheme not in ("http", "https"):
            return
        if not parts.hostname:
            raise ValueError("it names no host")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=3).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"MLFLOW_TRACKING_URI {uri} takes no connection ({error})") from error


def make_tracker(name: str, folder: Path) -> Tracker:
    """The tracker called ``name``, writing under ``folder``. ``csv`` and ``none`` keep nothing besides history.csv.

    Raises:
        ConfigError: the library behind the tracker is not installed.
    """
    if name in ("csv", "none"):
        return NullTracker()
    if find_spec(name) is None:
        raise ConfigError(f"--logger {name} needs the package {name}: pip install {name}, or choose --logger csv")
    return GuardedTracker(name, lambda: MlflowTracker(folder) if name == "mlflow" else TensorboardTracker(folder))
