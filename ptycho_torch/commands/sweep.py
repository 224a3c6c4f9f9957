"""Measure the runtime of trainings with different settings, each in a separate process.

    python -m ptycho_torch.sweep --train_data_file scan.npz --output_dir scope \
        --run epochs=2,n_images=64,batch_size=4 --run epochs=1,n_images=16,batch_size=2

A run is a list of settings of ``train``; ``epochs`` is short for ``max_epochs``. Two defaults differ from those of
``train``: the device is the CPU, with CUDA hidden, and the logger is csv, because the database of a tracker would
distort the times. ``scope.json`` and ``scope.md`` are written after each run. ``runs/<k>/`` contains the log, the
history and the stage times of run k, and with ``--keep_outputs`` all files. The exit code is 1 if a run failed or was
stopped. Other processes on the machine distort the times.
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
"""Settings of train that the sweep sets."""

LOG_FILE = "log.txt"
KEPT_FILES = {LOG_FILE, "history.csv", "timing.json", "config.yaml"}
"""Files of a run that remain without ``keep_outputs``."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that affect the times; the runs inherit them."""


def sweep(config: SweepConfig, observer: Observer | None = None) -> RuntimeReport:
    """Run every training of ``config.run`` and write the report to ``config.output_dir``.

    A run that fails or is stopped is a row of the report.

    Raises:
        PtychoError: a run is malformed, the scan file cannot be read, or the folder contains runs already. Nothing has
            then been run or written.
    """
    runs = [parse_run_settings(text) for text in config.run]
    # Headers only: the memory of a run cannot be measured below the peak of this process.
    profile = profile_scan_file(config.train_data_file, stats=False)
    summary = {name: getattr(profile, name) for name in ("arrays", "axis_order", "measurement", "violations")}
    folder = config.output_dir / "runs"
    _check_empty(folder)
    make_output_dir(folder)
    scan = str(config.train_data_file)
    report = RuntimeReport(
        scan, summary, describe_headers(profile), _describe_machine(config), config.timeout, len(runs), rows=[]
    )
    observer = observer or SilentObserver()
    observer.start("sweep", len(runs))
    try:
        for number, settings in enumerate(runs, start=1):
            row = _run_training(config, folder / str(number), settings)
            report = dataclasses.replace(report, rows=[*report.rows, row])
            _write_report(config.output_dir, report)
            if row.failure:
                log.warning("run %s: %s", row.name, row.failure)
            observer.advance(seconds=row.wall_seconds)
    finally:
        observer.finish()
    return report


def parse_run_settings(text: str) -> dict[str, str]:
    """Return the settings of a ``run`` by the names of train, in the given order.

    Raises:
        ConfigError: the text is empty or malformed, or contains a setting that is unknown, repeated or reserved.
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
                f"`run` {text!r}: {part!r} is not name=value; expected settings of train such as "
                "epochs=2,n_images=64,batch_size=4"
            )
        if name in RESERVED_SETTINGS:
            raise ConfigError(f"`run` {text!r}: the sweep sets {name}; set `{name}` of the sweep instead")
        if name not in known:
            raise ConfigError(
                f"`run` {text!r}: train has no setting {typed}; expected one of {', '.join(sorted(known))}"
            )
        if name in settings:
            raise ConfigError(f"`run` {text!r}: {name} occurs twice; give it once")
        settings[name] = value
    return settings


def make_train_command(config: SweepConfig, folder: Path, settings: dict[str, str]) -> list[str]:
    """Return the arguments of ``python`` for a training with ``settings`` into ``folder``."""
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
    """Raise :class:`DataError` unless ``folder`` is empty, because files are removed from it after a run."""
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder}: contains runs of an earlier sweep; expected an empty folder; change `output_dir`")


def _run_training(config: SweepConfig, folder: Path, settings: dict[str, str]) -> RunRecord:
    """Measure one training, and remove its large files."""
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
    """Return the reason for a missing result, with the last line of the log; None for a complete run."""
    if measured.timed_out:
        reason = f"stopped at the limit of {limit:g} s"
    elif measured.exit_code:
        reason = f"exit code {measured.exit_code}"
    else:
        missing = [name for name in ("bundle.json", "history.csv", "timing.json") if not (folder / name).is_file()]
        return f"exit code 0, but no {', '.join(missing)}" if missing else None
    lines = (folder / LOG_FILE).read_text(encoding="utf-8", errors="replace").split("\n")
    return ": ".join([reason, *[line.strip() for line in lines if line.strip()][-1:]])


def _read_work(folder: Path) -> TrainingWork:
    """Read the amount of work of the complete training in ``folder``."""
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
    """Remove all files but the small text files from ``folder``."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in KEPT_FILES:
            path.unlink()


def _describe_machine(config: SweepConfig) -> dict[str, Any]:
    """Return the hardware, versions and thread settings that the times depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "device": config.device,
        "platform": sys.platform,
        "python": ".".join(map(str, sys.version_info[:3])),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
        **{name: version(package) for name, package in (("torch", "torch"), ("ptycho_torch", "ptycho-torch"))},
    }


def _write_report(folder: Path, report: RuntimeReport) -> None:
    write_json(folder / "scope.json", report.to_dict())
    write_text(folder / "scope.md", report.to_markdown())


def run(config: SweepConfig, invocation: Invocation) -> int:
    """Measure the runs, and print the path of the report; return the exit code."""
    report = sweep(config, invocation.observer)
    failed = [row.name for row in report.rows if row.failure]
    if not config.quiet:
        failures = f", run {', '.join(failed)} failed" if failed else ""
        print(f"{config.output_dir / 'scope.md'}: {len(report.rows)} runs{failures}")
    return 1 if failed else 0
