"""Where tensors are computed, and in what arithmetic networks are."""

import logging
from pathlib import Path

import torch

from ptycho_torch.core.errors import DeviceError

log = logging.getLogger(__name__)


def select_device(name: str) -> torch.device:
    """The device called ``name``: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: that device is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        raise DeviceError(f"--device {name} is not available on this machine; choose --device cpu or auto")
    log.debug("computing on %s", name)
    return torch.device(name)


def select_precision(name: str, device: torch.device) -> str:
    """The arithmetic called ``name``, fp32 or bf16: ``auto`` takes bf16 where ``device`` is faster by it.

    Those are GPUs that have it, and CPUs with matrix tiles or with AVX-512 bf16 at full rate; on Intel's that have the
    latter alone it is slower than fp32 (``docs/findings.md``).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _has_fast_bf16(_read_cpu_info())
    log.debug("networks in %s", "bf16" if fast else "fp32")
    return "bf16" if fast else "fp32"


def _read_cpu_info() -> str:
    """What Linux tells of the CPU; empty where there is nothing to read."""
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.is_file() else ""


def _has_fast_bf16(cpu_info: str) -> bool:
    """Whether a CPU of which Linux tells ``told`` has bf16 that pays."""
    words = set(cpu_info.split())
    return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
