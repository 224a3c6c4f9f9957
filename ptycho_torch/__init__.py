"""Ptychographic imaging: from a scan file to a picture of the object, by networks and engines over one forward model.

The nouns are here, loaded when first used; importing this package imports no torch. The verbs are in modules of their
own: ``from ptycho_torch.train import train``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_torch.data.reconstruction import Reconstruction
    from ptycho_torch.data.scan import Scan
    from ptycho_torch.io.npz import load_scan, save_scan
    from ptycho_torch.io.reconstruction import load_reconstruction
    from ptycho_torch.models.saved_model import Model, load_model

__version__ = "0.1.0"

__all__ = [
    "Model",
    "Reconstruction",
    "Scan",
    "__version__",
    "load_model",
    "load_reconstruction",
    "load_scan",
    "save_scan",
]

_HOMES = {
    "Scan": "ptycho_torch.data.scan",
    "load_scan": "ptycho_torch.io.npz",
    "save_scan": "ptycho_torch.io.npz",
    "Reconstruction": "ptycho_torch.data.reconstruction",
    "load_reconstruction": "ptycho_torch.io.reconstruction",
    "Model": "ptycho_torch.models.saved_model",
    "load_model": "ptycho_torch.models.saved_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
