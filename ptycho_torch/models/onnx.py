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
from ptycho_torch.core.files import atomic_write
from ptycho_torch.models.model import PtychoModel
from ptycho_torch.models.saved_model import downgrade_layer_names
from ptycho_torch.physics.forward import from_patches, shift_probe

ONNX_OPSET_VERSION = 18
"""Version of the ONNX operators: the oldest that torch exports to, for the sake of older runtimes."""

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Largest difference of a patch by onnxruntime from torch's, as a share of the largest modulus (at least 1)."""

TENSOR_DESCRIPTIONS = {
    "input channels": "(batch, C, N, N) float32: what the network of this name makes of a pattern, mostly the real and "
    "imaginary part of the physics lift and log(1 + A) / 3 of the centred amplitude A in sqrt(photons); last, "
    "where the network sees it, the amplitude of the probe as a share of its maximum",
    "output object": "(batch, 2, N, N) float32: a and b, for the head polar of exp(a + ib), for residual of 1 + a + ib",
}
"""The input and the output of the graph; kept in the file."""

_CHECKSUM_PATTERN = re.compile(rb"sha256 of this file with zeros here: ([0-9a-f]{64})")


class OnnxNetwork(nn.Module):
    """The real-valued part of a network in an ONNX file, run by onnxruntime on the CPU.

    Args:
        path: what :func:`export_network` wrote.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is missing, was not written by :func:`export_network`, or was changed since.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnxruntime = _import_optional("onnxruntime")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the exported network cannot be read ({error.strerror})") from error
        found = _CHECKSUM_PATTERN.search(content)
        if not found:
            raise DataError(f"{path}: not a whole network exported by ptycho_torch; write it by ptycho-torch export")
        if found[1].decode() != _compute_checksum(content):
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
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    def forward(self, channels: Tensor) -> Tensor:
        (found,) = self.session.run(None, {"channels": channels.contiguous().numpy()})
        return torch.from_numpy(found)


def load_onnx_network(model: PtychoModel, path: Path) -> None:
    """Let ``model``, which is on the CPU, compute with the exported network in ``path`` from now on.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file cannot be used, or holds another network.
    """
    exported = OnnxNetwork(path)
    size, model_size = int(exported.metadata["size"]), model.size
    if size != model_size:
        raise DataError(
            f"{path}: exported for patterns of {size} × {size} pixels, and the model is for {model_size} × "
            f"{model_size}; "
            "export this model"
        )
    part = _find_learned_module(model)
    if exported.metadata["network_sha256"] != _compute_weights_digest(part):
        raise DataError(f"{path}: exported from another model, or before its last training; export this model")
    model.network.backbone = exported


def export_network(path: Path, model: PtychoModel, metadata: dict[str, str]) -> float:
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
        _import_optional(needed)
    part = _find_learned_module(model)
    with atomic_write(path) as temp_path:
        try:
            with _silence_exporter():
                program = torch.onnx.export(
                    part,
                    (_capture_channels(model, 3),),
                    dynamo=True,
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    opset_version=ONNX_OPSET_VERSION,
                    input_names=["channels"],
                    output_names=["object"],
                    verbose=False,
                )
        except torch.onnx.OnnxExporterError as error:
            reason = next(iter(str(error.__cause__ or error).splitlines()), "")
            raise BundleError(f"network {model.config.name} cannot be expressed in ONNX ({reason})") from error
        assert program is not None  # of the two exporters, the other one returns None
        identity = {
            "network": model.config.name,
            "head": model.config.head,
            "network_sha256": _compute_weights_digest(part),
            "opset": str(ONNX_OPSET_VERSION),
            "probe_sha256": _compute_digest(
                {f"probe_{index}" if index else "probe": parts for index, parts in enumerate(model.probe_parameters)}
            ),
            "size": str(model.size),
        }
        temp_path.write_bytes(_serialize_with_checksum(program.model_proto, TENSOR_DESCRIPTIONS | identity | metadata))
        difference = _compute_difference(model, temp_path)
        if not difference <= MAX_RELATIVE_DIFFERENCE:
            raise BundleError(
                f"network {model.config.name}: onnxruntime and torch differ by {difference:.1e}, more than "
                f"{MAX_RELATIVE_DIFFERENCE}"
            )
    return difference


def _find_learned_module(model: PtychoModel) -> nn.Module:
    """Return the only learned module of the network; the physics input and the head have no weights."""
    parts = model.network.learned_modules
    if len(parts) != 1:
        raise BundleError(
            f"network {model.config.name}: has {len(parts)} learned parts; an ONNX file contains exactly one; train "
            "another `network`"
        )
    return parts[0]


def _compute_weights_digest(part: nn.Module) -> str:
    """Return the digest of the weights of ``part``; names of layers as in the first exported files."""
    return _compute_digest(downgrade_layer_names(dict(part.state_dict())))


def _compute_digest(tensors: dict[str, Tensor]) -> str:
    """sha256 of tensors with their names and shapes: the same on any machine, and in any memory order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _compute_difference(model: PtychoModel, path: Path) -> float:
    """Largest difference of the patches with the exported network from torch's, over batches of several sizes."""
    by_runtime = copy.deepcopy(model)
    load_onnx_network(by_runtime, path)
    worst = 0.0
    for count in (1, 2, 7):
        patterns = _simulate_patterns(model, count)
        expected = model.network(*patterns)
        change = (by_runtime.network(*patterns) - expected).abs().amax() / expected.abs().amax().clamp(min=1)
        worst = max(worst, float(change.nan_to_num(torch.inf)))
    return worst


