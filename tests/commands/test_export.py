"""The command export, and inference with the exported network."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ptycho_torch.data.scan import Scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.io.scan import save_scan
from ptycho_torch.models import onnx as exporting
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NETWORKS, NetworkConfig

Command = Callable[..., Any]

MULTI_PART = sorted(name for name, preset in NETWORKS.items() if preset.cascades or preset.object_stages)
"""Networks with physics between learned parts."""


def make_inference_arguments(model: Path, scan: Path, folder: Path, *more: str | Path) -> list[str]:
    arguments = ["--model_path", model, "--test_data", scan, "--output_dir", folder, "--quiet", "--no_report", *more]
    return [str(word) for word in arguments]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, run_process: Command) -> Path:
    """Export a model by the command in a separate process."""
    path = tmp_path_factory.mktemp("exported") / "a model.onnx"
    done = run_process("-m", "ptycho_torch.export", model_folder, "--output", path)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^onnxruntime and torch differ by \d\.\de-\d+ at most$", done.out, re.MULTILINE)
    assert done.out.splitlines()[-1].startswith(f"{path}: written")
    assert list(path.parent.iterdir()) == [path]
    return path


def test_file_is_valid_onnx_and_describes_its_content(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["size"] == "24"
    assert [opset.version for opset in model.opset_import if not opset.domain] == [int(metadata["opset"])]
    assert {"input channels", "output object", "network", "head", "photons_per_unit", "probe_sha256"} <= set(metadata)
    assert {"ptycho_torch", "torch"} <= set(metadata)  # versions
    assert b".py" not in exported.read_bytes()  # the exporter records paths of source files


def test_equal_models_give_equal_bytes(exported: Path, tmp_path: Path, model_folder: Path, run_main: Command) -> None:
    arguments = (model_folder, "--output", tmp_path / "again.onnx", "--quiet")
    assert run_main("export", *arguments) == (0, "", "")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_output_of_a_pattern_does_not_depend_on_the_batch(exported: Path) -> None:
    """For several batch sizes, computed by onnxruntime without this package."""
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (channels,) = session.get_inputs()
    assert channels.shape[2:] == [24, 24]
    patterns = np.random.default_rng(0).normal(size=(65, *channels.shape[1:])).astype(np.float32)
    alone = np.concatenate([session.run(None, {channels.name: pattern[None]})[0] for pattern in patterns])
    assert np.ptp(alone) > 0.01
    for count in (2, 7, 64, 65):
        (together,) = session.run(None, {channels.name: patterns[:count]})
        np.testing.assert_allclose(together, alone[:count], atol=1e-5)


@pytest.mark.parametrize("modes", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(
    "config",
    [
        *(NetworkConfig(name, width=4) for name in sorted(set(NETWORKS) - set(MULTI_PART))),
        NetworkConfig(width=4, probe_channel=True),
    ],
    ids=lambda config: config.name + config.probe_channel * " with probe channel",
)
def test_onnxruntime_equals_torch_for_every_network(config: NetworkConfig, modes: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    probe = 10 * torch.randn(modes, 32, 32, dtype=torch.complex64, generator=generator)
    model = PtychoModel(config, probe).eval()
    with torch.no_grad():
        for weights in model.network.parameters():  # the zero-initialized last layer hides the other layers
            weights += 0.05 * torch.randn(weights.shape, generator=generator)
        patterns = 10 * torch.rand(5, 32, 32, generator=generator), probe.expand(5, -1, -1, -1)
        expected = model.network(*patterns)
        assert expected.abs().std() > 0.01
        assert exporting.export_network(tmp_path / "model.onnx", model, {}) < 1e-4
        exporting.load_onnx_network(model, tmp_path / "model.onnx")
        torch.testing.assert_close(model.network(*patterns), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MULTI_PART)
def test_network_with_several_learned_parts_is_refused(
    name: str, tmp_path: Path, train_model: Callable[..., Path], run_main: Command
) -> None:
    model = train_model(tmp_path / "model", network=name, max_epochs=0)
    code, out, err = run_main("export", model, "--output", tmp_path / "model.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"network {name}: has 2 learned parts" in err
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("settings", [(), ("--gridsize", "2", "--batch_size", "5"), ("--n_images", "1")])
def test_reconstruction_equals_the_reconstruction_by_torch(
    settings: tuple[str, ...], exported: Path, tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    results = {}
    for name, more in (("torch", ("--device", "cpu", "--precision", "fp32")), ("onnx", ("--onnx", exported))):
        arguments = make_inference_arguments(model_folder, scan_file, tmp_path / name, *more, *settings)
        assert run_main("inference", *arguments) == (0, "", "")
        results[name] = load_reconstruction(tmp_path / name / "reconstruction.npz")
    assert np.abs(results["torch"].object - 1).max() > 0.05
    np.testing.assert_allclose(results["onnx"].object, results["torch"].object, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(results["onnx"].coverage, results["torch"].coverage)
    assert "onnxruntime" in results["onnx"].metadata["method"]
    assert "onnxruntime" not in results["torch"].metadata["method"]


def test_torch_computes_no_layer_of_the_network(
    exported: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("torch computed a convolution")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", refuse)
    arguments = make_inference_arguments(model_folder, scan_file, tmp_path / "r", "--onnx", exported)
    assert run_main("inference", *arguments) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "--output", "x.onnx"), "no model bundle"),
        (("mine", "--output", "x.onnx"), "no model bundle"),
        (("MODEL",), "--output missing"),
        (("--output", "x.onnx"), "MODEL_PATH missing"),
        (("MODEL", "--output", "model.safetensors"), "the suffix .onnx"),
        (("MODEL", "--output", ""), "--output: an empty path"),
        (("MODEL", "--output", "none/x.onnx"), "cannot be written"),
        (("MODEL", "--output", "folder.onnx"), "cannot be written"),
        (("none", "--output", "mine.onnx"), "no model bundle"),
    ],
)
def test_bad_input_gives_one_line_and_changes_no_file(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    model_folder: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("mine")
    Path("mine.onnx").write_text("mine")
    Path("folder.onnx").mkdir()
    code, out, err = run_main("export", *(model_folder if word == "MODEL" else word for word in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("export: ")
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.onnx", "folder.onnx"}
    assert Path("mine.onnx").read_text() == "mine"
    assert not list(Path("folder.onnx").iterdir())


def test_existing_file_is_replaced(exported: Path, tmp_path: Path, model_folder: Path, run_main: Command) -> None:
    (tmp_path / "model.onnx").write_text("earlier content")
    assert run_main("export", model_folder, "--output", tmp_path / "model.onnx", "--quiet").code == 0
    assert (tmp_path / "model.onnx").read_bytes() == exported.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_wrong_result_of_the_runtime_is_an_error(
    tmp_path: Path, model_folder: Path, run_main: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = exporting.OnnxNetwork.forward
    monkeypatch.setattr(exporting.OnnxNetwork, "forward", lambda self, channels: forward(self, channels) + 2e-4)
    code, out, err = run_main("export", model_folder, "--output", tmp_path / "model.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "onnxruntime and torch differ" in err
    assert not list(tmp_path.iterdir())


def change_one_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_one_byte, "changed after its export"),
        (lambda content: content.replace(b"stepped_unet", b"stopped_unet"), "changed after its export"),
        (lambda content: content[:-1], "changed after its export"),
        (lambda content: content[:1000], "not a whole network"),
        (lambda _: b"", "not a whole network"),
        (lambda _: b"mine", "not a whole network"),
        (None, "cannot be read"),
    ],
)
def test_changed_file_is_refused(
    change: Callable[[bytes], bytes] | None,
    message: str,
    exported: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
) -> None:
    path = tmp_path / "model.onnx"
    if change:
        path.write_bytes(change(exported.read_bytes()))
    code, out, err = run_main(
        "inference", *make_inference_arguments(model_folder, scan_file, tmp_path / "r", "--onnx", path)
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert str(path) in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("size", "message"), [(32, "exported for patterns of 32 × 32 pixels"), (24, "another model")])
def test_file_of_another_model_is_refused(
    size: int,
    message: str,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    scan_factory: Callable[..., Scan],
    train_model: Callable[..., Path],
    run_main: Command,
) -> None:
    save_scan(tmp_path / "scan.npz", scan_factory(9, size))
    other = train_model(tmp_path / "other", train_data_file=tmp_path / "scan.npz", seed=1)
    path = tmp_path / "other.onnx"
    assert run_main("export", other, "--output", path, "--quiet").code == 0
    code, out, err = run_main(
        "inference", *make_inference_arguments(model_folder, scan_file, tmp_path / "r", "--onnx", path)
    )
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("setting", [("--precision", "bf16"), ("--device", "cuda"), ("--device", "mps")])
def test_device_or_precision_other_than_fp32_on_the_cpu_is_refused(
    setting: tuple[str, str], exported: Path, tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    arguments = make_inference_arguments(model_folder, scan_file, tmp_path / "r", "--onnx", exported, *setting)
    code, out, err = run_main("inference", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "expected fp32 on the CPU" in err


@pytest.mark.parametrize(
    ("command", "missing"), [("export", "onnxscript"), ("export", "onnx"), ("inference", "onnxruntime")]
)
def test_missing_package_is_named_with_its_install_command(
    command: str,
    missing: str,
    exported: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    shutil.copy(exported, tmp_path / "existing.onnx")
    arguments = {
        "export": [model_folder, "--output", tmp_path / "existing.onnx"],
        "inference": make_inference_arguments(model_folder, scan_file, tmp_path / "r", "--onnx", exported),
    }[command]
    code, out, err = run_main(command, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{missing} is not installed" in err
    assert "pip install 'ptycho-torch[export]'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["existing.onnx"]
    assert (tmp_path / "existing.onnx").read_bytes() == exported.read_bytes()
