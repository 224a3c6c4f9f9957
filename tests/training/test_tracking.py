"""Trackers record a run; their failure does not end it."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptycho_torch.training.tracking import GuardedTracker, make_tracker

Train = Callable[..., Path]


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def read_rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(store)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def tracked_folder(tmp_path_factory: pytest.TempPathFactory, train_model: Train) -> Path:
    """Make a model folder with an MLflow store of one run; a store takes seconds to make."""
    import mlflow

    before = mlflow.get_tracking_uri(), dict(os.environ)
    folder = train_model(tmp_path_factory.mktemp("tracked") / "a model", logger="mlflow", max_epochs=2)
    assert (mlflow.get_tracking_uri(), dict(os.environ)) == before, "the state of the process is unchanged"
    assert mlflow.active_run() is None
    return folder


def test_mlflow_stores_the_run_in_the_output_folder(tracked_folder: Path) -> None:
    store = tracked_folder / "mlflow.db"
    parameters: dict[str, str] = dict(read_rows(store, "select key, value from params"))
    assert parameters["batch_size"] == "6"
    assert parameters["width"] == "4"
    assert read_rows(store, "select step from metrics where key = 'loss' order by step") == [(1,), (2,)]
    assert len(read_rows(store, "select step from metrics where key = 'val_loss'")) == 2
    assert read_rows(store, "select status from runs") == [("FINISHED",)]
    assert {path.name for path in tracked_folder.rglob("mlruns/**/artifacts/*")} >= {
        "reconstructed_amplitude.png",
        "reconstructed_phase.png",
    }
    assert {path.name for path in tracked_folder.parent.iterdir()} == {"a model"}


def test_mlflow_uses_the_store_of_the_environment_variable(
    tmp_path: Path, tracked_folder: Path, train_model: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a store with an earlier run: the experiment is common, and the runs are separate."""
    store = tmp_path / "elsewhere.db"
    store.write_bytes((tracked_folder / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    folder = train_model(tmp_path / "model", logger="mlflow")
    assert not (folder / "mlflow.db").exists()
    assert read_rows(store, "select count(*) from runs") == [(2,)]
    assert read_rows(store, "select count(*) from experiments where name = 'ptycho_torch'") == [(1,)]
    assert read_rows(store, "select count(*) from metrics where key = 'loss' group by run_uuid order by 1") == [
        (1,),
        (2,),
    ]


@pytest.mark.parametrize("name", ["why?", "run #3", "100%"])
def test_folder_name_that_mlflow_cannot_use_gives_a_warning(
    name: str, tmp_path: Path, train_model: Train, caplog: pytest.LogCaptureFixture
) -> None:
    """These characters have another meaning in the address of an SQLite store."""
    folder = train_model(tmp_path / name, logger="mlflow")
    assert "contains a ?, # or %" in caplog.text
    assert (folder / "bundle.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "http://127.0.0.1:nonsense",
        "http://",
        "https://127.0.0.1:9/path",
        "nonsense://host",
        "sqlite:////dev/null/mlflow.db",
        "postgresql://127.0.0.1:9/none",
    ],
)
def test_unreachable_tracker_gives_a_warning(
    tmp_path: Path, train_model: Train, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "ptycho_torch"):
        folder = train_model(tmp_path / "model", logger="mlflow")
    assert time.monotonic() - started < 20
    assert sum("the tracker mlflow failed and is disabled" in record.getMessage() for record in caplog.records) == 1
    assert (folder / "bundle.json").is_file()
    assert len((folder / "history.csv").read_text().splitlines()) == 2


def test_tracker_that_fails_later_gives_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class FailingTracker:
        def log_parameters(self, values: dict[str, object]) -> None: ...

        def log_metrics(self, epoch: int, values: dict[str, float]) -> None:
            raise OSError("the disk is full")

        def log_artifact(self, path: Path) -> None:
            raise AssertionError("a disabled tracker is not called")

        def finish(self, completed: bool) -> None:
            raise AssertionError("a disabled tracker is not called")

    tracker = GuardedTracker("failing", FailingTracker)
    tracker.log_parameters({})
    for epoch in (1, 2):
        tracker.log_metrics(epoch, {"loss": 1.0})
    tracker.log_artifact(Path("object.png"))
    tracker.finish(True)
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker failing failed and is disabled for this run: the disk is full; history.csv contains the losses"
    ]


def test_tensorboard_writes_event_files(tmp_path: Path, train_model: Train) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_model(tmp_path, logger="tensorboard", max_epochs=2)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert set(events.Tags()["images"]) == {"reconstructed_amplitude", "reconstructed_phase"}


@pytest.mark.parametrize("name", ["csv", "none"])
def test_null_tracker_writes_no_file(tmp_path: Path, name: str) -> None:
    tracker = make_tracker(name, tmp_path)
    tracker.log_parameters({"a": 1})
    tracker.log_metrics(1, {"loss": 1.0})
    tracker.log_artifact(tmp_path / "none.png")
    tracker.finish(True)
    assert list(tmp_path.iterdir()) == []
