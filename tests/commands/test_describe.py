"""Command describe: exit codes, text and JSON."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import CommandOutcome

from ptycho_torch.commands import describe as describe_module
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.scan import save_scan

Describe = Callable[..., CommandOutcome]


@pytest.fixture
def describe(run_main: Callable[..., CommandOutcome]) -> Describe:
    """Runs the command in this process."""
    return lambda *words: run_main("describe", *words)


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    axis = np.arange(16) - 8
    envelope = np.exp(-(axis[:, None] ** 2 + axis**2) / 20)
    counts = rng.poisson(300 * envelope, (12, 16, 16))
    scan = Scan(
        amplitudes=np.sqrt(counts).astype(np.float32),
        positions=rng.uniform(10, 40, (12, 2)),
        probe=(envelope * (1 + 0.5j))[None].astype(np.complex64),
    )
    save_scan(tmp_path / "scan.npz", scan)
    return tmp_path / "scan.npz"


def test_valid_file_is_described_in_text_and_json(
    describe: Describe, run_process: Callable[..., CommandOutcome], scan_file: Path
) -> None:
    text = run_process("-m", "ptycho_torch.describe", scan_file)
    assert (text.code, text.err) == (0, "")
    for words in ("diffraction", "complex64", "axis order", "photons", "overlap", "keeps every rule"):
        assert words in text.out
    first, second = describe(scan_file, "--json"), describe("--json", scan_file)
    assert first.out == second.out
    profile = json.loads(first.out)
    assert profile["valid"]
    assert profile["file"] == "scan.npz"
    assert profile["photons"]["per_unit"] == 1
    assert profile["axis_order"]["order"] == "nhw"
    assert str(scan_file.parent) not in first.out


def test_json_does_not_depend_on_the_folder(describe: Describe, scan_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "scan.npz").write_bytes(scan_file.read_bytes())
    assert describe(other / "scan.npz", "--json").out == describe(scan_file, "--json").out


def test_broken_file_is_described_with_exit_code_1(describe: Describe, scan_file: Path) -> None:
    with np.load(scan_file) as archive:
        arrays = dict(archive)
    arrays["xcoords"] = arrays["xcoords"][:-1]
    arrays["diffraction"][0, 0, 0] = np.nan
    np.savez(scan_file, **arrays)
    result = describe(scan_file)
    assert (result.code, result.err) == (1, "")
    assert "MUST   R9" in result.out
    assert "MUST   R11" in result.out
    assert "probeGuess" in result.out
    result = describe(scan_file, "--json")
    assert result.code == 1
    assert [v["rule"] for v in json.loads(result.out)["violations"] if v["level"] == "MUST"] == ["R9", "R11"]


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut short"])
def test_unreadable_file_gives_one_line_and_exit_code_2(
    describe: Describe, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "scan.npz"
    if content is not None:
        path.write_bytes(content)
    result = describe(path)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert str(path) in result.err


def test_no_stats_reads_headers_only(describe: Describe, scan_file: Path) -> None:
    result = describe(scan_file, "--no_stats")
    assert result.code == 0
    assert "mean" not in result.out
    assert "12 × 16 × 16" in result.out


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
def test_legacy_run1084_file_is_described_with_its_conversions(describe: Describe) -> None:
    result = describe(Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz", "--json")
    assert result.code == 0
    profile = json.loads(result.out)
    assert profile["axis_order"]["order"] == "hwn"
    assert profile["photons"]["origin"] == "lattice"
    assert profile["photons"]["per_pattern"] == pytest.approx(1e6, rel=1e-3)
    assert profile["object"]["on_grid"]
    assert {violation["rule"] for violation in profile["violations"]} == {"R22", "R23"}


def test_a_file_of_another_format_is_mapped_with_its_missing_settings(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "frames.npz"
    np.savez(path, data=rng.poisson(5, (4, 8, 8)).astype(np.uint16), scan=rng.uniform(0, 1e-6, (4, 2)))
    profile = describe_module.describe(path)
    assert not profile.valid
    assert "set `measurement`" in profile.violations[0]["message"]
    profile = describe_module.describe(path, measurement="counts", position_unit="meter")
    assert not profile.valid
    assert "`energy_ev`" in profile.violations[0]["message"]
    profile = describe_module.describe(path, measurement="counts", position_unit="meter", pixel_size=1e-8)
    assert profile.valid
    assert profile.input is not None
    places = {entry["field"]: entry["path"] for entry in profile.input["mapping"]}
    assert places["patterns"] == "data"
    assert places["positions"] == "scan"
    text = describe_module.format_profile(profile)
    assert "object pixel 10 × 10 nm" in text
    assert "set `distance`" in text


def test_a_finding_that_excludes_loading_does_not_keep_the_contract(scan_file: Path) -> None:
    with np.load(scan_file) as archive:
        arrays = dict(archive)
    arrays["mask"] = np.zeros((16, 16), bool)
    arrays["mask"][0, :2] = True
    np.savez(scan_file, **arrays)
    profile = describe_module.describe(scan_file)
    text = describe_module.format_profile(profile)
    assert not profile.valid
    assert "keeps every rule" not in text
    assert "R30" in text
    assert "`invert_mask`" in text
