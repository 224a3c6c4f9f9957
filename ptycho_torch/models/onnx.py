"""Export of a network to an ONNX file, and execution of that file by onnxruntime.

The graph contains the learned, real-valued part of the network, from its input channels to the two output channels.
The physics input before this part and the head after it are computed by this package. ONNX can express the FFTs of the
physics input, but the physics input divides by the far field of the probe, and where the far field is as small as the
rounding errors of a float32 FFT, two FFT libraries differ: patches would differ by 1e-2. The number of patterns is
variable, N is fixed.
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
"""Version of the ONNX operators: the oldest version that torch exports, which older runtimes can read."""

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Largest difference of patches between onnxruntime and torch, relative to the largest modulus (at least 1)."""

TENSOR_DESCRIPTIONS = {
    "input channels": "(batch, C, N, N) float32: input of the backbone, computed from a pattern: for most networks the "
    "real and imaginary part of the physics input and log(1 + A) / 3 of the centered amplitude A in sqrt(photons); "
    "last, for networks with a probe channel, the amplitude of the probe relative to its maximum",
    "output object": "(batch, 2, N, N) float32: a and b; the object is exp(a + ib) for the head polar and 1 + a + ib "
    "for residual",
}
"""Descriptions of the input and output of the graph, stored in the file."""

_CHECKSUM_PATTERN = re.compile(rb"sha256 of this file with zeros here: ([0-9a-f]{64})")


class OnnxNetwork(nn.Module):
    """The learned part of a network, read from an ONNX file and run by onnxruntime on the CPU.

    Args:
        path: file written by :func:`export_network`.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file is missing, was not written by :func:`export_network`, or was changed afterwards.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        onnxruntime = _import_optional("onnxruntime")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: the exported network cannot be read ({error.strerror})") from error
        checksum = _CHECKSUM_PATTERN.search(content)
        if not checksum:
            raise DataError(f"{path}: not a whole network exported by ptycho_torch; write it by ptycho-torch export")
        if checksum[1].decode() != _compute_checksum(content):
            raise DataError(f"{path}: was changed after its export (checksums differ); export the network again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin between two calls would slow down torch, which computes the physics input there.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # errors are raised, and need not be printed as well
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen error classes without a common base
            raise DataError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot run this network ({error})"
            ) from error
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map

    def forward(self, channels: Tensor) -> Tensor:
        """Map (n, C, N, N) float32 on the CPU to (n, 2, N, N)."""
        (outputs,) = self.session.run(None, {"channels": channels.contiguous().numpy()})
        return torch.from_numpy(outputs)


def load_onnx_network(model: PtychoModel, path: Path) -> None:
    """Replace the backbone of ``model``, which is on the CPU, by the exported network in ``path``.

    Raises:
        ConfigError: onnxruntime is not installed.
        DataError: the file cannot be used, or contains another network.
    """
    exported = OnnxNetwork(path)
    size, model_size = int(exported.metadata["size"]), model.size
    if size != model_size:
        raise DataError(
            f"{path}: exported for patterns of {size} × {size} pixels; expected {model_size} × {model_size} as for the "
            "model; export this model"
        )
    part = _find_learned_module(model)
    if exported.metadata["network_sha256"] != _compute_weights_digest(part):
        raise DataError(
            f"{path}: exported from another model, or before the last training of this model; export this model"
        )
    model.network.backbone = exported


def export_network(path: Path, model: PtychoModel, metadata: dict[str, str]) -> float:
    """Write the network of ``model`` to ``path`` if its results by onnxruntime and by torch agree.

    Args:
        path: output file; an existing file is replaced. An error leaves it unchanged.
        model: model on the CPU.
        metadata: entries stored in the file in addition to those that identify the network.

    Returns:
        Largest difference between onnxruntime and torch, relative to the largest modulus (at least 1).

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
        BundleError: the network has several learned parts or an operation that ONNX lacks, or onnxruntime and torch
            differ by more than ``MAX_RELATIVE_DIFFERENCE``.
        DataError: the file cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _import_optional(package)
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
        assert program is not None  # only the exporter without dynamo returns None
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
    """Return the SHA-256 of tensors with their names and shapes; it does not depend on machine or memory order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _compute_difference(model: PtychoModel, path: Path) -> float:
    """Return the largest relative difference of patches between ONNX file and torch, for several batch sizes."""
    exported = copy.deepcopy(model)
    load_onnx_network(exported, path)
    largest = 0.0
    for count in (1, 2, 7):
        patterns = _simulate_patterns(model, count)
        expected = model.network(*patterns)
        difference = (exported.network(*patterns) - expected).abs().amax() / expected.abs().amax().clamp(min=1)
        largest = max(largest, float(difference.nan_to_num(torch.inf)))
    return largest


@torch.no_grad()
def _capture_channels(model: PtychoModel, count: int) -> Tensor:
    """Return the input (count, C, N, N) of the learned part for ``count`` simulated patterns."""
    captured: list[Tensor] = []
    hook = _find_learned_module(model).register_forward_pre_hook(lambda _, inputs: captured.extend(inputs))
    model.network(*_simulate_patterns(model, count))
    hook.remove()
    return captured[0]


@torch.no_grad()
def _simulate_patterns(model: PtychoModel, count: int) -> tuple[Tensor, Tensor]:
    """Return amplitudes (n, N, N) of random objects under a probe of the model, and the probe at random fractions.

    A model without a probe gets a Gaussian probe.
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
    """Serialize ``proto`` with ``metadata`` and a checksum, without the paths of source files from the exporter."""
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
    """Return start and end of the checksum in the content of a file."""
    match = _CHECKSUM_PATTERN.search(content)
    assert match
    return match.span(1)


def _compute_checksum(content: bytes) -> str:
    """Return the SHA-256 of the content of a file with zeros in the place of the checksum."""
    start, end = _find_checksum(content)
    return hashlib.sha256(content[:start] + 64 * b"0" + content[end:]).hexdigest()


def _import_optional(name: str) -> Any:
    """Import an optional module; raise :class:`ConfigError` with the install command if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{name} is not installed; ONNX files need it; run pip install 'ptycho-torch[export]'"
        ) from error


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppress warnings of the exporter about torchvision and about deprecated functions inside torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
