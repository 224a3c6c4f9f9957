"""Model bundles: exact content, older schemas, and one-line errors for damaged files."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptycho_torch.core.errors import BundleError, ConfigError, PtychoError
from ptycho_torch.data.scan import Scan
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NETWORKS, NetworkConfig
from ptycho_torch.models.saved_model import (
    SCHEMA_VERSION,
    Model,
    ScanRecord,
    compute_weights_digest,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
)
from ptycho_torch.physics.batch import Batch
from ptycho_torch.training.optimizer import LearningRateSchedule, Optimizer


@pytest.fixture
def folder(tmp_path: Path, model_folder: Path) -> Path:
    """Copy a trained bundle to a folder in which tests damage it."""
    for name in ("model.safetensors", "bundle.json"):
        shutil.copy(model_folder / name, tmp_path)
    return tmp_path


def edit_description(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply ``change`` to the content of ``bundle.json``."""
    content = json.loads((folder / "bundle.json").read_text())
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def rewrite_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Replace the weights, with the right checksum."""
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit_description(folder, lambda content: content.update(weights_sha256=digest))


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize(
    "network",
    [*(NetworkConfig(name, width=4) for name in sorted(NETWORKS)), NetworkConfig(width=4, probe_channel=True)],
    ids=lambda config: config.name + config.probe_channel * " with probe channel",
)
def test_saved_model_is_loaded_unchanged(network: NetworkConfig, modes: int, tmp_path: Path) -> None:
    probe = torch.randn(modes, 16, 16, dtype=torch.complex64)
    model = PtychoModel(network, probe)
    scans = (ScanRecord("a.npz", "0123", 123.456, (3, 4)),)
    save_model(tmp_path, Model(model, scans, 2, {"note": [1, None]}))
    bundle = load_model(tmp_path)
    assert (bundle.scans, bundle.gridsize, bundle.provenance) == (scans, 2, {"note": [1, None]})
    assert bundle.photons_per_unit == 123.456
    assert bundle.model.config == model.config
    assert torch.equal(bundle.model.probe, probe)
    for name, tensor in model.state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], tensor)
    assert not bundle.model.training


def test_equal_models_give_equal_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    save_model(again, load_model(folder))
    for name in ("model.safetensors", "bundle.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_bundle_without_the_setting_probe_channel_is_read(folder: Path) -> None:
    edit_description(folder, lambda content: content["network"].pop("probe_channel"))
    assert not load_model(folder).model.config.probe_channel


OLD_LAYER_NAMES = {
    "input_layer": "enter",
    "output_layer": "leave",
    "output_norm": "before_leave",
    "attention_output": "join",
    "attention_norm": "before_attention",
    "mlp_norm": "before_feed",
    "mlp_expand": "widen",
    "mlp_project": "narrow",
}
OLD_SCAN_NAMES = {"probe": "probe_parts", "position_offsets": "shifts", "background": "background"}


def make_old_name(name: str, backbone: str) -> str:
    """Return the name of a tensor in schema 2."""
    parts = name.split(".")
    if parts[0] == "scans":
        return OLD_SCAN_NAMES[parts[2]] + (f"_{parts[1]}" if parts[1] != "0" else "")
    if parts[1] == "cascades":
        module, rest = f"{backbone}_{int(parts[2]) + 2}", parts[3:]
    else:
        module, rest = {"backbone": backbone, "object_stage": "object_look"}[parts[1]], parts[2:]
    return ".".join(["network", module, *(OLD_LAYER_NAMES.get(part, part) for part in rest)])


def make_model(name: str) -> PtychoModel:
    """Return a model of two scans, with all optional parameters of the first, away from the initial weights."""
    generator = torch.Generator().manual_seed(0)
    probes = [10 * torch.randn(modes, 16, 16, dtype=torch.complex64, generator=generator) for modes in (2, 1)]
    model = PtychoModel(NetworkConfig(name, width=4), probes, positions=[5, 0], backgrounds=[True, False])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.rand(parameter.shape, generator=generator))
    return model


def make_patterns(model: PtychoModel) -> Batch:
    corners = torch.tensor([[0, 0], [3, 2], [5, 6], [1, 4], [7, 0]])
    amplitudes = 10 * torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(amplitudes, None, corners, torch.zeros(5, 2), indices=torch.arange(5))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_bundle_with_the_tensor_names_of_schema_2_predicts_the_same_bits(name: str, tmp_path: Path) -> None:
    model, scans = make_model(name), (ScanRecord("a.npz", "1", 1.0), ScanRecord("b.npz", "2", 1.0))
    save_model(tmp_path, Model(model, scans, 1))
    backbone = name if name in ("ffno", "vit") else "unet"
    tensors = load_file(tmp_path / "model.safetensors")
    rewrite_weights(tmp_path, {make_old_name(tensor, backbone): value for tensor, value in tensors.items()})
    edit_description(tmp_path, lambda content: content.update(schema=2))
    assert not set(load_file(tmp_path / "model.safetensors")) & set(tensors)
    loaded, batch = load_model(tmp_path).model, make_patterns(model)
    assert torch.equal(loaded(batch).intensity, model(batch).intensity)
    assert loaded.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["refined_unet", "overlap_unet", "ffno", "vit"])
def test_checkpoint_with_the_tensor_names_of_schema_2_resumes(name: str) -> None:
    backbone = name if name in ("ffno", "vit") else "unet"
    first, second = (Optimizer(make_model(name), LearningRateSchedule(1e-3, 3)) for _ in range(2))
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.mul_(2)

    def rename(name: str) -> str:
        kind, _, rest = name.partition(".")
        return f"{kind}.{make_old_name(rest, backbone)}" if kind in ("model", "average") else name

    second.load_state_dict({rename(key): tensor.clone() for key, tensor in first.state_dict().items()}, 7)
    for key, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor), key


def test_weights_digest_is_that_of_earlier_schemas() -> None:
    """A fine-tuning compares the digest of its initial model with the one in its checkpoint."""
    for name in sorted(NETWORKS):
        network, digest = make_model(name).network, hashlib.sha256()
        backbone = name if name in ("ffno", "vit") else "unet"
        for key, tensor in network.state_dict().items():
            old_name = make_old_name(f"network.{key}", backbone).removeprefix("network.")
            digest.update(old_name.encode() + tensor.contiguous().numpy().tobytes())
        assert compute_weights_digest(network) == digest.hexdigest()[:16]


def test_architecture_that_is_no_preset_is_saved(tmp_path: Path) -> None:
    config = NetworkConfig("unet", width=4, input="backprojection", cascades=2, dc_steps=1, object_stages=1)
    model = PtychoModel(config, [], size=16)
    Model(model, (), 1).save(tmp_path / "new" / "folder")
    loaded = load_model(tmp_path / "new" / "folder").model
    assert loaded.config == config
    assert len(loaded.network.learned_modules) == 4
    assert (
        config.architecture._replace(cascades=0, dc_steps=0)
        == NetworkConfig("overlap_unet", object_stages=1).architecture
    )


def test_settings_of_a_preset_are_stored_as_before(tmp_path: Path) -> None:
    save_model(tmp_path, Model(PtychoModel(NetworkConfig("vit", width=4), [], size=16), (), 1))
    stored = json.loads((tmp_path / "bundle.json").read_text())["network"]
    assert stored == {"name": "vit", "head": "polar", "width": 4, "probe_channel": False}


def test_model_is_described_in_a_few_lines() -> None:
    text = repr(Model(make_model("unet"), (ScanRecord("a.npz", "1", 1.0), ScanRecord("b.npz", "2", 1.0)), 1))
    assert text.startswith("Model for patterns of 16 × 16 pixels")
    assert "a.npz, b.npz" in text
    assert text.count("\n") < 5


def test_loading_does_not_change_the_random_state_of_the_process(folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bundle_of_a_newer_schema_is_refused(folder: Path) -> None:
    edit_description(folder, lambda content: content.update(schema=SCHEMA_VERSION + 1))
    with pytest.raises(
        BundleError, match=f"schema {SCHEMA_VERSION + 1}, and this version reads up to {SCHEMA_VERSION}; install"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json"])
def test_incomplete_bundle_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"no model bundle \\({name} missing\\)"):
        load_model(folder)


@pytest.mark.parametrize("path", ["none", "bundle.json", "x" * 5000])
def test_path_without_a_bundle_is_refused(folder: Path, path: str) -> None:
    with pytest.raises(BundleError, match="bundle"):
        load_model(folder / path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '"schema"', "\xff"])
def test_invalid_description_is_refused(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        load_model(folder)


@pytest.mark.parametrize(
    "key",
    ["schema", "network", "size", "scans", "gridsize", "weights_sha256", "provenance"],
)
@pytest.mark.parametrize("value", ["missing", None, "text", -1, [], float("nan")])
def test_description_with_a_wrong_entry_is_refused(folder: Path, key: str, value: Any) -> None:
    edit_description(folder, lambda content: content.pop(key) if value == "missing" else content.update({key: value}))
    with pytest.raises(BundleError):
        load_model(folder)


@pytest.mark.parametrize("key", ["name", "digest", "photons_per_unit", "held_out", "probe_modes"])
@pytest.mark.parametrize("value", ["missing", None, -1, float("nan")])
def test_scan_record_with_a_wrong_entry_is_refused(folder: Path, key: str, value: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        (scan,) = content["scans"]
        if value == "missing":
            del scan[key]
        else:
            scan[key] = value

    edit_description(folder, change)
    with pytest.raises(BundleError):
        load_model(folder)


@pytest.mark.parametrize("modes", [(), (1,), (2, 1, 3)])
def test_model_has_one_probe_per_scan(modes: tuple[int, ...], tmp_path: Path) -> None:
    """The probes may differ in their modes; a pretrained model has none."""
    probes = [torch.randn(count, 16, 16, dtype=torch.complex64) for count in modes]
    model = PtychoModel(NetworkConfig(width=4), probes, size=16)
    scans = tuple(ScanRecord(f"{index}.npz", f"{index}", 1.5 + index) for index in range(len(modes)))
    save_model(tmp_path, Model(model, scans, 1))
    bundle = load_model(tmp_path)
    assert bundle.scans == scans
    assert [bundle.find_scan(scan.digest) for scan in scans] == list(range(len(modes)))
    assert bundle.find_scan("another") is None
    for loaded, expected in zip(bundle.model.probes, probes, strict=True):
        assert torch.equal(loaded, expected)
    if len(modes) != 1:
        with pytest.raises(ConfigError, match=f"{len(modes)} probes"):
            _ = bundle.model.probe
        with pytest.raises(ConfigError, match=f"{len(modes)} scans"):
            _ = bundle.photons_per_unit


@pytest.mark.parametrize("held_out", [True, False])
def test_bundles_of_the_first_schema_are_read(folder: Path, held_out: bool, scan: Scan) -> None:
    def convert_to_schema_1(content: dict[str, Any]) -> None:
        (record,) = content.pop("scans")
        content |= {"schema": 1} | {name: record[name] for name in ("probe_modes", "probe_photons", "photons_per_unit")}
        content["provenance"] |= {
            "config": {"train_data_file": "data/scan.npz"},
            "validation": "region held out of the training scan, y >= 3" if held_out else "the scan other.npz",
            "validation_scan": scan.digest(),
            "validation_indices": [4, 5],
        }

    new = load_model(folder)
    edit_description(folder, convert_to_schema_1)
    old = load_model(folder)
    expected = ScanRecord("scan.npz", scan.digest(), 1.0, (4, 5)) if held_out else ScanRecord("scan.npz", "", 1.0)
    assert old.scans == (expected,)
    assert torch.equal(old.model.probe, new.model.probe)


@pytest.mark.parametrize(
    "entry", [{"depth": 3}, {"width": 8}, {"width": "4"}, {"name": "unet"}, {"name": "vgg"}, {"head": 1}]
)
def test_description_of_another_network_is_refused(folder: Path, entry: dict[str, Any]) -> None:
    edit_description(folder, lambda content: content["network"].update(entry))
    with pytest.raises(PtychoError):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights_are_refused(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()[:keep]
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="checksums differ"):
        load_model(folder)
    edit_description(folder, lambda content: content.update(weights_sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
        load_model(folder)


def test_weights_of_another_bundle_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(BundleError, match="checksums differ"):
        load_model(folder)


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_weights_of_other_names_or_shapes_are_refused(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    if change == "missing":
        del tensors[name]
    elif change == "more":
        tensors["more"] = torch.ones(3)
    else:
        tensors[name] = torch.ones(3, 1, 2)
    rewrite_weights(folder, tensors)
    with pytest.raises(BundleError, match=r"model\.safetensors"):
        load_model(folder)


def test_error_is_one_short_line(folder: Path) -> None:
    """The error of torch lists every weight."""
    rewrite_weights(folder, {"nothing": torch.ones(1)})
    with pytest.raises(BundleError) as caught:
        load_model(folder)
    assert len(str(caught.value)) < 400


def test_saved_tensors_and_record_are_loaded_unchanged(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(7.0)}
    save_tensors(tmp_path / "state.safetensors", tensors, {"steps": 7, "loss": [0.1]})
    loaded, record = load_tensors(tmp_path / "state.safetensors")
    assert record == {"steps": 7, "loss": [0.1]}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("name", ["a folder", "none.safetensors"])
def test_unreadable_tensor_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        load_tensors(tmp_path / name)
