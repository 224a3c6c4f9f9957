"""Trackers follow a run where they can, and never end it."""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptycho_torch.training.tracking import GuardedTracker, make_tracker

Train = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def rows(store: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(store)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_mlflow_keeps_the_run_under_the_output_folder(tmp_path: Path, train_to: Train) -> None:
    folder = train_to(tmp_path / "a model", logger="mlflow", max_epochs=2)
    store = folder / "mlflow.db"
    parameters = dict(rows(store, "select key, value from params"))
    assert parameters["batch_size"] == "6"
    assert parameters["width"] == "4"
    assert rows(store, "select step from metrics where key = 'loss' order by step") == [(1,), (2,)]
    assert len(rows(store, "select step from metrics where key = 'val_loss'")) == 2
    assert rows(store, "select status from runs") == [("FINISHED",)]
    assert {path.name for path in folder.rglob("mlruns/**/artifacts/*")} >= {
        "reconstructed_amplitude.png",
        "reconstructed_phase.png",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"a model"}


def test_mlflow_state_of_the_process_is_left_alone(tmp_path: Path, train_to: Train) -> None:
    import mlflow

    before = mlflow.get_tracking_uri(), dict(os.environ)
    train_to(tmp_path, logger="mlflow")
    assert (mlflow.get_tracking_uri(), dict(os.environ)) == before
    assert mlflow.active_run() is None


def test_mlflow_goes_where_the_environment_says(
    tmp_path: Path, train_to: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "elsewhere.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    folder = train_to(tmp_path / "model", logger="mlflow")
    assert len(rows(store, "select * from metrics where key = 'loss'")) == 1
    assert not (folder / "mlflow.db").exists()


def test_two_runs_share_a_store(tmp_path: Path, train_to: Train) -> None:
    for _ in range(2):
        train_to(tmp_path, logger="mlflow")
    assert rows(tmp_path / "mlflow.db", "select count(*) from runs") == [(2,)]
    assert rows(tmp_path / "mlflow.db", "select count(*) from experiments where name = 'ptycho_torch'") == [(1,)]


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "http://127.0.0.1:nonsense",
        "https://127.0.0.1:9/path",
        "nonsense://host",
        "sqlite:////no/such/folder/mlflow.db",
        "postgresql://127.0.0.1:9/none",
    ],
)
def test_a_tracker_out_of_reach_costs_a_warning(
    tmp_path: Path, train_to: Train, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "ptycho_torch"):
        folder = train_to(tmp_path / "model", logger="mlflow")
    assert time.monotonic() - started < 20
    assert sum("mlflow is left out of this run" in record.getMessage() for record in caplog.records) == 1
    assert (folder / "bundle.json").is_file()
    assert len((folder / "history.csv").read_text().splitlines()) == 2


def test_a_tracker_that_fails_later_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def parameters(self, values: dict[str, object]) -> None: ...

        def figures(self, epoch: int, values: dict[str, float]) -> None:
            raise OSError("the disk is full")

        def artifact(self, path: Path) -> None:
            raise AssertionError("it is not asked again")

        def finish(self, completed: bool) -> None:
            raise AssertionError("it is not asked again")

    tracker = GuardedTracker("failing", Failing)
    tracker.parameters({})
    for epoch in (1, 2):
        tracker.figures(epoch, {"loss": 1.0})
    tracker.artifact(Path("picture.png"))
    tracker.finish(True)
    assert [record.getMessage() for record in caplog.records] == [
        "the tracker failing is left out of this run: the disk is full; history.csv has the figures"
    ]


def test_tensorboard_writes_event_files(tmp_path: Path, train_to: Train) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_to(tmp_path, logger="tensorboard", max_epochs=2)
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2]
    assert set(found.Tags()["images"]) == {"reconstructed_amplitude", "reconstructed_phase"}


@pytest.mark.parametrize("name", ["csv", "none"])
def test_no_tracker_writes_nothing(tmp_path: Path, name: str) -> None:
    tracker = make_tracker(name, tmp_path)
    tracker.parameters({"a": 1})
    tracker.figures(1, {"loss": 1.0})
    tracker.artifact(tmp_path / "none.png")
    tracker.finish(True)
    assert list(tmp_path.iterdir()) == []
