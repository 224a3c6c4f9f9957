"""Files appear whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from ptycho_torch.core.errors import ContractError, DataError, PtychoError
from ptycho_torch.core.files import atomic_write, make_output_dir, write_json, write_text
from ptycho_torch.core.timing import Clock


def test_a_failure_keeps_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    write_text(path, "old")

    def write_half() -> None:
        with atomic_write(path) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_remains_until_the_new_file_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result.npz"
    path.write_text("old")
    with atomic_write(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.suffix == ".npz", "writers choose the format by the suffix"
        assert aside.parent == path.parent, "renaming is atomic only within a file system"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_have_the_usual_permissions(tmp_path: Path) -> None:
    kept = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(kept)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("place", ["none/result.txt", "file/result.txt", "x" * 300])
def test_a_path_that_cannot_be_written_to_is_rejected(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_text(tmp_path / place, "")


def test_a_folder_at_the_path_of_the_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "result.txt").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_text(tmp_path / "result.txt", "")
    assert [path.name for path in tmp_path.iterdir()] == ["result.txt"]


def test_equal_values_give_equal_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [None, 0.1]})
    write_json(tmp_path / "b", {"y": [None, 0.1], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"x": 1, "y": [None, 0.1]}


def test_json_rejects_infinity_and_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_folders_are_created_with_their_parents(tmp_path: Path) -> None:
    assert make_output_dir(tmp_path / "a b" / "ü") == tmp_path / "a b" / "ü"
    assert make_output_dir(tmp_path / "a b" / "ü").is_dir(), "one that is there is fine"


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_created_is_rejected(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be created .*`output_dir`"):
        make_output_dir(tmp_path / place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DataError, match="cannot be written to"):
        make_output_dir(tmp_path / "closed")


def test_errors_share_a_base_class_and_name_their_rule() -> None:
    error = ContractError("R4", "diffraction is text")
    assert isinstance(error, DataError)
    assert isinstance(error, PtychoError)
    assert (error.rule, str(error)) == ("R4", "diffraction is text [contract R4]")


def test_the_clock_measures_each_stage() -> None:
    clock = Clock()
    clock.record("load")
    clock.record("train")
    assert list(clock.seconds) == ["load", "train"]
    assert all(0 <= seconds < 1 for seconds in clock.seconds.values())
