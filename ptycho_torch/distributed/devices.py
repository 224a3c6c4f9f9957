"""Selection of the device and of the arithmetic of networks."""

import logging
from pathlib import Path
from typing import get_args

import torch

from ptycho_torch.config.base import Precision
from ptycho_torch.core.errors import ConfigError, DeviceError

log = logging.getLogger(__name__)


def select_device(name: str | torch.device) -> torch.device:
    """Return the device ``name``; ``auto`` selects CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: the device is not available, or its name is unknown.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"`device` is {name}; expected auto, cpu, cuda or mps") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"`device` is {name}; expected auto, cpu, cuda or mps")
    if (device.type == "cuda" and not cuda) or (device.type == "mps" and not mps):
        raise DeviceError(f"`device` {name} is not available on this machine; choose `device` cpu or auto")
    log.debug("computing on %s", device)
    return device


def select_precision(name: str, device: torch.device) -> str:
    """Return the arithmetic ``name``, fp32 or bf16; ``auto`` selects bf16 if ``device`` is faster with it.

    This holds for GPUs with bf16, and for CPUs with matrix tiles or with AVX-512 bf16 at full rate. On Intel CPUs with
    AVX-512 bf16 only, bf16 is slower than fp32 (``docs/findings.md``).

    Raises:
        ConfigError: there is no arithmetic of this name.
    """
    if name not in get_args(Precision):
        raise ConfigError(f"`precision` is {name}; expected one of {', '.join(get_args(Precision))}")
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _has_fast_bf16(_read_cpu_info())
    log.debug("networks in %s", "bf16" if fast else "fp32")
    return "bf16" if fast else "fp32"


def _read_cpu_info() -> str:
    """Read the description of the CPU by Linux; empty on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.is_file() else ""


def _has_fast_bf16(cpu_info: str) -> bool:
    """Return True if the CPU of this description is faster in bf16 than in fp32."""
    words = set(cpu_info.split())
    return "amx_bf16" in words or {"avx512_bf16", "AuthenticAMD"} <= words
