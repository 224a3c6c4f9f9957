"""The saved model: a trained model in a folder, as ``model.safetensors`` and ``bundle.json``, without pickle.

Names of tensors
----------------
Schema 3 names tensors by the modules of :class:`~ptycho_torch.models.model.PtychoModel`: ``network.backbone``,
``network.cascades.0``, ``network.object_stage``, and ``scans.0.probe``, ``scans.0.position_offsets``,
``scans.0.background`` for each scan. Schemas 1 and 2 used other names; :func:`upgrade_tensor_names` translates them
when a model or a checkpoint is loaded, and has no effect on present names.

===============================  ============================
schema 1 and 2                   schema 3
===============================  ============================
``probe_parts``, ``_1``, …       ``scans.0.probe``, …
``shifts``, ``_1``, …            ``scans.0.position_offsets``
``background``, ``_1``, …        ``scans.0.background``
``network.unet`` (ffno, vit)     ``network.backbone``
``network.unet_2``, …            ``network.cascades.0``, …
``network.object_look``          ``network.object_stage``
``enter``, ``leave``, …          see ``LAYER_NAMES``
===============================  ============================
"""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptycho_torch.core.deferred import call_deferred
from ptycho_torch.core.errors import BundleError, ConfigError
from ptycho_torch.core.files import atomic_write, make_output_dir, write_json
from ptycho_torch.core.observer import Observer
from ptycho_torch.core.summary import format_summary, format_summary_html
from ptycho_torch.data.reconstruction import Reconstruction
from ptycho_torch.data.scan import Scan
from ptycho_torch.distributed.devices import select_device
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.registry import NetworkConfig, PatternNetwork

SCHEMA_VERSION = 3
"""Version of the layout. It is raised when an older program cannot read a new bundle."""

LAYER_NAMES = {
    "enter": "input_layer",
    "leave": "output_layer",
    "before_leave": "output_norm",
    "join": "attention_output",
    "before_attention": "attention_norm",
    "before_feed": "mlp_norm",
    "widen": "mlp_expand",
    "narrow": "mlp_project",
}
"""Names of layers in schemas 1 and 2, and their present names."""

_SCAN_NAMES = {"probe_parts": "probe", "shifts": "position_offsets", "background": "background"}
_OLD_SCAN_NAME = re.compile(r"(probe_parts|shifts|background)(?:_(\d+))?")
_OLD_BACKBONE_NAME = re.compile(r"(?:unet|ffno|vit)(?:_(\d+))?")


