"""Where tensors are computed."""

import logging

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
