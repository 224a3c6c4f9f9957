"""The provenance record of the commands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ptycho_torch
from ptycho_torch.commands.pretrain import pretrain
from ptycho_torch.commands.provenance import COMMON_ENTRIES, add_provenance, make_provenance
from ptycho_torch.config.engines import PIE
from ptycho_torch.config.pretrain import PretrainConfig
from ptycho_torch.config.reconstruct import ReconstructConfig
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.models.saved_model import load_model

Command = Callable[..., Any]
METADATA = {"method", "scan", "scan_digest", "seed", "positions"}
"""Metadata of every reconstruction."""


def make_config(folder: Path) -> TrainConfig:
    return TrainConfig(train_data_file=(folder / "scan.npz",), output_dir=folder / "model", seed=7)


def make_words(command: str, scan: Path, model: Path, folder: Path) -> list[str | Path]:
    """Return the arguments of a short run of ``inference`` or ``reconstruct``."""
    words: list[str | Path] = ["--output_dir", folder, "--device", "cpu", "--no_report", "--quiet"]
    if command == "inference":
        return ["--test_data", scan, "--model_path", model, *words]
    return [scan, *words, "--epochs", "1", "--then", f"neural:model_path={model}"]


@pytest.fixture(scope="module")
def pretrained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network after one step."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(PretrainConfig(output_dir=folder, size=32, width=4, steps=1, batch_size=4, device="cpu", logger="none"))
    return folder


def test_record_does_not_depend_on_the_folder(tmp_path: Path, scan: Scan) -> None:
    first, second = (
        make_provenance("train", make_config(tmp_path / name), scans=[scan], precision="fp32") for name in ("a", "b")
    )
    assert first == second
    assert first["config"]["train_data_file"] == ["scan.npz"]
    assert "output_dir" not in first["config"]
    assert first["scans"] == [{"name": "scan", "digest": scan.digest()}]
    assert (first["command"], first["seed"], first["precision"]) == ("train", 7, "fp32")


def test_record_contains_no_folder_from_text(tmp_path: Path) -> None:
    stages = (f"gradient:support={tmp_path}/support.npz,epochs=2", "pie")
    config = ReconstructConfig(
        scan=tmp_path / "scan.npz", output_dir=tmp_path, init_probe=f"{tmp_path}/probe.npz", then=stages
    )
    record = make_provenance("reconstruct", config)
    assert str(tmp_path) not in str(record)
    assert record["config"]["then"] == ["gradient:support=support.npz,epochs=2", "pie"]
    assert record["config"]["init_probe"] == "probe.npz"


def test_record_of_a_model_contains_all_settings_as_given(tmp_path: Path) -> None:
    record = make_provenance("train", make_config(tmp_path), portable=False, epochs=3)
    assert record["config"]["output_dir"] == str(tmp_path / "model")
    assert record["epochs"] == 3


@pytest.mark.parametrize("command", ["train", "pretrain", "inference", "reconstruct"])
def test_every_command_writes_the_common_entries(
    command: str,
    tmp_path: Path,
    scan: Scan,
    scan_file: Path,
    model_folder: Path,
    pretrained_folder: Path,
    run_main: Command,
) -> None:
    if command in ("train", "pretrain"):
        record = load_model(model_folder if command == "train" else pretrained_folder).provenance
    else:
        assert run_main(command, *make_words(command, scan_file, model_folder, tmp_path)).code == 0
        record = load_reconstruction(tmp_path / "reconstruction.npz").metadata
        assert record.keys() >= METADATA
        assert (record["scan"], record["scan_digest"]) == ("scan.npz", scan.digest())
        assert str(tmp_path) not in str(record)
    assert record.keys() >= set(COMMON_ENTRIES)
    assert (record["version"], record["command"]) == (ptycho_torch.__version__, command)
    assert record["precision"] in ("fp32", "bf16")
    assert [entry["digest"] for entry in record["scans"]] == ([] if command == "pretrain" else [scan.digest()])


@pytest.mark.parametrize("command", ["inference", "reconstruct"])
def test_equal_commands_give_equal_bytes(
    command: str, tmp_path: Path, scan_file: Path, model_folder: Path, run_main: Command
) -> None:
    for name in ("first", "second"):
        assert run_main(command, *make_words(command, scan_file, model_folder, tmp_path / name)).code == 0
    first, second = (tmp_path / name / "reconstruction.npz" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_result_in_memory_keeps_its_metadata(scan: Scan) -> None:
    result = PIE(epochs=1).run(scan, device="cpu", seed=3)
    config = ReconstructConfig(scan=Path("scan.npz"), output_dir=Path("result"), seed=3)
    recorded = add_provenance(result, "reconstruct", config, scan)
    assert result.metadata.items() <= recorded.metadata.items()
    assert "command" not in result.metadata
    np.testing.assert_array_equal(recorded.object, result.object)