@torch.no_grad()
def _capture_channels(model: PtychoModel, count: int) -> Tensor:
    """What the real-valued part gets of ``count`` patterns."""
    captured: list[Tensor] = []
    hook = _find_learned_module(model).register_forward_pre_hook(lambda _, inputs: captured.extend(inputs))
    model.network(*_simulate_patterns(model, count))
    hook.remove()
    return captured[0]


@torch.no_grad()
def _simulate_patterns(model: PtychoModel, count: int) -> tuple[Tensor, Tensor]:
    """Amplitudes (n, N, N) of random objects under a probe of the model, and the probe at random fractions.

    A model without a probe is tried with a Gaussian.
    """
    generator = torch.Generator().manual_seed(count)
    size = model.size
    axis = torch.exp(-((torch.arange(size) - size / 2) / (size / 6)).square())
    modes = model.probes[0] if model.probes else 10 * torch.complex(axis[:, None] * axis, torch.zeros(size, size))[None]
    probe = shift_probe(modes, torch.rand(count, 2, generator=generator) - 0.5)
    channels = torch.rand(2, count, size, size, generator=generator)
    objects = torch.polar(0.5 + channels[0] / 2, channels[1])
    return from_patches(objects, probe).intensity.sqrt(), probe


def _serialize_with_checksum(proto: Any, metadata: dict[str, str]) -> bytes:
    """``proto`` serialised with ``note`` and a digest of the whole; without the exporter's traces of source files."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del proto.metadata_props[:]
    sealed = {"seal": "sha256 of this file with zeros here: " + 64 * "0"}
    for key, value in sorted((metadata | sealed).items()):
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString(deterministic=True)
    start, end = _find_checksum(content)
    return content[:start] + _compute_checksum(content).encode() + content[end:]


def _find_checksum(content: bytes) -> tuple[int, int]:
    found = _CHECKSUM_PATTERN.search(content)
    assert found
    return found.span(1)


def _compute_checksum(content: bytes) -> str:
    start, end = _find_checksum(content)
    return hashlib.sha256(content[:start] + 64 * b"0" + content[end:]).hexdigest()


def _import_optional(name: str) -> Any:
    """The optional module ``name``. Raises :class:`ConfigError`, which says how to get it, where it is missing."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name} is not installed, which ONNX needs: pip install 'ptycho-torch[export]'") from error


@contextmanager
def _silence_exporter() -> Iterator[None]:
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
