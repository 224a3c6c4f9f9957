"""Measure what the runtime of training depends on: each run a training in a process of its own.

    python -m ptycho_torch.sweep --train_data_file scan.npz --output_dir scope \
        --run epochs=2,n_images=64,batch_size=4 --run epochs=1,n_images=16,batch_size=2

A run is named by settings of train; ``epochs`` is short for ``max_epochs``. Two settings differ from train's defaults:
the device is the CPU, with CUDA hidden, and the logger is csv, because a tracker's database would blur the times.
``scope.json`` and ``scope.md`` are written after each run; ``runs/<k>/`` keeps the log, the history and the stage
times of run k, and with `keep_outputs` all files of the run. The exit code is 1 when a run failed or was stopped.
Nothing else should run on the machine meanwhile.
"""

import csv
import dataclasses
import json
import logging
import os
import shlex
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.config.values import setting_aliases
from ptycho_torch.config.workflow import SweepConfig
from ptycho_torch.core.errors import ConfigError, DataError
from ptycho_torch.core.files import make_output_dir, write_json, write_text
from ptycho_torch.core.observer import Observer, SilentObserver
from ptycho_torch.io.profile import profile_scan_file
from ptycho_torch.profiling.processes import ProcessResult, run_measured
from ptycho_torch.profiling.runtime_model import RunRecord, RuntimeReport, TrainingWork, describe_headers

log = logging.getLogger("ptycho_torch.sweep")  # __name__ is __main__ under python -m

SETTING_ALIASES = {"epochs": "max_epochs"}
RESERVED_SETTINGS = ("train_data_file", "output_dir", "device")
"""Settings of train that the sweep itself makes."""

LOG_FILE = "log.txt"
KEPT_FILES = {LOG_FILE, "history.csv", "timing.json", "config.yaml"}
"""What stays of a run without `keep_outputs`."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that times depend on; the runs inherit them."""


def sweep(config: SweepConfig, observer: Observer | None = None) -> RuntimeReport:
    """Run every training of ``config.run`` and write the scope into ``config.output_dir``.

    A run that fails or is stopped is a row like the others.

    Raises:
        PtychoError: a run is malformed, the scan file cannot be read, or the folder holds runs already: before
            anything is run or written.
    """

    runs = [parse_run_settings(text) for text in config.run]
    # Headers only: a large process would hide the memory of small ones that it starts.
    found = profile_scan_file(config.train_data_file, stats=False)
    about = {name: getattr(found, name) for name in ("arrays", "axis_order", "measurement", "violations")}
    folder = config.output_dir / "runs"
    _check_empty(folder)
    make_output_dir(folder)
    scan = str(config.train_data_file)
    scope = RuntimeReport(
        scan, about, describe_headers(found), _describe_machine(config), config.timeout, len(runs), rows=[]
    )
    observer = observer or SilentObserver()
    observer.start("sweep", len(runs))
    try:
        for number, settings in enumerate(runs, start=1):
            row = _run_training(config, folder / str(number), settings)
            scope = dataclasses.replace(scope, rows=[*scope.rows, row])
            _write_runtime_model(config.output_dir, scope)
            if row.failure:
                log.warning("run %s: %s", row.name, row.failure)
            observer.advance(seconds=row.wall_seconds)
    finally:
        observer.finish()
    return scope


def parse_run_settings(text: str) -> dict[str, str]:
    """The settings that a ``--run`` asks for, by train's names, in the order typed.

    Raises:
        ConfigError: it is empty or malformed, or names a setting that is unknown, typed twice or the sweep's own.
    """
    known = {field.name for field in dataclasses.fields(TrainConfig)} - set(RESERVED_SETTINGS)
    aliases = SETTING_ALIASES | setting_aliases(TrainConfig)
    settings: dict[str, str] = {}
    for part in text.split(","):
        typed, _, value = (piece.strip() for piece in part.partition("="))
        name = typed.replace("-", "_")
        name = aliases.get(name, name)
        if not typed or not value:
            raise ConfigError(
                f"--run {text!r}: {part!r} is not name=value; expected settings of train such as "
                "epochs=2,n_images=64,batch_size=4"
            )
        if name in RESERVED_SETTINGS:
            raise ConfigError(f"--run {text!r}: the sweep itself sets {name}; give --{name} to the sweep")
        if name not in known:
            raise ConfigError(f"--run {text!r}: train has no setting {typed}; known are {', '.join(sorted(known))}")
        if name in settings:
            raise ConfigError(f"--run {text!r}: {name} is there twice; give it once")
        settings[name] = value
    return settings


