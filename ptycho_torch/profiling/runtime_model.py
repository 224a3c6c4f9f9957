"""Runtime model of a training: differences between measured runs, fitted costs, and a page of tables.

This module neither runs a training nor accesses files; the command ``sweep`` does. Times are in seconds, sizes in
bytes. An image is one group in one epoch.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho_torch.data.profile import Profile

STARTUP_TERM = "start-up"
COST_TERMS = ("image", "epoch", "batch")
"""Amounts of work with a fitted cost, in the order in which they are added to the model; start-up comes first."""

WORK_SETTINGS = {"max_epochs", "n_images", "batch_size", "seed"}
"""Settings that do not change the cost per image. Runs that differ in other settings are fitted separately."""

CONFIDENCE_LEVEL = 0.95
"""Probability that the reported interval contains the true cost."""

TIMING_STAGES = ("load", "prepare", "train", "save", "pictures")
"""The stages of ``timing.json``, in order."""


@dataclass(frozen=True)
class TrainingWork:
    """Amount of work of a complete training."""

    epochs: int
    """Passes over the groups."""

    groups: int | None
    """Images per epoch; None without an epoch."""

    batch_size: int
    """Groups per batch."""

    loss: float | None
    """Training loss of the last epoch; None without an epoch."""

    stages: dict[str, float]
    """Seconds by stage, as in ``timing.json``."""

    @property
    def batches_per_epoch(self) -> int | None:
        """Batches per epoch, at most one of which is smaller than ``batch_size``."""
        return None if self.groups is None else math.ceil(self.groups / self.batch_size)

    def count_units(self, term: str) -> int:
        """Return the total number of images, epochs or batches."""
        per_epoch = {"image": self.groups, "epoch": 1, "batch": self.batches_per_epoch}[term]
        return self.epochs * (per_epoch or 0)


@dataclass(frozen=True)
class RunRecord:
    """One run of the sweep."""

    name: str
    """Name of its folder under ``runs/``."""

    settings: dict[str, str]
    """Given settings of the command ``train``."""

    command: str
    """Complete command line."""

    exit_code: int
    """Exit code; the negative signal number if a signal ended the process."""

    failure: str | None
    """Reason for a missing result; None for a complete run."""

    wall_seconds: float
    cpu_seconds: float

    peak_bytes: int | None
    """Largest resident memory; None if it could not be measured."""

    files: dict[str, int]
    """Size of each file of the run, before large ones are removed."""

    work: TrainingWork | None
    """Amount of work; None if the run failed."""


@dataclass(frozen=True)
class RunDifference:
    """Difference between two runs: the second minus the first."""

    runs: tuple[str, str]
    settings: dict[str, tuple[str | None, str | None]]
    """Settings in which the runs differ; None for a setting that was not given."""

    wall_seconds: float
    amounts: dict[str, int]
    """Difference in images, epochs and batches, by :data:`COST_TERMS`."""

    reading: str | None
    """Cost that follows from the difference; None if several amounts changed."""


@dataclass(frozen=True)
class CostEstimate:
    """Estimated time per image, epoch or batch, or of the start-up."""

    name: str
    seconds: float
    margin: float
    """Half the width of the 95 % confidence interval."""

    remark: str | None
    """Reason for doubt; None if there is none."""


@dataclass(frozen=True)
class RuntimeFit:
    """Least-squares fit of the wall time: start-up and a cost per image, epoch and batch."""

    settings: dict[str, str]
    """Settings that all runs of the fit share, except the amount of work."""

    runs: list[str]
    costs: list[CostEstimate]
    residual_seconds: float | None
    """Standard deviation of the residuals, with the number of costs subtracted from the number of runs."""

    left_out: dict[str, str]
    """Costs that are not fitted, with the reason."""


@dataclass(frozen=True)
class RuntimeReport:
    """Results of a sweep, complete or in progress."""

    scan: str
    """Path of the scan file as given."""

    profile: dict[str, Any]
    """Arrays, axis order, measurement and violations of the file, from its headers."""

    observations: list[str]
    """Sentences about the dtypes and the orientation of the file."""

    machine: dict[str, Any]
    """Hardware, versions and thread settings that the times depend on."""

    limit: float
    """Time limit per run in seconds."""

    planned: int
    """Number of planned runs."""

    rows: list[RunRecord]

    def to_dict(self) -> dict[str, Any]:
        """Return all results as JSON."""
        content = dataclasses.asdict(self)
        del content["rows"]
        content["runs"] = [_convert_row(row) for row in self.rows]
        content["differences"] = [dataclasses.asdict(difference) for difference in compute_differences(self.rows)]
        content["fits"] = [dataclasses.asdict(fit) for fit in fit_costs(self.rows)]
        return content

    def to_markdown(self) -> str:
        """Return all results as a Markdown page with tables."""
        return "\n".join(_format_page(self)) + "\n"


def _convert_row(row: RunRecord) -> dict[str, Any]:
    content = dataclasses.asdict(row)
    if row.work:
        content["work"]["batches_per_epoch"] = row.work.batches_per_epoch
    return content


def compute_differences(rows: Sequence[RunRecord]) -> list[RunDifference]:
    """Return the difference of every pair of complete runs, in order."""
    complete = [(row, row.work) for row in rows if row.work]
    return [
        RunDifference(
            runs=(first.name, second.name),
            settings={
                name: (first.settings.get(name), second.settings.get(name))
                for name in sorted(first.settings.keys() | second.settings.keys())
                if first.settings.get(name) != second.settings.get(name)
            },
            wall_seconds=round(second.wall_seconds - first.wall_seconds, 3),
            amounts={term: after.count_units(term) - before.count_units(term) for term in COST_TERMS},
            reading=_interpret_difference(first, before, second, after),
        )
        for (first, before), (second, after) in combinations(complete, 2)
    ]


def _interpret_difference(first: RunRecord, before: TrainingWork, second: RunRecord, after: TrainingWork) -> str | None:
    """Return the cost that follows from a difference in a single amount of work, as text."""
    if _make_workload_key(first) != _make_workload_key(second):
        return None
    changed = [name for name in ("epochs", "batch_size") if getattr(before, name) != getattr(after, name)]
    if before.groups != after.groups and None not in (before.groups, after.groups):
        changed.append("groups")
    if not changed:
        return "the same work: the difference is the scatter of the times"
    term = {"epochs": "epoch", "batch_size": "batch", "groups": "image"}[changed[0]]
    amount = after.count_units(term) - before.count_units(term)
    if len(changed) > 1 or not amount:
        return None
    cost = (second.wall_seconds - first.wall_seconds) / amount
    remark = ", negative: below the scatter of the times" if cost < 0 else ""
    return f"{_format_seconds(cost)} per {term}{remark}"


def _make_workload_key(row: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the settings of a run except the amount of work."""
    return tuple(sorted(item for item in row.settings.items() if item[0] not in WORK_SETTINGS))