@dataclass(frozen=True)
class ScanRecord:
    """A scan that a model was trained on; the model has a probe for it."""

    name: str
    """Name of its file."""

    digest: str
    """:meth:`ptycho_torch.data.scan.Scan.digest`; empty if an old bundle does not contain it."""

    photons_per_unit: float
    """Photons per squared unit of its amplitude."""

    held_out: tuple[int, ...] = ()
    """Indices of the patterns that were held out for validation."""


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A trained model: network, probes, the scans that it was trained on, and its provenance.

    :func:`ptycho_torch.fit` and :func:`ptycho_torch.load_model` make one. ``Bundle`` is an earlier name of this class.

    Args:
        model: network and, for each training scan, probe modes (M, N, N) in √photons.
        scans: records of the training scans: name, digest, photons per squared unit of amplitude and indices of the
            held-out patterns, in the order of the probes. Empty for a model without a probe.
        gridsize: g of the training, which grouped g² neighboring patterns.
        provenance: resolved configuration, epochs and versions, which can be stored as JSON.
    """

    model: PtychoModel
    """Network and probes, in √photons."""

    scans: tuple[ScanRecord, ...]
    """The training scans, in the order of the probes; empty for a model without a probe."""

    gridsize: int
    """g of the training: groups of g² patterns."""

    provenance: dict[str, Any] = field(default_factory=dict)
    """Resolved configuration, epochs, versions; JSON."""

    def __repr__(self) -> str:
        return format_summary(*self._summarize())

    def _repr_html_(self) -> str:
        return format_summary_html(*self._summarize())

    def _summarize(self) -> tuple[str, dict[str, str]]:
        """Return title and facts of the representation."""
        config, count = self.model.config, sum(weight.numel() for weight in self.model.network.parameters())
        facts = {
            "network": f"{config.name}, width {config.width}, {count:,} parameters",
            "scans": ", ".join(scan.name or "unnamed" for scan in self.scans) or "none (simulated patterns)",
        }
        return f"Model for patterns of {self.model.size} × {self.model.size} pixels", facts

    @property
    def photons_per_unit(self) -> float:
        """Photons per squared unit of amplitude of the only training scan.

        Raises:
            ConfigError: there are several, or none.
        """
        if len(self.scans) != 1:
            raise ConfigError(f"the model has {len(self.scans)} scans; expected one; set `photons_per_unit`")
        return self.scans[0].photons_per_unit

    def find_scan(self, digest: str) -> int | None:
        """Return the index of the training scan with this digest; None: there is none."""
        return next((index for index, scan in enumerate(self.scans) if scan.digest == digest), None)

    def predict(
        self,
        scan: Scan,
        *,
        uncertainty: bool = False,
        update_positions: bool = False,
        position_bound: float = 5.0,
        batch_size: int = 64,
        precision: str = "auto",
        gridsize: int | None = None,
        observer: Observer | None = None,
    ) -> Reconstruction:
        """Reconstruct the object of a scan.

        Args:
            scan: patterns of the size of the training patterns.
            uncertainty: estimate the standard deviation of each object pixel, in the unit of the object. It is
                returned in :attr:`Reconstruction.uncertainty`. The estimate runs eight epochs of the engine ``pie``
                from the predicted object; these do not change the object that is returned.
            update_positions: refine the scan positions against the reconstructed object.
            position_bound: largest change of a position on each axis, in pixels.
            batch_size: patterns computed at a time, to limit memory.
            precision: arithmetic of the network: ``"auto"``, ``"fp32"`` or ``"bf16"``.
            gridsize: g of the groups of g² patterns; None: g of the training.
            observer: receives progress.

        Returns:
            The stitched object, its coverage, the probe and the positions.

        Raises:
            PtychoError: the scan does not fit the model.
        """
        return call_deferred(
            "ptycho_torch.engines.pipeline:predict",
            self,
            scan,
            uncertainty=uncertainty,
            update_positions=update_positions,
            position_bound=position_bound,
            batch_size=batch_size,
            precision=precision,
            gridsize=gridsize,
            observer=observer,
        )

    def save(self, folder: str | Path) -> None:
        """Write the model into ``folder``, which is made if it is missing; :func:`load_model` reads it."""
        save_model(make_output_dir(Path(folder)), self)


def save_model(folder: Path, bundle: Model) -> None:
    """Write ``bundle`` into an existing ``folder``. The description is written last and completes the bundle."""
    weights = folder / "model.safetensors"
    save_tensors(weights, dict(bundle.model.state_dict()))
    write_json(
        folder / "bundle.json",
        {
            "schema": SCHEMA_VERSION,
            "network": bundle.model.config.to_record(),
            "size": bundle.model.size,
            "scans": [
                dataclasses.asdict(scan) | _describe_scan_parameters(bundle.model, index)
                for index, scan in enumerate(bundle.scans)
            ],
            "gridsize": bundle.gridsize,
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "provenance": bundle.provenance,
        },
    )


def upgrade_tensor_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a model from schema 1 or 2; present names are kept."""
    return {_upgrade_tensor_name(name): tensor for name, tensor in tensors.items()}


