"""python -m ptycho_torch.export, and inference by what it wrote, as people call them."""

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
from ptycho_torch.io.npz import save_scan
from ptycho_torch.io.reconstruction import load_reconstruction
from ptycho_torch.models import onnx as exporting
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NETWORKS, NetworkConfig

Command = Callable[..., Any]

IN_PARTS = sorted(name for name, made in NETWORKS.items() if made.cascades or made.object_stages)
"""Networks with physics between parts that learn."""


def inference_words(model: Path, scan: Path, folder: Path, *more: str | Path) -> list[str]:
    words = ["--model_path", model, "--test_data", scan, "--output_dir", folder, "--quiet", "--no_report", *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, run_process: Command) -> Path:
    """The file that one command wrote, in a process of its own."""
    path = tmp_path_factory.mktemp("exported") / "a model.onnx"
    done = run_process("-m", "ptycho_torch.export", model_folder, "--output", path)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^onnxruntime and torch differ by \d\.\de-\d+ at most$", done.out, re.MULTILINE)
    assert done.out.splitlines()[-1].startswith(f"{path}: written")
    assert list(path.parent.iterdir()) == [path]
    return path


def test_the_file_is_sound_and_says_what_it_is(exported: Path) -> None:
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    note = {entry.key: entry.value for entry in model.metadata_props}
    assert note["size"] == "24"
    assert [opset.version for opset in model.opset_import if not opset.domain] == [int(note["opset"])]
    assert {"input channels", "output object", "network", "head", "photons_per_unit", "probe_sha256"} <= set(note)
    assert {"ptycho_torch", "torch"} <= set(note)  # versions
    assert b".py" not in exported.read_bytes()  # the exporter's traces name files of the machine


