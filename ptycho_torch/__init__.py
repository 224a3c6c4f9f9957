"""Ptychographic imaging on PyTorch: networks and iterative engines over one forward model.

::

    import ptycho_torch as pt

    scan = pt.simulate_scan("run1084", photons=1e6, seed=0)
    result = pt.PIE().run(scan)
    result.plot().savefig("object.png")
    print(result.compare(scan.truth))

Every name is imported at its first use; importing the package itself imports neither torch nor matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptycho_torch.config.engines import EPIE as EPIE
    from ptycho_torch.config.engines import LSQML as LSQML
    from ptycho_torch.config.engines import PIE as PIE
    from ptycho_torch.config.engines import RAAR as RAAR
    from ptycho_torch.config.engines import RPIE as RPIE
    from ptycho_torch.config.engines import DifferenceMap as DifferenceMap
    from ptycho_torch.config.engines import Gradient as Gradient
    from ptycho_torch.config.engines import NetworkEngine as NetworkEngine
    from ptycho_torch.core.progress import ProgressObserver as ProgressObserver
    from ptycho_torch.data.reconstruction import Reconstruction as Reconstruction
    from ptycho_torch.data.scan import Scan as Scan
    from ptycho_torch.io.npz import load_scan as load_scan
    from ptycho_torch.io.npz import save_scan as save_scan
    from ptycho_torch.io.reconstruction import load_reconstruction as load_reconstruction
    from ptycho_torch.models.saved_model import Model as Bundle  # noqa: F401
    from ptycho_torch.models.saved_model import Model as Model
    from ptycho_torch.models.saved_model import load_model as load_bundle  # noqa: F401
    from ptycho_torch.models.saved_model import load_model as load_model
    from ptycho_torch.simulation.scan import simulate_scan as simulate_scan
    from ptycho_torch.training.fit import fit as fit

__version__ = "0.1.0"

_MODULES = {
    "EPIE": "config.engines",
    "LSQML": "config.engines",
    "PIE": "config.engines",
    "RAAR": "config.engines",
    "RPIE": "config.engines",
    "Bundle": "models.saved_model:Model",
    "DifferenceMap": "config.engines",
    "Gradient": "config.engines",
    "Model": "models.saved_model",
    "NetworkEngine": "config.engines",
    "ProgressObserver": "core.progress",
    "Reconstruction": "data.reconstruction",
    "Scan": "data.scan",
    "fit": "training.fit",
    "load_bundle": "models.saved_model:load_model",
    "load_model": "models.saved_model",
    "load_reconstruction": "io.reconstruction",
    "load_scan": "io.npz",
    "save_scan": "io.npz",
    "simulate_scan": "simulation.scan",
}
"""The module of each public name; ``module:name`` where the module uses another name."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original = _MODULES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), original or name)


def __dir__() -> list[str]:
    return sorted(__all__)