def downgrade_layer_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename layers to their names of schema 2, under which digests of weights are computed."""
    old_names = {new: old for old, new in LAYER_NAMES.items()}
    return {".".join(old_names.get(part, part) for part in name.split(".")): tensor for name, tensor in tensors.items()}


def _upgrade_tensor_name(name: str) -> str:
    if scan_name := _OLD_SCAN_NAME.fullmatch(name):
        return f"scans.{scan_name[2] or 0}.{_SCAN_NAMES[scan_name[1]]}"
    head, *parts = name.split(".")
    if head != "network" or not parts:
        return name
    if backbone := _OLD_BACKBONE_NAME.fullmatch(parts[0]):
        parts[0] = f"cascades.{int(backbone[1]) - 2}" if backbone[1] else "backbone"
    elif parts[0] == "object_look":
        parts[0] = "object_stage"
    return ".".join([head, *(LAYER_NAMES.get(part, part) for part in parts)])


def _describe_scan_parameters(model: PtychoModel, scan_index: int) -> dict[str, Any]:
    """Describe the parameters of a scan, so that :func:`load_model` can make them."""
    probe, offsets = model.probes[scan_index].detach(), model.get_position_offsets(scan_index)
    return {
        "probe_modes": len(probe),
        "probe_photons": float(probe.abs().square().sum()),
        "positions": 0 if offsets is None else len(offsets),
        "background": model.get_background(scan_index) is not None,
    }


def load_model(folder: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a model from ``folder``, strictly: the weights must be exactly those of the network.

    Args:
        folder: written by :meth:`Model.save`, ``train`` or ``pretrain``.
        device: where to put the model.

    Raises:
        BundleError: there is no model, its schema is newer, or its parts do not fit together.
        DeviceError: the device is not available.
    """
    description, weights = Path(folder) / "bundle.json", Path(folder) / "model.safetensors"
    selected_device = select_device(device)
    content = _read_description(description)
    try:
        network = NetworkConfig(**content["network"])
        size = content["size"]
        probes = [torch.zeros(scan["probe_modes"], size, size, dtype=torch.complex64) for scan in content["scans"]]
        positions, backgrounds = (
            [scan.get(name, 0) for scan in content["scans"]] for name in ("positions", "background")
        )
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            model = PtychoModel(network, probes, size=size, positions=positions, backgrounds=backgrounds)
        bundle = Model(model, _make_scan_records(content), content["gridsize"], content["provenance"])
        expected = content["weights_sha256"]
    except (KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise BundleError(f"{description}: not the description of a bundle ({_shorten(error)}); train again") from error
    if hashlib.sha256(_read_bytes(weights)).hexdigest() != expected:
        raise BundleError(f"{weights}: does not belong to {description.name} beside it (checksums differ); train again")
    try:
        model.load_state_dict(upgrade_tensor_names(load_tensors(weights)[0]), strict=True)
    except RuntimeError as error:
        raise BundleError(f"{weights}: does not fit the network of {description.name} ({_shorten(error)})") from error
    model.to(selected_device).eval()
    return bundle


Bundle, load_bundle = Model, load_model
"""Earlier names of :class:`Model` and :func:`load_model`, which older code imports."""


def compute_weights_digest(network: PatternNetwork) -> str:
    """Return a short digest of the weights of ``network``, the same as that of earlier schemas."""
    key, digest = network.state_key, hashlib.sha256()
    for name, tensor in downgrade_layer_names(dict(network.state_dict())).items():
        module, _, rest = name.partition(".")
        if module == "cascades":
            number, _, rest = rest.partition(".")
            module = f"{key}_{int(number) + 2}"
        old_name = {"backbone": key, "object_stage": "object_look"}.get(module, module)
        digest.update(f"{old_name}.{rest}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_description(path: Path) -> dict[str, Any]:
    """Read ``bundle.json``, of this schema or an older one, and check its values."""
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
            f"{path}: bundle of schema {schema}, and this version reads up to {SCHEMA_VERSION}; install a newer "
            "ptycho_torch"
        )
    for name, is_valid in checks.items():
        if not is_valid:
            raise BundleError(f"{path}: {name} is {_shorten(content[name])}, which is not valid; train again")
    return content | {"scans": _read_scan_entries(content)}


def _read_scan_entries(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the scans; schema 1 has one, with a digest if a region was held out."""
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
    records = (ScanRecord(*(scan[name] for name in names)) for scan in content["scans"])
    return tuple(dataclasses.replace(record, held_out=tuple(record.held_out)) for record in records)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path.parent}: no model bundle ({path.name} missing); give the `output_dir` of a training"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: the model bundle cannot be read ({error.strerror})") from error


def _shorten(value: Any) -> str:
    """Format ``value`` in at most 200 characters: the errors of torch list every missing weight."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else text[:200] + "…"


def save_tensors(path: Path, tensors: dict[str, Tensor], note: dict[str, Any] | None = None) -> None:
    """Write ``tensors`` to ``path`` (safetensors), completely or not at all, with ``note`` as JSON in the header."""
    from safetensors.torch import save_file

    cpu_tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temp_path:
        save_file(cpu_tensors, temp_path, metadata={"note": json.dumps(note or {}, sort_keys=True)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors`: the tensors, on the CPU, and the note.

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
