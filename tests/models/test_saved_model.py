"""The bundle: what is written is read again, and anything else is refused with a sentence."""

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
    load_model,
    load_tensors,
    save_model,
    save_tensors,
)


@pytest.fixture
def folder(tmp_path: Path, model_folder: Path) -> Path:
    """A copy of a trained bundle, to be damaged."""
    for name in ("model.safetensors", "bundle.json"):
        shutil.copy(model_folder / name, tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "bundle.json").read_text())
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def rewrite_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other weights with the right checksum."""
    save_file(tensors, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    rewrite(folder, lambda content: content.update(weights_sha256=digest))


@pytest.mark.parametrize("modes", [1, 3])
@pytest.mark.parametrize(
    "network",
    [*(NetworkConfig(name, width=4) for name in sorted(NETWORKS)), NetworkConfig(width=4, probe_channel=True)],
    ids=lambda config: config.name + config.probe_channel * " seeing the probe",
)
def test_a_bundle_comes_back_as_it_was(network: NetworkConfig, modes: int, tmp_path: Path) -> None:
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


def test_the_same_bundle_is_the_same_bytes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    again = tmp_path_factory.mktemp("again")
    save_model(again, load_model(folder))
    for name in ("model.safetensors", "bundle.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_bundle_from_before_networks_could_see_the_probe(folder: Path) -> None:
    rewrite(folder, lambda content: content["network"].pop("probe_channel"))
    assert not load_model(folder).model.config.probe_channel


def test_loading_leaves_the_random_numbers_of_the_process_alone(folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_bundle_of_a_newer_schema(folder: Path) -> None:
    rewrite(folder, lambda content: content.update(schema=SCHEMA_VERSION + 1))
    with pytest.raises(
        BundleError, match=f"schema {SCHEMA_VERSION + 1}, and this version reads up to {SCHEMA_VERSION}; install"
    ):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "bundle.json"])
def test_half_a_bundle(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"no model bundle \\({name} missing\\)"):
        load_model(folder)


@pytest.mark.parametrize("path", ["none", "bundle.json", "x" * 5000])
def test_no_folder(folder: Path, path: str) -> None:
    with pytest.raises(BundleError, match="bundle"):
        load_model(folder / path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '"schema"', "\xff"])
def test_a_description_that_is_none(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError):
        load_model(folder)


@pytest.mark.parametrize(
    "key",
    ["schema", "network", "size", "scans", "gridsize", "weights_sha256", "provenance"],
)
@pytest.mark.parametrize("value", ["missing", None, "text", -1, [], float("nan")])
def test_a_description_with_a_wrong_entry(folder: Path, key: str, value: Any) -> None:
    rewrite(folder, lambda content: content.pop(key) if value == "missing" else content.update({key: value}))
    with pytest.raises(BundleError):
        load_model(folder)


@pytest.mark.parametrize("key", ["name", "digest", "photons_per_unit", "held_out", "probe_modes"])
@pytest.mark.parametrize("value", ["missing", None, -1, float("nan")])
def test_a_scan_with_a_wrong_entry(folder: Path, key: str, value: Any) -> None:
    def change(content: dict[str, Any]) -> None:
        (scan,) = content["scans"]
        if value == "missing":
            del scan[key]
        else:
            scan[key] = value

    rewrite(folder, change)
    with pytest.raises(BundleError):
        load_model(folder)


@pytest.mark.parametrize("modes", [(), (1,), (2, 1, 3)])
def test_any_number_of_probes(modes: tuple[int, ...], tmp_path: Path) -> None:
    """One of each scan, which may differ in their modes; none after a training on simulation alone."""
    probes = [torch.randn(count, 16, 16, dtype=torch.complex64) for count in modes]
    model = PtychoModel(NetworkConfig(width=4), probes, size=16)
    scans = tuple(ScanRecord(f"{place}.npz", f"{place}", 1.5 + place) for place in range(len(modes)))
    save_model(tmp_path, Model(model, scans, 1))
    bundle = load_model(tmp_path)
    assert bundle.scans == scans
    assert [bundle.find_scan(scan.digest) for scan in scans] == list(range(len(modes)))
    assert bundle.find_scan("another") is None
    for found, expected in zip(bundle.model.probes, probes, strict=True):
        assert torch.equal(found, expected)
    if len(modes) != 1:
        with pytest.raises(ConfigError, match=f"{len(modes)} probes"):
            _ = bundle.model.probe
        with pytest.raises(ConfigError, match=f"{len(modes)} scans"):
            _ = bundle.photons_per_unit


@pytest.mark.parametrize("held_out", [True, False])
def test_bundles_of_the_first_schema_are_read(folder: Path, held_out: bool, scan: Scan) -> None:
    def as_it_was(content: dict[str, Any]) -> None:
        (known,) = content.pop("scans")
        content |= {"schema": 1} | {name: known[name] for name in ("probe_modes", "probe_photons", "photons_per_unit")}
        content["provenance"] |= {
            "config": {"train_data_file": "data/scan.npz"},
            "validation": "region held out of the training scan, y >= 3" if held_out else "the scan other.npz",
            "validation_scan": scan.digest(),
            "validation_indices": [4, 5],
        }

    new = load_model(folder)
    rewrite(folder, as_it_was)
    old = load_model(folder)
    expected = ScanRecord("scan.npz", scan.digest(), 1.0, (4, 5)) if held_out else ScanRecord("scan.npz", "", 1.0)
    assert old.scans == (expected,)
    assert torch.equal(old.model.probe, new.model.probe)


@pytest.mark.parametrize(
    "entry", [{"depth": 3}, {"width": 8}, {"width": "4"}, {"name": "unet"}, {"name": "vgg"}, {"head": 1}]
)
def test_a_network_that_is_not_the_trained_one(folder: Path, entry: dict[str, Any]) -> None:
    rewrite(folder, lambda content: content["network"].update(entry))
    with pytest.raises(PtychoError):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()[:keep]
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="checksums differ"):
        load_model(folder)
    rewrite(folder, lambda content: content.update(weights_sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
        load_model(folder)


def test_weights_of_another_bundle(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(BundleError, match="checksums differ"):
        load_model(folder)


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_weights_that_do_not_fit(folder: Path, change: str) -> None:
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


def test_a_refusal_is_one_short_line(folder: Path) -> None:
    """Not the page on which torch lists every weight."""
    rewrite_weights(folder, {"nothing": torch.ones(1)})
    with pytest.raises(BundleError) as caught:
        load_model(folder)
    assert len(str(caught.value)) < 400


def test_tensors_and_note_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(7.0)}
    save_tensors(tmp_path / "state.safetensors", tensors, {"steps": 7, "loss": [0.1]})
    found, note = load_tensors(tmp_path / "state.safetensors")
    assert note == {"steps": 7, "loss": [0.1]}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("name", ["a folder", "none.safetensors"])
def test_no_tensors(tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        load_tensors(tmp_path / name)
