"""Stages of the regression test: each is one command in a separate process, timed and listed at the end of the run."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

WARN_SECONDS, FAIL_SECONDS = 45, 90
"""Limits for all tests of this folder together, on two cores."""

PASS = 5
"""Number of stages of one pass: simulate, fixture, train, infer and stitch, evaluate."""

PAGE = """# Runtime of the regression test

Wall seconds of each stage of `tests/integration`; each stage is a separate process. Written by

    python -m pytest tests/integration --runtime_profile docs/runtime_profile.md

on {cores} cores, Python {python}, torch {torch}. One pass should take less than 15 s. The test warns above {warn} s and
fails above {fail} s in total. About half of every stage except the fixture and the evaluation is the import of torch.

| stage | seconds |
|---|---|
{rows}
"""

_seconds = pytest.StashKey[list[tuple[str, float]]]()

Run = Callable[..., str]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runtime_profile", type=Path, help="Markdown page to write the seconds of all stages to")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_seconds] = []


@pytest.fixture(scope="session")
def run_process(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run ``python …`` in a folder, as ``run("train", folder, "-m", "ptycho_torch.train", …)``; return its output.

    ``expect`` is the expected exit code.
    """
    # As users run it: with the default number of threads of torch.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def run_stage(stage: str, folder: Path, *words: str | Path, expect: int = 0) -> str:
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=FAIL_SECONDS,
        )
        pytestconfig.stash[_seconds].append((stage, time.perf_counter() - started))
        assert done.returncode == expect, f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run_stage


@pytest.fixture(scope="session")
def elapsed_seconds(pytestconfig: pytest.Config) -> Callable[[], float]:
    """Return the wall seconds of all finished stages."""
    return lambda: sum(took for _, took in pytestconfig.stash[_seconds])


@pytest.fixture(scope="session")
def max_seconds() -> float:
    """Limit in seconds above which the regression test fails."""
    return FAIL_SECONDS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    stages = config.stash[_seconds]
    if not stages:
        return
    total = sum(took for _, took in stages)
    terminalreporter.section("regression")
    for stage, took in [*stages, ("all", total)]:
        terminalreporter.line(f"{stage:<36} {took:6.2f} s")
    if total > WARN_SECONDS:
        terminalreporter.line(f"WARNING: more than {WARN_SECONDS} s, the target on two cores", yellow=True, bold=True)
    page = config.getoption("--runtime_profile", default=None)
    if page is not None:
        page.write_text(format_page(stages), encoding="utf-8")
        terminalreporter.line(f"written: {page}")


def format_page(stages: list[tuple[str, float]]) -> str:
    """Return the page with the seconds of each stage, of one pass and in total."""
    one_pass, total = (sum(took for _, took in part) for part in (stages[:PASS], stages))
    table = [
        *((stage, took) for stage, took in stages[:PASS]),
        ("**one pass**", one_pass),
        *((stage, took) for stage, took in stages[PASS:]),
        ("**all**", total),
    ]
    return PAGE.format(
        cores=os.cpu_count(),
        python=platform.python_version(),
        torch=metadata.version("torch"),
        rows="\n".join(f"| {stage} | {took:.2f} |" for stage, took in table),
        warn=WARN_SECONDS,
        fail=FAIL_SECONDS,
    )
