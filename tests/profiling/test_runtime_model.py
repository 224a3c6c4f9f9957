"""The runtime model: differences between runs, fitted costs and the page."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.grouping import make_compact_batches
from ptycho_torch.data.profile import Profile
from ptycho_torch.profiling.runtime_model import (
    COST_TERMS,
    RunRecord,
    RuntimeReport,
    TrainingWork,
    compute_differences,
    describe_headers,
    fit_costs,
)

COSTS = {"start-up": 3.0, "image": 0.01, "epoch": 0.2, "batch": 0.05}


def make_row(name: str, epochs: int, groups: int, batch_size: int, noise: float = 0.0, **settings: str) -> RunRecord:
    """Make a run whose wall time follows :data:`COSTS`."""
    work = TrainingWork(
        epochs, groups if epochs else None, batch_size, 0.5 if epochs else None, {"load": 0.5, "train": 1.0}
    )
    wall = COSTS["start-up"] + sum(COSTS[term] * work.count_units(term) for term in COST_TERMS)
    amounts = {"max_epochs": str(epochs), "n_images": str(groups), "batch_size": str(batch_size)}
    return RunRecord(name, amounts | settings, f"train {name}", 0, None, wall + noise, wall, 2**28, {"a.txt": 3}, work)


def make_failed_row(name: str) -> RunRecord:
    return RunRecord(
        name, {"max_epochs": "9"}, "train it", 2, "exit code 2: no | file", 1.0, 1.0, None, {"log.txt": 9}, None
    )


MANY = [(1, 64, 4), (2, 64, 4), (1, 16, 2), (3, 100, 16), (0, 64, 4), (4, 33, 5), (2, 200, 8)]


def make_rows(amounts: list[tuple[int, int, int]], **settings: str) -> list[RunRecord]:
    return [make_row(str(number), *amount, **settings) for number, amount in enumerate(amounts, start=1)]


@pytest.mark.parametrize(("groups", "batch_size"), [(1, 1), (7, 3), (34, 6), (64, 4), (65, 4), (1000, 24), (5, 9)])
def test_batches_per_epoch_equal_those_of_the_training(groups: int, batch_size: int) -> None:
    rng = np.random.default_rng(1)
    made = make_compact_batches(rng.uniform(0, 50, (groups, 2)), batch_size, 4, rng)
    assert TrainingWork(1, groups, batch_size, 0.0, {}).batches_per_epoch == len(made)


def test_many_runs_determine_every_cost() -> None:
    (fit,) = fit_costs(make_rows(MANY))
    assert {cost.name: cost.seconds for cost in fit.costs} == pytest.approx(COSTS)
    assert fit.residual_seconds == pytest.approx(0, abs=1e-9)
    assert all(cost.margin < 1e-6 and cost.remark is None for cost in fit.costs)
    assert fit.left_out == {}


def test_confidence_intervals_contain_the_true_costs_at_their_level() -> None:
    rng = np.random.default_rng(2)
    amounts = MANY[1:]  # only two degrees of freedom, for which the normal distribution would be far off
    hits, trials = 0, 400
    for _ in range(trials):
        rows = [make_row(str(k), *amount, noise=rng.normal(0, 0.3)) for k, amount in enumerate(amounts)]
        hits += sum(abs(cost.seconds - COSTS[cost.name]) <= cost.margin for cost in fit_costs(rows)[0].costs)
    assert 0.93 < hits / (trials * len(COSTS)) < 0.97


@pytest.mark.parametrize(
    ("count", "fitted", "left_out"),
    [
        (2, [], set(COST_TERMS)),
        (3, ["start-up", "image"], {"epoch", "batch"}),
        (4, ["start-up", "image", "epoch"], {"batch"}),
    ],
)
def test_few_runs_determine_few_costs(count: int, fitted: list[str], left_out: set[str]) -> None:
    (fit,) = fit_costs(make_rows(MANY[:count]))
    assert [cost.name for cost in fit.costs] == fitted
    assert fit.left_out.keys() == left_out
    assert any(f"there are {count}" in reason for reason in fit.left_out.values())


def test_proportional_amounts_give_one_cost() -> None:
    (fit,) = fit_costs(make_rows([(epochs, 64, 4) for epochs in (1, 2, 3, 5, 8)]))
    assert [cost.name for cost in fit.costs] == ["start-up", "image"]
    assert fit.left_out.keys() == {"epoch", "batch"}
    assert all("proportional to" in reason for reason in fit.left_out.values())
    # The cost of an epoch is then part of the cost of its images.
    assert fit.costs[1].seconds == pytest.approx(COSTS["image"] + COSTS["epoch"] / 64 + COSTS["batch"] / 4)


def test_equal_runs_give_no_fit() -> None:
    (fit,) = fit_costs(make_rows([(1, 64, 4)] * 5))
    assert (fit.costs, fit.residual_seconds) == ([], None)


@pytest.mark.parametrize(
    ("walls", "remark"),
    [
        ((9.0, 8.0, 7.0, 6.0), "negative"),
        ((5.0, 5.4, 4.9, 5.1), "not significantly different from zero"),
        ((5.0, 6.0, 7.0, 8.0), None),
    ],
)
def test_doubtful_cost_has_a_remark(walls: tuple[float, ...], remark: str | None) -> None:
    rows = [replace(make_row(str(k), k, 10, 5), wall_seconds=wall) for k, wall in enumerate(walls, start=1)]
    image = fit_costs(rows)[0].costs[1]
    assert image.remark is None if remark is None else remark in (image.remark or "")


def test_different_workloads_are_fitted_separately() -> None:
    wide = [replace(row, name=f"w{row.name}", wall_seconds=2 * row.wall_seconds) for row in make_rows(MANY, width="32")]
    narrow, other = fit_costs([*make_rows(MANY), *wide, make_failed_row("f")])
    assert (narrow.settings, other.settings) == ({}, {"width": "32"})
    assert {cost.name: cost.seconds / 2 for cost in other.costs} == pytest.approx(COSTS)
    assert narrow.costs[0].seconds == pytest.approx(COSTS["start-up"])


@pytest.mark.parametrize(
    ("first", "second", "reading"),
    [
        ((1, 64, 4), (3, 64, 4), COSTS["epoch"] + 64 * COSTS["image"] + 16 * COSTS["batch"]),
        ((3, 64, 4), (1, 64, 4), COSTS["epoch"] + 64 * COSTS["image"] + 16 * COSTS["batch"]),
        ((0, 64, 4), (3, 64, 4), COSTS["epoch"] + 64 * COSTS["image"] + 16 * COSTS["batch"]),
        ((2, 40, 4), (2, 80, 4), COSTS["image"] + COSTS["batch"] / 4),
        ((2, 64, 4), (2, 64, 16), COSTS["batch"]),
    ],
)
def test_difference_in_one_amount_gives_its_cost(
    first: tuple[int, int, int], second: tuple[int, int, int], reading: float
) -> None:
    (pair,) = compute_differences(make_rows([first, second]))
    assert float((pair.reading or "").split()[0]) == pytest.approx(reading, rel=5e-3)


def test_difference_in_several_amounts_gives_no_cost() -> None:
    assert [pair.reading for pair in compute_differences(make_rows([(1, 64, 4), (2, 32, 4)]))] == [None]
    other = replace(make_row("2", 2, 64, 4), settings={"width": "32"})
    (pair,) = compute_differences([make_row("1", 1, 64, 4), make_failed_row("f"), other])
    assert (pair.runs, pair.reading) == (("1", "2"), None)
    assert pair.settings["width"] == (None, "32")
    (pair,) = compute_differences(make_rows([(1, 64, 4), (1, 64, 4)]))
    assert "same work" in (pair.reading or "")
    (pair,) = compute_differences([make_row("1", 1, 64, 4), make_row("2", 2, 64, 4, noise=-9)])
    assert "negative" in (pair.reading or "")


PROFILE = Profile(
    file="scan.npz",
    arrays={
        "diffraction": {"shape": [6, 6, 40], "dtype": "float64"},
        "metadata": {"shape": [], "dtype": "<U9"},
    },
    axis_order={"order": "hwn", "reason": "the first two axes are equal"},
    measurement={"kind": None, "reason": "integers, without a statement of the quantity"},
    photons=None,
    geometry=None,
    object=None,
    metadata={},
    violations=[{"rule": "R22", "level": "SHOULD", "message": "diffraction is float64"}],
)


def make_report(rows: list[RunRecord]) -> RuntimeReport:
    return RuntimeReport(
        "scan.npz", {"axis_order": {}}, describe_headers(PROFILE), {"cores": 2, "threads": {}}, 120.0, 9, rows
    )


def test_observations_name_dtype_and_orientation_with_reasons() -> None:
    assert describe_headers(PROFILE) == [
        "diffraction is float64 of shape (6, 6, 40)",
        "axis order hwn: the first two axes are equal",
        "measurement open: integers, without a statement of the quantity",
        "SHOULD R22: diffraction is float64",
    ]


@pytest.mark.parametrize(
    "rows", [[], [make_failed_row("f")], make_rows(MANY[:1]), [*make_rows(MANY), make_failed_row("f")]]
)
def test_page_and_json_contain_every_run(rows: list[RunRecord]) -> None:
    scope = make_report(rows)
    page = scope.to_markdown()
    tables = re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for row in rows:
        assert row.command in page.splitlines()
        assert any(row.name in table and f"{row.wall_seconds:.2f}" in table for table in tables)
    assert f"{len(rows)} of 9 runs" in page
    content: dict[str, Any] = json.loads(json.dumps(scope.to_dict(), allow_nan=False))
    assert [run["name"] for run in content["runs"]] == [row.name for row in rows]
    for run in content["runs"]:
        work = run["work"]
        if work and work["groups"]:
            assert work["batches_per_epoch"] == math.ceil(work["groups"] / work["batch_size"])
    assert len(content["differences"]) == math.comb(sum(row.work is not None for row in rows), 2)