def test_the_same_model_gives_the_same_bytes(
    exported: Path, tmp_path: Path, model_folder: Path, run_main: Command
) -> None:
    words = (model_folder, "--output", tmp_path / "again.onnx", "--quiet")
    assert run_main("export", *words) == (0, "", "")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_a_pattern_does_not_depend_on_its_company(exported: Path) -> None:
    """Any number of patterns at once, each with the result that it has alone; by onnxruntime and nothing of ours."""
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (channels,) = session.get_inputs()
    assert channels.shape[2:] == [24, 24]
    patterns = np.random.default_rng(0).normal(size=(65, *channels.shape[1:])).astype(np.float32)
    alone = np.concatenate([session.run(None, {channels.name: pattern[None]})[0] for pattern in patterns])
    assert np.ptp(alone) > 0.01
    for count in (2, 7, 64, 65):
        (together,) = session.run(None, {channels.name: patterns[:count]})
        np.testing.assert_allclose(together, alone[:count], atol=1e-5)


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize(
    "config",
    [
        *(NetworkConfig(name, width=4) for name in sorted(set(NETWORKS) - set(IN_PARTS))),
        NetworkConfig(width=4, probe_channel=True),
    ],
    ids=lambda config: config.name + config.probe_channel * " seeing the probe",
)
def test_every_network_by_onnxruntime_is_that_by_torch(config: NetworkConfig, modes: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    probe = 10 * torch.randn(modes, 32, 32, dtype=torch.complex64, generator=generator)
    model = PtychoModel(config, probe).eval()
    with torch.no_grad():
        for weights in model.network.parameters():  # the last layer starts at zero, which would hide the others
            weights += 0.05 * torch.randn(weights.shape, generator=generator)
        patterns = 10 * torch.rand(5, 32, 32, generator=generator), probe.expand(5, -1, -1, -1)
        expected = model.network(*patterns)
        assert expected.abs().std() > 0.01
        assert exporting.export_network(tmp_path / "model.onnx", model, {}) < 1e-4
        exporting.load_onnx_network(model, tmp_path / "model.onnx")
        torch.testing.assert_close(model.network(*patterns), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_network_with_physics_between_its_parts_is_refused(
    name: str, tmp_path: Path, train_model: Callable[..., Path], run_main: Command
) -> None:
    model = train_model(tmp_path / "model", network=name, max_epochs=0)
    code, out, err = run_main("export", model, "--output", tmp_path / "model.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"network {name}: has 2 learned parts" in err
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("settings", [(), ("--gridsize", "2", "--batch_size", "5"), ("--n_images", "1")])
def test_the_reconstruction_is_that_by_torch(
    settings: tuple[str, ...], exported: Path, tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    found = {}
    for name, more in (("torch", ("--device", "cpu", "--precision", "fp32")), ("onnx", ("--onnx", exported))):
        words = inference_words(model_folder, scan_file, tmp_path / name, *more, *settings)
        assert run_main("inference", *words) == (0, "", "")
        found[name] = load_reconstruction(tmp_path / name / "reconstruction.npz")
    assert np.abs(found["torch"].object - 1).max() > 0.05
    np.testing.assert_allclose(found["onnx"].object, found["torch"].object, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(found["onnx"].coverage, found["torch"].coverage)
    assert "onnxruntime" in found["onnx"].metadata["method"]
    assert "onnxruntime" not in found["torch"].metadata["method"]


def test_torch_computes_none_of_the_network(
    exported: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("torch was asked for a convolution")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", refuse)
    words = inference_words(model_folder, scan_file, tmp_path / "r", "--onnx", exported)
    assert run_main("inference", *words) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none", "--output", "x.onnx"), "no model bundle"),
        (("mine", "--output", "x.onnx"), "no model bundle"),
        (("MODEL",), "--output missing"),
        (("--output", "x.onnx"), "MODEL_PATH missing"),
        (("MODEL", "--output", "model.safetensors"), "ends in .onnx"),
        (("MODEL", "--output", ""), "--output: an empty path"),
        (("MODEL", "--output", "none/x.onnx"), "cannot be written"),
        (("MODEL", "--output", "folder.onnx"), "cannot be written"),
        (("none", "--output", "mine.onnx"), "no model bundle"),
    ],
)
def test_bad_input_is_one_line_and_leaves_all_as_it_was(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    model_folder: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("mine")
    Path("mine.onnx").write_text("mine")
    Path("folder.onnx").mkdir()
    code, out, err = run_main("export", *(model_folder if word == "MODEL" else word for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("export: ")
    assert said in err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.onnx", "folder.onnx"}
    assert Path("mine.onnx").read_text() == "mine"
    assert not list(Path("folder.onnx").iterdir())


def test_an_older_file_is_replaced(exported: Path, tmp_path: Path, model_folder: Path, run_main: Command) -> None:
    (tmp_path / "model.onnx").write_text("an older one")
    assert run_main("export", model_folder, "--output", tmp_path / "model.onnx", "--quiet").code == 0
    assert (tmp_path / "model.onnx").read_bytes() == exported.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_runtime_that_computes_wrongly_is_found_out(
    tmp_path: Path, model_folder: Path, run_main: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    rightly = exporting.OnnxNetwork.forward
    monkeypatch.setattr(exporting.OnnxNetwork, "forward", lambda self, channels: rightly(self, channels) + 2e-4)
    code, out, err = run_main("export", model_folder, "--output", tmp_path / "model.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "onnxruntime and torch differ" in err
    assert not list(tmp_path.iterdir())


def _weight_changed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (_weight_changed, "changed after its export"),
        (lambda content: content.replace(b"stepped_unet", b"stopped_unet"), "changed after its export"),
        (lambda content: content[:-1], "changed after its export"),
        (lambda content: content[:1000], "not a whole network"),
        (lambda _: b"", "not a whole network"),
        (lambda _: b"mine", "not a whole network"),
        (None, "cannot be read"),
    ],
)
def test_a_tampered_file_is_refused(
    tamper: Callable[[bytes], bytes] | None,
    said: str,
    exported: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
) -> None:
    path = tmp_path / "model.onnx"
    if tamper:
        path.write_bytes(tamper(exported.read_bytes()))
    code, out, err = run_main("inference", *inference_words(model_folder, scan_file, tmp_path / "r", "--onnx", path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert str(path) in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("size", "said"), [(32, "exported for patterns of 32 × 32 pixels"), (24, "another model")])
def test_the_file_of_another_model_is_refused(
    size: int,
    said: str,
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
    code, out, err = run_main("inference", *inference_words(model_folder, scan_file, tmp_path / "r", "--onnx", path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("setting", [("--precision", "bf16"), ("--device", "cuda"), ("--device", "mps")])
def test_it_computes_in_fp32_on_the_cpu(
    setting: tuple[str, str], exported: Path, tmp_path: Path, model_folder: Path, scan_file: Path, run_main: Command
) -> None:
    words = inference_words(model_folder, scan_file, tmp_path / "r", "--onnx", exported, *setting)
    code, out, err = run_main("inference", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--onnx computes in fp32 on the CPU" in err


@pytest.mark.parametrize(
    ("verb", "missing"), [("export", "onnxscript"), ("export", "onnx"), ("inference", "onnxruntime")]
)
def test_a_missing_package_is_named_with_the_command_that_gets_it(
    verb: str,
    missing: str,
    exported: Path,
    tmp_path: Path,
    model_folder: Path,
    scan_file: Path,
    run_main: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    shutil.copy(exported, tmp_path / "kept.onnx")
    words = {
        "export": [model_folder, "--output", tmp_path / "kept.onnx"],
        "inference": inference_words(model_folder, scan_file, tmp_path / "r", "--onnx", exported),
    }[verb]
    code, out, err = run_main(verb, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{missing} is not installed" in err
    assert "pip install 'ptycho-torch[export]'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.onnx"]
    assert (tmp_path / "kept.onnx").read_bytes() == exported.read_bytes()