def fit_costs(rows: Sequence[RunRecord]) -> list[RuntimeFit]:
    """Fit the costs of the complete runs, separately for each workload."""
    workloads: dict[tuple[tuple[str, str], ...], list[RunRecord]] = {}
    for row in rows:
        if row.work:
            workloads.setdefault(_make_workload_key(row), []).append(row)
    return [_fit_runs(dict(settings), members) for settings, members in workloads.items()]


def _fit_runs(settings: dict[str, str], rows: list[RunRecord]) -> RuntimeFit:
    """Fit as many costs as the runs determine with at least one degree of freedom left for the residual."""
    works = [row.work for row in rows if row.work]
    columns = {term: np.array([work.count_units(term) for work in works], dtype=np.float64) for term in COST_TERMS}
    columns[STARTUP_TERM] = np.ones(len(works))
    fitted, left_out = [STARTUP_TERM], {}
    for term in COST_TERMS:
        if not _are_independent([columns[name] for name in (*fitted, term)]):
            left_out[term] = f"in these runs it is proportional to {' and '.join(fitted)}"
        elif len(rows) < len(fitted) + 2:
            left_out[term] = f"{len(fitted) + 1} costs need {len(fitted) + 2} runs, and there are {len(rows)}"
        else:
            fitted.append(term)
    names = [row.name for row in rows]
    if len(fitted) == 1:
        return RuntimeFit(settings, names, [], None, left_out)
    wall = np.array([row.wall_seconds for row in rows])
    costs, residual = _solve_least_squares({name: columns[name] for name in fitted}, wall)
    return RuntimeFit(settings, names, costs, residual, left_out)


