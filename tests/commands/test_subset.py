"""Command subset: from a large scan file to a small one with a record."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.npz import read_arrays
from ptycho_torch.io.scan import load_scan, save_scan

SCRIPT = Path(__file__).parents[2] / "scripts" / "tools" / "make_pytorch_integration_fixture.py"
COMMAND = ("-m", "ptycho_torch.subset")


@pytest.fixture
def source(tmp_path: Path, scan: Scan) -> Path:
    """Write a legacy scan file to a new folder."""
    path = tmp_path / "source.npz"
    save_scan(path, scan, "legacy")
    return path


def test_script_writes_subset_and_record(run_process: Callable[..., Any], source: Path) -> None:
    output = source.parent / "new" / "folder" / "fixture.npz"
    result = run_process(SCRIPT, "--source", source, "--output", output, "--subset-size", "16")
    assert (result.code, result.err) == (0, "")
    assert f"{output}: 16 of 36 patterns" in result.out
    record = json.loads(output.with_suffix(".json").read_text())
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    assert digest in result.out
    assert record["fixture"]["sha256"] == digest
    assert record["fixture"]["name"] == "fixture.npz"
    assert record["fixture"]["arrays"]["diffraction"] == {"shape": [16, 24, 24], "dtype": "float32"}
    assert record["source"]["name"] == "source.npz"
    assert record["source"]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert record["generator"]["name"] == "ptycho_torch.subset"
    assert record["strategy"] == {"name": "even", "subset_size": 16}
    assert record["contract"] == {"valid": True, "violations": []}
    assert any("(H, W, n)" in step for step in record["transformations"])
    index = load_scan(output).source_index
    assert index is not None
    assert record["indices"] == {"count": 16, "sha256": hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()}
    assert min(record["coverage"][axis] for axis in "yx") > 0.5
    assert record["groups"]["apart"] == 4


def test_bytes_do_not_depend_on_time_or_folder(
    run_main: Callable[..., Any], run_process: Callable[..., Any], source: Path
) -> None:
    folder = source.parent
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(source, elsewhere / source.name)
    os.utime(elsewhere / source.name, (1e9, 1e9))
    first = run_main("subset", "--source", source, "--output", folder / "f.npz", "--subset_size", "8")
    second = run_process(
        *COMMAND, "--source", source.name, "--output", "f.npz", "--subset_size", "8", cwd=elsewhere, TZ="Asia/Tokyo"
    )
    assert (first.code, second.code) == (0, 0)
    for name in ("f.npz", "f.json"):
        assert (folder / name).read_bytes() == (elsewhere / name).read_bytes(), name
        assert str(folder).encode() not in (folder / name).read_bytes()


def test_record_lists_crop_and_goes_to_metadata_out(
    run_main: Callable[..., Any], tmp_path: Path, scan_factory: Callable[..., Scan]
) -> None:
    save_scan(tmp_path / "source.npz", scan_factory(size=32, n=16))
    sidecar = tmp_path / "notes" / "made.json"
    words = ("--source", tmp_path / "source.npz", "--output", tmp_path / "f.npz", "--subset_size", "9")
    result = run_main("subset", *words, "--crop", "2", "--strategy", "seeded", "--seed", "3", "--metadata-out", sidecar)
    assert (result.code, result.err) == (0, "")
    record = json.loads(sidecar.read_text())
    assert any(step.startswith("crop 2") for step in record["transformations"])
    assert record["strategy"] == {"name": "seeded", "seed": 3, "subset_size": 9}
    assert load_scan(tmp_path / "f.npz").size == 16
    assert not (tmp_path / "f.json").exists()


def test_quiet_prints_nothing(run_main: Callable[..., Any], source: Path) -> None:
    words = ("--source", source, "--output", source.parent / "f.npz", "--subset_size", "8", "--quiet")
    assert run_main("subset", *words)[:3] == (0, "", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--subset_size", "7"), "at least 8"),
        (("--subset_size", "37"), "at most 36"),
        (("--subset_size", "0"), "above 0"),
        (("--strategy", "random"), "invalid choice"),
        (("--crop", "5"), "divisor"),
        (("--bin", "4"), "leave 6"),
        (("--bin", "2"), "of its power"),
        (("--output", "source.npz"), "the source itself"),
        (("--output", "./there/../source.npz"), "the source itself"),
        (("--output", "link.npz"), "the source itself"),
        (("--output", "hard.npz"), "the source itself"),
        (("--output", "there"), "is a folder"),
        (("--metadata_out", "there"), "is a folder"),
        (("--metadata_out", "f.npz"), "replace the fixture"),
        (("--metadata_out", "link.npz"), "replace the source"),
        (("--output", "f.json"), "replace the fixture"),
        (("--output", "source.npz/f.npz"), "cannot be"),
        (("--source", "none.npz"), "no such file"),
        (("--source", "broken.npz"), "[contract R11]"),
        (("--photons_per_unit", "-1"), "above 0"),
    ],
)
def test_bad_input_gives_one_line_and_changes_nothing(
    run_main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, source: Path, words: tuple[str, ...], message: str
) -> None:
    folder = source.parent
    monkeypatch.chdir(folder)
    (folder / "there").mkdir()
    (folder / "link.npz").symlink_to("source.npz")
    os.link(source, folder / "hard.npz")
    arrays = read_arrays(source)
    np.savez(folder / "broken.npz", **(arrays | {"xcoords": arrays["xcoords"][:-1]}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = run_main("subset", "--source", "source.npz", "--output", "f.npz", "--subset_size", "8", *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_errors_and_help_import_no_torch(run_process: Callable[..., Any]) -> None:
    code = "import sys; from ptycho_torch.subset import main; main(['--source', 'x']); print('torch' in sys.modules)"
    assert run_process("-c", code).out == "False\n"
    assert run_process(SCRIPT, "--help").code == 0


@pytest.mark.skipif("PTYCHO_TORCH_DATA" not in os.environ, reason="needs the data folder PTYCHO_TORCH_DATA")
def test_run1084_file_gives_a_deterministic_subset(run_main: Callable[..., Any], tmp_path: Path) -> None:
    source = Path(os.environ["PTYCHO_TORCH_DATA"]) / "run1084" / "Run1084_twin_legacy.npz"
    for name in ("a.npz", "b.npz"):
        assert run_main("subset", "--source", source, "--output", tmp_path / name).code == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["contract"]["valid"]
    assert record["photons"]["origin"] == "lattice"
    assert record["fixture"]["arrays"]["diffraction"]["shape"] == [64, 64, 64]
    assert min(record["coverage"][axis] for axis in "yx") > 0.9
    assert record["overlap"]["fixture"]["overlap"] > record["overlap"]["source"]["overlap"] - 0.02
    with np.load(source) as arrays:
        fixture = load_scan(tmp_path / "a.npz")
        np.testing.assert_array_equal(fixture.positions[:, 1], arrays["xcoords"][fixture.source_index])
        np.testing.assert_array_equal(
            fixture.amplitudes, np.moveaxis(arrays["diffraction"], 2, 0)[fixture.source_index].astype(np.float32)
        )
