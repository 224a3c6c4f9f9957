"""The bundle: a trained model in a folder, as ``model.safetensors`` beside ``bundle.json``. No pickle."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.core.files import atomic_write, write_json
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig

SCHEMA_VERSION = 2
"""Version of the layout. Raised when an older program could no longer read a bundle rightly."""


@dataclass(frozen=True)
class ScanRecord:
    """A scan that a model was trained on; the model has a probe for it."""

    name: str
    """Its file's."""

    digest: str
    """:meth:`ptycho_torch.data.scan.Scan.digest`; empty where an old bundle does not say."""

    photons_per_unit: float
    """Photons for one squared unit of its amplitude."""

    held_out: tuple[int, ...] = ()
    """Indices of its patterns that were held out for validation."""


@dataclass(frozen=True, eq=False)
class Model:
    """A model with all that inference needs, and where it came from."""

    model: PtychoModel
    """Network and probes, in √photons."""

    scans: tuple[ScanRecord, ...]
    """What it was trained on, in the order of the model's probes; empty for one that has no probe."""

    gridsize: int
    """g that the model was trained with."""

    provenance: dict[str, Any] = field(default_factory=dict)
    """Resolved configuration, epochs, versions. JSON."""

    @property
    def photons_per_unit(self) -> float:
        """That of the only scan.

        Raises:
            ConfigError: there are several, or none.
        """
        if len(self.scans) != 1:
            raise ConfigError(f"the model knows {len(self.scans)} scans, so that no photon scale is its own")
        return self.scans[0].photons_per_unit

    def find_scan(self, digest: str) -> int | None:
        """Which of the scans has that digest; None: none."""
        return next((index for index, scan in enumerate(self.scans) if scan.digest == digest), None)


def save_model(folder: Path, bundle: Model) -> None:
    """Write ``bundle`` into ``folder``, which must exist. The description comes last: it completes the bundle."""
    weights = folder / "model.safetensors"
    save_tensors(weights, dict(bundle.model.state_dict()))
    write_json(
        folder / "bundle.json",
        {
            "schema": SCHEMA_VERSION,
            "network": dataclasses.asdict(bundle.model.config),
            "size": bundle.model.size,
            "scans": [
                dataclasses.asdict(scan) | _describe_scan_parameters(bundle.model, source)
                for source, scan in enumerate(bundle.scans)
            ],
            "gridsize": bundle.gridsize,
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "provenance": bundle.provenance,
        },
    )


def _describe_scan_parameters(model: PtychoModel, source: int) -> dict[str, Any]:
    """What a model holds of a scan, as :func:`load_model` needs it to make the model again."""
    probe, shifts = model.probes[source].detach(), model.get_position_offsets(source)
    return {
        "probe_modes": len(probe),
        "probe_photons": float(probe.abs().square().sum()),
        "positions": 0 if shifts is None else len(shifts),
        "background": model.get_background(source) is not None,
    }


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a bundle from ``folder``, strictly: every weight must be there, of its shape, and nothing else.

    Raises:
        BundleError: no bundle there, one of a newer schema, or one whose parts do not fit together.
    """
    description, weights = Path(folder) / "bundle.json", Path(folder) / "model.safetensors"
    content = _read_description(description)
    try:
        network = NetworkConfig(**content["network"])
        size = content["size"]
        probes = [torch.zeros(scan["probe_modes"], size, size, dtype=torch.complex64) for scan in content["scans"]]
        positions, backgrounds = (
            [scan.get(name, 0) for scan in content["scans"]] for name in ("positions", "background")
        )
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, to be replaced
            model = PtychoModel(network, probes, size=size, positions=positions, backgrounds=backgrounds)
        bundle = Model(model, _make_scan_records(content), content["gridsize"], content["provenance"])
        expected = content["weights_sha256"]
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise BundleError(f"{description}: not the description of a bundle ({_shorten(error)}); train again") from error
    if hashlib.sha256(_read_bytes(weights)).hexdigest() != expected:
        raise BundleError(f"{weights}: does not belong to {description.name} beside it (checksums differ); train again")
    try:
        model.load_state_dict(load_tensors(weights)[0], strict=True)
    except RuntimeError as error:
        raise BundleError(f"{weights}: does not fit the network of {description.name} ({_shorten(error)})") from error
    model.to(device).eval()
    return bundle


def compute_weights_digest(network: nn.Module) -> str:
    """A short fingerprint of the weights of ``network``."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_description(path: Path) -> dict[str, Any]:
    """What is in ``bundle.json``, of this schema or an older one, with sound numbers."""
    try:
        content: dict[str, Any] = json.loads(_read_bytes(path))
        schema = content["schema"]
        checks = {
            "schema": isinstance(schema, int) and schema >= 1,
            "size": isinstance(content["size"], int) and content["size"] >= 1,
            "scans": all(
                isinstance(scan["name"], str)
                and isinstance(scan["digest"], str)
                and all(isinstance(index, int) for index in scan["held_out"])
                and 0 < scan["photons_per_unit"] < math.inf
                for scan in _read_scan_entries(content)
            ),
            "gridsize": isinstance(content["gridsize"], int) and content["gridsize"] >= 1,
            "provenance": isinstance(content["provenance"], dict),
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: not the description of a bundle ({_shorten(error)}); train again") from error
    if checks["schema"] and schema > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: bundle of schema {schema}, and this version reads up to {SCHEMA_VERSION}; install a newer ptycho_torch"
        )
    for name, is_sound in checks.items():
        if not is_sound:
            raise BundleError(f"{path}: {name} is {_shorten(content[name])}, which no bundle has; train again")
    return content | {"scans": _read_scan_entries(content)}


def _read_scan_entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the scans; a bundle of schema 1 has one, whose digest it says where a region was held out."""
    if content["schema"] != 1:
        scans = content["scans"]
        if not isinstance(scans, list):
            raise TypeError("scans is no list")
        return scans
    provenance = content["provenance"]
    held_out = str(provenance.get("validation")).startswith("region")
    return [
        {
            "name": Path(provenance.get("config", {}).get("train_data_file", "")).name,
            "digest": provenance["validation_scan"] if held_out else "",
            "photons_per_unit": content["photons_per_unit"],
            "held_out": provenance["validation_indices"] if held_out else [],
            "probe_modes": content["probe_modes"],
        }
    ]


def _make_scan_records(content: dict[str, Any]) -> tuple[ScanRecord, ...]:
    names = ("name", "digest", "photons_per_unit", "held_out")
    found = (ScanRecord(*(scan[name] for name in names)) for scan in content["scans"])
    return tuple(dataclasses.replace(scan, held_out=tuple(scan.held_out)) for scan in found)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path.parent}: no model bundle ({path.name} missing); give the --output_dir of a training"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: the model bundle cannot be read ({error.strerror})") from error


def _shorten(found: Any) -> str:
    """``found`` in a few words: torch lists every weight that it misses."""
    text = " ".join(repr(found).split())
    return text if len(text) <= 200 else text[:200] + "…"


def save_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any] | None = None) -> None:
    """Write ``tensors`` to ``path`` (safetensors), whole or not at all, with ``note`` as JSON in its header."""
    from safetensors.torch import save_file

    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temp_path:
        save_file(cpu_tensors, temp_path, metadata={"note": json.dumps(note or {}, sort_keys=True)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: the tensors, on the CPU, and the note.

    Raises:
        BundleError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((file.metadata() or {}).get("note", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error
