"""What the runtime of training depends on: from measured runs to differences, fitted costs and a page of tables.

Nothing here runs, reads or writes anything: :mod:`ptycho_torch.sweep` does. Times are in seconds, sizes in bytes; an
image is a group that a training goes through once.
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
"""What a cost is fitted to besides start-up, the first first."""

WORK_SETTINGS = {"max_epochs", "n_images", "batch_size", "seed"}
"""Settings that leave the cost of an image as it is. Runs that differ in others are not fitted together."""

CONFIDENCE_LEVEL = 0.95
"""Chance with which the true cost lies in the range that is told."""

TIMING_STAGES = ("load", "prepare", "train", "save", "pictures")
"""The stages of ``timing.json``, in order."""


@dataclass(frozen=True)
class TrainingWork:
    """What a complete training did."""

    epochs: int
    """Passes over the groups."""

    groups: int | None
    """Images an epoch; None where there was no epoch."""

    batch_size: int
    """Groups a batch."""

    loss: float | None
    """Training loss of the last epoch."""

    stages: dict[str, float]
    """Seconds by stage, as in ``timing.json``."""

    @property
    def batches_per_epoch(self) -> int | None:
        """All batches but one are full: :func:`ptycho_torch.data.grouping.make_compact_batches`."""
        return None if self.groups is None else math.ceil(self.groups / self.batch_size)

    def count_units(self, term: str) -> int:
        """How many images, epochs or batches were gone through in all."""
        each = {"image": self.groups, "epoch": 1, "batch": self.batches_per_epoch}[term]
        return self.epochs * (each or 0)


@dataclass(frozen=True)
class RunRecord:
    """One run of the sweep."""

    name: str
    """Its folder under ``runs/``."""

    settings: dict[str, str]
    """What was asked for, by the names of train's settings."""

    command: str
    """The command line, to be typed as it stands."""

    exit_code: int
    """What the process returned; minus the signal's number where a signal ended it."""

    failure: str | None
    """Why there is no result; None where there is."""

    wall_seconds: float
    cpu_seconds: float

    peak_bytes: int | None
    """Largest resident memory; None where it could not be seen."""

    files: dict[str, int]
    """Size of each file that the run left, before bulky ones were removed."""

    work: TrainingWork | None
    """What was done; None where the run failed."""


@dataclass(frozen=True)
class RunDifference:
    """The second of two runs less the first."""

    runs: tuple[str, str]
    settings: dict[str, tuple[str | None, str | None]]
    """Settings in which they differ, None for one that was not typed."""

    wall_seconds: float
    amounts: dict[str, int]
    """Difference in images, epochs and batches gone through, by :data:`COST_TERMS`."""

    reading: str | None
    """What the difference says by itself; None where more than one thing changed."""


@dataclass(frozen=True)
class CostEstimate:
    """What one image, epoch or batch takes, or the start."""

    name: str
    seconds: float
    margin: float
    """Half the width of the 95 % range."""

    remark: str | None
    """What is wrong with it."""


@dataclass(frozen=True)
class RuntimeFit:
    """Wall time as start-up and a cost for each image, epoch and batch, by least squares."""

    settings: dict[str, str]
    """What all of these runs share besides the amount of work."""

    runs: list[str]
    costs: list[CostEstimate]
    residual_seconds: float | None
    """What the runs stray from the fit by: root of the squares' sum over the runs beyond the number of costs."""

    left_out: dict[str, str]
    """Costs that are not fitted, and why."""


@dataclass(frozen=True)
class RuntimeReport:
    """A sweep as far as it has come."""

    scan: str
    """The scan file as it was typed."""

    profile: dict[str, Any]
    """Its arrays, axis order, measurement and violations, found from the headers."""

    observations: list[str]
    """What that says on dtype and orientation."""

    machine: dict[str, Any]
    """What the times depend on besides the settings."""

    limit: float
    """Seconds after which a run was stopped."""

    planned: int
    """Runs in all."""

    rows: list[RunRecord]

    def to_dict(self) -> dict[str, Any]:
        """All that was found, as JSON can hold it."""
        content = dataclasses.asdict(self)
        del content["rows"]
        content["runs"] = [_convert_row(row) for row in self.rows]
        content["differences"] = [dataclasses.asdict(found) for found in compute_differences(self.rows)]
        content["fits"] = [dataclasses.asdict(found) for found in fit_costs(self.rows)]
        return content

    def to_markdown(self) -> str:
        """The same for people, with tables."""
        return "\n".join(_format_page(self)) + "\n"