def _are_independent(columns: list[NDArray[np.float64]]) -> bool:
    matrix = np.stack([column / max(column.max(), 1.0) for column in columns], axis=1)
    return int(np.linalg.matrix_rank(matrix)) == len(columns)


def _solve_least_squares(
    columns: Mapping[str, NDArray[np.float64]], wall: NDArray[np.float64]
) -> tuple[list[CostEstimate], float]:
    """Return the costs with their confidence intervals, and the residual.

    Args:
        columns: amounts of work by cost, each (runs,); independent, and fewer than the runs.
        wall: (runs,) wall times.
    """
    from scipy.special import stdtrit

    scales = np.array([column.max() for column in columns.values()])
    matrix = np.stack(list(columns.values()), axis=1) / scales
    solution, *_ = np.linalg.lstsq(matrix, wall, rcond=None)
    degrees_of_freedom = len(wall) - len(columns)
    residual = math.sqrt(float(np.square(wall - matrix @ solution).sum()) / degrees_of_freedom)
    deviations = residual * np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix)))
    # Student's t distribution, because few runs estimate their own scatter poorly.
    margins = deviations * float(stdtrit(degrees_of_freedom, (1 + CONFIDENCE_LEVEL) / 2))
    costs = zip(columns, (solution / scales).tolist(), (margins / scales).tolist(), strict=True)
    return [CostEstimate(name, cost, margin, _make_remark(cost, margin)) for name, cost, margin in costs], residual


def _make_remark(cost: float, margin: float) -> str | None:
    if abs(cost) <= margin:
        return "not significantly different from zero"
    return "negative, which is impossible: these runs differ in another respect" if cost < 0 else None


def describe_headers(profile: Profile) -> list[str]:
    """Return sentences on the dtypes and the orientation of a scan file, and on their interpretation by the reader."""
    order, kind = profile.axis_order, profile.measurement
    lines = [
        f"{key} is {array['dtype']} of shape ({', '.join(map(str, array['shape']))})"
        for key, array in sorted(profile.arrays.items())
        if array["dtype"].lstrip("<>|=")[:1] != "U"
    ]
    lines.append(f"axis order {order['order'] or 'open'}: {order['reason']}")
    lines.append(f"measurement {kind['kind'] or 'open'}: {kind['reason']}")
    violations = [f"{item['level']} {item['rule']}: {item['message']}" for item in profile.violations]
    return lines + (violations or ["the file is in the canonical layout"])


def _format_page(report: RuntimeReport) -> Iterator[str]:
    failed = sum(row.failure is not None for row in report.rows)
    yield "# Runtime of training"
    yield ""
    yield (
        f"{len(report.rows)} of {report.planned} runs on `{report.scan}`, each in a separate process"
        f"{f'; {failed} failed' if failed else ''}. Times are in seconds. An image is one group in one epoch. The time "
        f"limit per run is {report.limit:g} s. Other processes on the machine increase the times."
    )
    yield ""
    yield from _format_table(
        ("quantity", "value"), sorted((name, _format_value(value)) for name, value in report.machine.items())
    )
    for title, lines in (
        ("Runs", _format_runs(report.rows)),
        ("Stages", _format_stages(report.rows)),
        ("Commands", _format_commands(report.rows)),
        ("Files", _format_files(report.rows)),
        ("Differences", _format_differences(report.rows)),
        ("Costs", _format_costs(report.rows)),
        ("The scan file", (f"- {line}" for line in report.observations)),
    ):
        yield from ("", f"## {title}", "", *lines)


