"""A network as an ONNX file: written and checked, read and run by onnxruntime.

The graph holds what is learned and real: from the channels that the network looks at to the two that its head makes a
complex object of. The physics lift before it and the head behind it stay with us. ONNX could express the lift's FFTs;
but the lift divides by the probe's far field, and where that is as faint as the rounding of an FFT in float32, no two
FFT libraries give the same: patches would differ by 1e-2. The number of patterns is free, N is not.
"""

import copy
import hashlib
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptycho_torch.core.errors import BundleError, ConfigError, DataError
from ptycho_torch.core.files import written_whole
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.physics.forward import from_patches, probe_at

OPSET = 18
"""Version of the ONNX operators: the oldest that torch exports to, for the sake of older runtimes."""

TOLERANCE = 1e-4
"""Largest difference of a patch by onnxruntime from torch's, as a share of the largest modulus (at least 1)."""

DESCRIPTION = {
    "input channels": "(batch, C, N, N) float32: what the network of this name makes of a pattern, mostly the real and "
    "imaginary part of the physics lift and log(1 + A) / 3 of the centred amplitude A in sqrt(photons); last, "
    "where the network sees it, the amplitude of the probe as a share of its maximum",
    "output object": "(batch, 2, N, N) float32: a and b, for the head polar of exp(a + ib), for residual of 1 + a + ib",
}
"""The input and the output of the graph; kept in the file."""

_SEAL = re.compile(rb"sha256 of this file with zeros here: ([0-9a-f]{64})")


class ExportedNetwork(nn.Module):
    """The real-valued part of a network in an ONNX file, run by onnxruntime on the CPU.

    Args:
        path: what :func:`export_network` wrote.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is missing, was not written by :func:`export_network`, or was changed since.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnxruntime = _installed("onnxruntime")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the exported network cannot be read ({error.strerror})") from error
        found = _SEAL.search(content)
        if not found:
            raise DataError(f"{path}: not a whole network exported by ptycho_torch; write it by ptycho-torch export")
        if found[1].decode() != _digest_without_seal(content):
            raise DataError(f"{path}: was changed after its export (checksums differ); export the network again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin while they wait would take the cores from torch, which computes the lift between two calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # its errors are raised; they need not be printed too
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of a dozen classes without a base
            raise DataError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot run this network ({error})"
            ) from error
        self.note: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    def forward(self, channels: Tensor) -> Tensor:
        (found,) = self.session.run(None, {"channels": channels.contiguous().numpy()})
        return torch.from_numpy(found)


def run_exported(model: PtychoModel, path: Path) -> None:
    """Let ``model``, which is on the CPU, compute with the exported network in ``path`` from now on.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file cannot be used, or holds another network.
    """
    exported = ExportedNetwork(path)
    size, own = int(exported.note["size"]), model.size
    if size != own:
        raise DataError(
            f"{path}: exported for patterns of {size} × {size} pixels, and the model is for {own} × {own}; "
            "export this model"
        )
    name, part = _real_part(model)
    if exported.note["network_sha256"] != _digest(part.state_dict()):
        raise DataError(f"{path}: exported from another model, or before its last training; export this model")
    setattr(model.network, name, exported)


def export_network(path: Path, model: PtychoModel, note: dict[str, str]) -> float:
    """Write the network of ``model`` to ``path``, whole or not at all, once onnxruntime gives what torch gives.

    Args:
        path: the file; one that is there is replaced.
        model: on the CPU.
        note: kept in the file besides what it needs to be known by.

    Returns:
        The largest difference between the two in the check, as a share of the largest modulus (at least 1).

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
        BundleError: the network has an operation that ONNX lacks, or the two differ by more than ``TOLERANCE``.
        DataError: the file cannot be written.
    """
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        _installed(needed)
    _, part = _real_part(model)
    with written_whole(path) as aside:
        try:
            with _quiet():
                program = torch.onnx.export(
                    part,
                    (_channels(model, 3),),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    opset_version=OPSET,
                    input_names=["channels"],
                    output_names=["object"],
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            reason = next(iter(str(error.__cause__ or error).splitlines()), "")
            raise BundleError(f"network {model.config.name} cannot be expressed in ONNX ({reason})") from error
        assert program is not None  # of the two exporters, the other one returns None
        known = {
            "network": model.config.name,
            "head": model.config.head,
            "network_sha256": _digest(part.state_dict()),
            "opset": str(OPSET),
            "probe_sha256": _digest(
                {f"probe_{index}" if index else "probe": parts for index, parts in enumerate(model.all_probe_parts)}
            ),
            "size": str(model.size),
        }
        aside.write_bytes(_sealed(program.model_proto, DESCRIPTION | known | note))
        difference = _difference(model, aside)
        if not difference <= TOLERANCE:
            raise BundleError(
                f"network {model.config.name}: onnxruntime and torch differ by {difference:.1e}, more than {TOLERANCE}"
            )
    return difference


def _real_part(model: PtychoModel) -> tuple[str, nn.Module]:
    """Name and module of the part of the network that learns: its only child. Lift and head have no weights."""
    parts = list(model.network.named_children())
    if len(parts) != 1:
        raise BundleError(
            f"network {model.config.name}: has {len(parts)} learned parts, and ONNX files are made of networks with one"
        )
    return parts[0]


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of tensors with their names and shapes: the same on any machine, and in any memory order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _difference(model: PtychoModel, path: Path) -> float:
    """Largest difference of the patches with the exported network from torch's, over batches of several sizes."""
    by_runtime = copy.deepcopy(model)
    run_exported(by_runtime, path)
    worst = 0.0
    for count in (1, 2, 7):
        patterns = _patterns(model, count)
        expected = model.network(*patterns)
        change = (by_runtime.network(*patterns) - expected).abs().amax() / expected.abs().amax().clamp(min=1)
        worst = max(worst, float(change.nan_to_num(torch.inf)))
    return worst