def make_train_command(config: SweepConfig, folder: Path, settings: dict[str, str]) -> list[str]:
    """The words after ``python`` that train with ``settings`` into ``folder``."""
    words = ["-m", "ptycho_torch.train", "--train_data_file", str(config.train_data_file), "--output_dir", str(folder)]
    switches = {field.name for field in dataclasses.fields(TrainConfig) if field.type is bool}
    for name, value in settings.items():
        if name in switches and value in ("true", "false"):
            words.append(f"--{name}" if value == "true" else f"--no_{name}")
        else:
            words += [f"--{name}", value]
    if "logger" not in settings:
        words += ["--logger", "csv"]
    return [*words, "--device", config.device]


def _check_empty(folder: Path) -> None:
    """Raise DataError where ``folder`` holds anything: what is removed after a run must be the run's own."""
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: holds runs of an earlier sweep; remove them, or choose another --output_dir")


def _run_training(config: SweepConfig, folder: Path, settings: dict[str, str]) -> RunRecord:
    """Train once, measured, and tidy up."""

    make_output_dir(folder)
    words = make_train_command(config, folder, settings)
    environment = {"CUDA_VISIBLE_DEVICES": ""} if config.device == "cpu" else {}
    try:
        measured = run_measured(
            [sys.executable, *words], folder / LOG_FILE, limit=config.timeout, environment=environment
        )
        files = {str(path.relative_to(folder)): path.stat().st_size for path in _list_files(folder)}
        failure = _describe_failure(measured, folder, config.timeout)
        work = None if failure else _read_work(folder)
    finally:
        if not config.keep_outputs:
            _remove_outputs(folder)
    assignments = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return RunRecord(
        name=folder.name,
        settings=settings,
        command=" ".join([*assignments, shlex.join(["python", *words])]),
        exit_code=measured.exit_code,
        failure=failure,
        wall_seconds=round(measured.wall_seconds, 3),
        cpu_seconds=round(measured.cpu_seconds, 3),
        peak_bytes=measured.peak_bytes,
        files=files,
        work=work,
    )


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _describe_failure(measured: ProcessResult, folder: Path, limit: float) -> str | None:
    """Why a run has no result, with the last words of its log; None where it has."""
    if measured.timed_out:
        how = f"stopped at the limit of {limit:g} s"
    elif measured.exit_code:
        how = f"exit code {measured.exit_code}"
    else:
        missing = [name for name in ("bundle.json", "history.csv", "timing.json") if not (folder / name).is_file()]
        return f"exit code 0, and no {', '.join(missing)}" if missing else None
    lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    return ": ".join([how, *[line.strip() for line in lines if line.strip()][-1:]])


def _read_work(folder: Path) -> TrainingWork:
    """What a complete training in ``folder`` says that it did."""

    settings = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["provenance"]["settings"]
    with (folder / "history.csv").open(encoding="utf-8", newline="") as stream:
        history = list(csv.DictReader(stream))
    return TrainingWork(
        epochs=len(history),
        groups=int(history[-1]["groups"]) if history else None,
        batch_size=settings["batch_size"],
        loss=float(history[-1]["loss"]) if history else None,
        stages=json.loads((folder / "timing.json").read_text(encoding="utf-8")),
    )


def _remove_outputs(folder: Path) -> None:
    """Remove all but the small text files from ``folder``, which the sweep itself made."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in KEPT_FILES:
            path.unlink()


def _describe_machine(config: SweepConfig) -> dict[str, Any]:
    """What the times depend on besides the settings."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "device": config.device,
        "platform": sys.platform,
        "python": ".".join(map(str, sys.version_info[:3])),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        **{name: version(package) for name, package in (("torch", "torch"), ("ptycho_torch", "ptycho-torch"))},
    }


def _write_runtime_model(folder: Path, scope: RuntimeReport) -> None:

    write_json(folder / "scope.json", scope.to_dict())
    write_text(folder / "scope.md", scope.to_markdown())


def run(config: SweepConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    scope = sweep(config, invocation.observer)
    failed = [row.name for row in scope.rows if row.failure]
    if not config.quiet:
        told = f", run {', '.join(failed)} failed" if failed else ""
        print(f"{config.output_dir / 'scope.md'}: {len(scope.rows)} runs{told}")
    return 1 if failed else 0