def _convert_row(row: RunRecord) -> dict[str, Any]:
    content = dataclasses.asdict(row)
    if row.work:
        content["work"]["batches_per_epoch"] = row.work.batches_per_epoch
    return content


def compute_differences(rows: Sequence[RunRecord]) -> list[RunDifference]:
    """Every pair of the runs that were complete, in order."""
    done = [(row, row.work) for row in rows if row.work]
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
        for (first, before), (second, after) in combinations(done, 2)
    ]


def _interpret_difference(first: RunRecord, before: TrainingWork, second: RunRecord, after: TrainingWork) -> str | None:
    """What a difference says where one thing alone changed."""
    if _make_workload_key(first) != _make_workload_key(second):
        return None
    changed = [name for name in ("epochs", "batch_size") if getattr(before, name) != getattr(after, name)]
    if before.groups != after.groups and None not in (before.groups, after.groups):
        changed.append("groups")
    if not changed:
        return "the same work: this is how far times stray"
    term = {"epochs": "epoch", "batch_size": "batch", "groups": "image"}[changed[0]]
    amount = after.count_units(term) - before.count_units(term)
    if len(changed) > 1 or not amount:
        return None
    each = (second.wall_seconds - first.wall_seconds) / amount
    lost = ", negative: less than times stray by" if each < 0 else ""
    return f"{_format_seconds(each)} a{'n' if term[0] in 'ei' else ''} {term}{lost}"


def _make_workload_key(row: RunRecord) -> tuple[tuple[str, str], ...]:
    """What a run does, apart from how much of it."""
    return tuple(sorted(item for item in row.settings.items() if item[0] not in WORK_SETTINGS))


def fit_costs(rows: Sequence[RunRecord]) -> list[RuntimeFit]:
    """A fit for each kind of work among the runs that were complete."""
    kinds: dict[tuple[tuple[str, str], ...], list[RunRecord]] = {}
    for row in rows:
        if row.work:
            kinds.setdefault(_make_workload_key(row), []).append(row)
    return [_fit_runs(dict(kind), members) for kind, members in kinds.items()]


def _fit_runs(settings: dict[str, str], rows: list[RunRecord]) -> RuntimeFit:
    """As many costs as the runs tell apart and leave one run over for, so that the residual says something."""
    works = [row.work for row in rows if row.work]
    columns = {term: np.array([work.count_units(term) for work in works], dtype=np.float64) for term in COST_TERMS}
    columns[STARTUP_TERM] = np.ones(len(works))
    fitted, left_out = [STARTUP_TERM], {}
    for term in COST_TERMS:
        if not _are_independent([columns[name] for name in (*fitted, term)]):
            left_out[term] = f"in these runs it goes along with {' and '.join(fitted)}"
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
    """Costs with their ranges, and the residual. ``columns`` are independent and fewer than the runs."""
    from scipy.special import stdtrit

    scales = np.array([column.max() for column in columns.values()])
    matrix = np.stack(list(columns.values()), axis=1) / scales
    found, *_ = np.linalg.lstsq(matrix, wall, rcond=None)
    degrees_of_freedom = len(wall) - len(columns)
    residual = math.sqrt(float(np.square(wall - matrix @ found).sum()) / degrees_of_freedom)
    deviations = residual * np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix)))
    margins = deviations * float(
        stdtrit(degrees_of_freedom, (1 + CONFIDENCE_LEVEL) / 2)
    )  # few runs say little about their own scatter
    costs = zip(columns, (found / scales).tolist(), (margins / scales).tolist(), strict=True)
    return [CostEstimate(name, cost, margin, _make_remark(cost, margin)) for name, cost, margin in costs], residual


