"""The provenance record of the commands."""

from pathlib import Path

from ptycho_torch.commands.provenance import make_provenance
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.data.scan import Scan


def make_config(folder: Path) -> TrainConfig:
    return TrainConfig(train_data_file=(folder / "scan.npz",), output_dir=folder / "model", seed=7)


def test_record_does_not_depend_on_the_folder(tmp_path: Path, scan: Scan) -> None:
    first, second = (
        make_provenance("train", make_config(tmp_path / name), scans=[scan], precision="fp32") for name in ("a", "b")
    )
    assert first == second
    assert first["config"]["train_data_file"] == ["scan.npz"]
    assert "output_dir" not in first["config"]
    assert first["scans"] == [{"name": "scan", "digest": scan.digest()}]
    assert (first["command"], first["seed"], first["precision"]) == ("train", 7, "fp32")


def test_record_of_a_model_contains_all_settings_as_given(tmp_path: Path) -> None:
    record = make_provenance("train", make_config(tmp_path), portable=False, epochs=3)
    assert record["config"]["output_dir"] == str(tmp_path / "model")
    assert record["epochs"] == 3