@torch.no_grad()
def _channels(model: PtychoModel, count: int) -> Tensor:
    """What the real-valued part gets of ``count`` patterns."""
    seen: list[Tensor] = []
    hook = _real_part(model)[1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    model.network(*_patterns(model, count))
    hook.remove()
    return seen[0]


@torch.no_grad()
def _patterns(model: PtychoModel, count: int) -> tuple[Tensor, Tensor]:
    """Amplitudes (n, N, N) of random objects under a probe of the model, and the probe at random fractions.

    A model without a probe is tried with a Gaussian.
    """
    generator = torch.Generator().manual_seed(count)
    size = model.size
    axis = torch.exp(-((torch.arange(size) - size / 2) / (size / 6)).square())
    modes = model.probes[0] if model.probes else 10 * torch.complex(axis[:, None] * axis, torch.zeros(size, size))[None]
    probe = probe_at(modes, torch.rand(count, 2, generator=generator) - 0.5)
    channels = torch.rand(2, count, size, size, generator=generator)
    objects = torch.polar(0.5 + channels[0] / 2, channels[1])
    return from_patches(objects, probe).intensity.sqrt(), probe


def _sealed(proto: Any, note: dict[str, str]) -> bytes:
    """``proto`` serialised with ``note`` and a digest of the whole; without the exporter's traces of source files."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del proto.metadata_props[:]
    sealed = {"seal": "sha256 of this file with zeros here: " + 64 * "0"}
    for key, value in sorted((note | sealed).items()):
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString(deterministic=True)
    start, end = _place_of_seal(content)
    return content[:start] + _digest_without_seal(content).encode() + content[end:]


def _place_of_seal(content: bytes) -> tuple[int, int]:
    found = _SEAL.search(content)
    assert found
    return found.span(1)


def _digest_without_seal(content: bytes) -> str:
    start, end = _place_of_seal(content)
    return hashlib.sha256(content[:start] + 64 * b"0" + content[end:]).hexdigest()


def _installed(name: str) -> Any:
    """The optional module ``name``. Raises :class:`ConfigError`, which says how to get it, where it is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name} is not installed, which ONNX needs: pip install 'ptycho-torch[export]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on torchvision, and on what torch itself has deprecated."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