def _make_remark(cost: float, margin: float) -> str | None:
    if abs(cost) <= margin:
        return "not told apart from zero by these runs"
    return "negative, which no cost is: these runs differ in something else" if cost < 0 else None


def describe_headers(profile: Profile) -> list[str]:
    """What a scan file's headers say on dtype and orientation, and what the reader makes of them."""
    order, kind = profile.axis_order, profile.measurement
    lines = [
        f"{key} is {array['dtype']} of shape ({', '.join(map(str, array['shape']))})"
        for key, array in sorted(profile.arrays.items())
        if array["dtype"].lstrip("<>|=")[:1] != "U"
    ]
    lines.append(f"axis order {order['order'] or 'open'}: {order['reason']}")
    lines.append(f"measurement {kind['kind'] or 'open'}: {kind['reason']}")
    violations = [f"{found['level']} {found['rule']}: {found['message']}" for found in profile.violations]
    return lines + (violations or ["nothing to convert: it is in the canonical layout"])


def _format_page(scope: RuntimeReport) -> Iterator[str]:
    failed = sum(row.failure is not None for row in scope.rows)
    yield "# What the runtime of training depends on"
    yield ""
    yield (
        f"{len(scope.rows)} of {scope.planned} runs on `{scope.scan}`, each a process of its own"
        f"{f'; {failed} failed' if failed else ''}. Times are in seconds, an image is a group gone through once, and a "
        f"run is stopped at {scope.limit:g} s. Whatever else ran on the machine meanwhile is in the times."
    )
    yield ""
    yield from _format_table(
        ("what", "value"), sorted((name, _format_value(value)) for name, value in scope.machine.items())
    )
    for title, lines in (
        ("Runs", _format_runs(scope.rows)),
        ("Stages", _format_stages(scope.rows)),
        ("Commands", _format_commands(scope.rows)),
        ("Files", _format_files(scope.rows)),
        ("Differences", _format_differences(scope.rows)),
        ("Costs", _format_costs(scope.rows)),
        ("The scan file", (f"- {line}" for line in scope.observations)),
    ):
        yield from ("", f"## {title}", "", *lines)


def _format_runs(rows: Sequence[RunRecord]) -> Iterator[str]:
    head = ("run", "settings", "outcome", "wall", "CPU", "peak MiB", "epochs", "images an epoch", "batches an epoch")
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
    """Seconds of each stage; the rest of the wall time is the interpreter and its imports."""
    done = [(row, row.work) for row in rows if row.work]
    if not done:
        yield "No run was complete."
        return
    stages = [name for name in TIMING_STAGES if any(name in work.stages for _, work in done)]
    yield from _format_table(
        ("run", *stages, "outside of them"),
        (
            (
                row.name,
                *(f"{work.stages[name]:.2f}" if name in work.stages else None for name in stages),
                f"{row.wall_seconds - sum(work.stages.values()):.2f}",
            )
            for row, work in done
        ),
    )
    yield ""
    yield "Outside of the stages lie the start of Python, imports, and the end of the process."


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
    found = compute_differences(rows)
    if not found:
        yield "Fewer than two runs were complete, so there is nothing to compare."
        return
    yield from _format_table(
        ("runs", "what differs", "wall", "images", "epochs", "batches", "reads as"),
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
            for pair in found
        ),
    )


def _format_costs(rows: Sequence[RunRecord]) -> Iterator[str]:
    found = fit_costs(rows)
    if not found:
        yield "No run was complete, so there is nothing to fit."
    for number, fit in enumerate(found):
        if number:
            yield ""
        runs = f"{'Run' if len(fit.runs) == 1 else 'Runs'} {', '.join(fit.runs)} ({_format_settings(fit.settings) or 'defaults'})"
        if fit.costs:
            yield f"{runs}: wall time by least squares, residual {fit.residual_seconds:.3f} s."
            yield ""
            yield from _format_table(("of", "seconds", "± (95 %)", "remark"), map(_format_cost_cells, fit.costs))
        else:
            yield f"{runs}: no fit, because the runs are too few or too much alike."
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