def _format_runs(rows: Sequence[RunRecord]) -> Iterator[str]:
    head = ("run", "settings", "outcome", "wall", "CPU", "peak MiB", "epochs", "images per epoch", "batches per epoch")
    yield from _format_table(
        (*head, "final loss"),
        (
            (
                row.name,
                _format_settings(row.settings),
                row.failure or "complete",
                f"{row.wall_seconds:.2f}",
                f"{row.cpu_seconds:.2f}",
                None if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
                work and work.epochs,
                work and work.groups,
                work and work.batches_per_epoch,
                None if not work or work.loss is None else f"{work.loss:.6g}",
            )
            for row, work in ((row, row.work) for row in rows)
        ),
    )


def _format_stages(rows: Sequence[RunRecord]) -> Iterator[str]:
    """Format the seconds of each stage; the rest of the wall time is the interpreter and its imports."""
    complete = [(row, row.work) for row in rows if row.work]
    if not complete:
        yield "No run is complete."
        return
    stages = [name for name in TIMING_STAGES if any(name in work.stages for _, work in complete)]
    yield from _format_table(
        ("run", *stages, "other"),
        (
            (
                row.name,
                *(f"{work.stages[name]:.2f}" if name in work.stages else None for name in stages),
                f"{row.wall_seconds - sum(work.stages.values()):.2f}",
            )
            for row, work in complete
        ),
    )
    yield ""
    yield "The column other is the start of Python, the imports, and the end of the process."


def _format_commands(rows: Sequence[RunRecord]) -> Iterator[str]:
    yield "```sh"
    for row in rows:
        yield f"# run {row.name}: exit {row.exit_code}"
        yield row.command
    yield "```"


def _format_files(rows: Sequence[RunRecord]) -> Iterator[str]:
    yield from _format_table(
        ("run", "file", "bytes"), ((row.name, name, size) for row in rows for name, size in sorted(row.files.items()))
    )


def _format_differences(rows: Sequence[RunRecord]) -> Iterator[str]:
    differences = compute_differences(rows)
    if not differences:
        yield "Fewer than two runs are complete: no comparison."
        return
    yield from _format_table(
        ("runs", "changed settings", "wall", "images", "epochs", "batches", "implied cost"),
        (
            (
                f"{pair.runs[1]} − {pair.runs[0]}",
                ", ".join(
                    f"{name} {old or 'default'} → {new or 'default'}" for name, (old, new) in pair.settings.items()
                ),
                f"{pair.wall_seconds:+.2f}",
                *(f"{pair.amounts[term]:+d}" for term in COST_TERMS),
                pair.reading,
            )
            for pair in differences
        ),
    )


def _format_costs(rows: Sequence[RunRecord]) -> Iterator[str]:
    fits = fit_costs(rows)
    if not fits:
        yield "No run is complete: no fit."
    for number, fit in enumerate(fits):
        if number:
            yield ""
        noun = "Run" if len(fit.runs) == 1 else "Runs"
        runs = f"{noun} {', '.join(fit.runs)} ({_format_settings(fit.settings) or 'defaults'})"
        if fit.costs:
            yield f"{runs}: wall time by least squares, residual {fit.residual_seconds:.3f} s."
            yield ""
            yield from _format_table(("cost", "seconds", "± (95 %)", "remark"), map(_format_cost_cells, fit.costs))
        else:
            yield f"{runs}: no fit, because there are too few different runs."
        if fit.left_out:
            yield ""
            yield from (f"- Not fitted, {term}: {reason}." for term, reason in fit.left_out.items())


def _format_cost_cells(cost: CostEstimate) -> tuple[str | None, ...]:
    name = cost.name if cost.name == STARTUP_TERM else f"one {cost.name}"
    return name, f"{cost.seconds:.4g}", f"{cost.margin:.2g}", cost.remark


def _format_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join('' if cell is None else str(cell).replace('|', chr(92) + '|') for cell in row)} |"


def _format_settings(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _format_value(value: object) -> str:
    return (_format_settings(value) or "none") if isinstance(value, dict) else str(value)


def _format_seconds(value: float) -> str:
    return f"{value:.3g} s"
