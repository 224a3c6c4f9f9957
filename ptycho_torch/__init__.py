"""Ptychographic imaging on PyTorch: networks and iterative engines over one forward model.

::

    import ptycho_torch as pt

    scan = pt.simulate_scan("run1084", photons=1e6, seed=0)
    result = pt.PIE().run(scan)
    result.plot().savefig("object.png")
    print(result.compare(scan.truth))

The public names are listed in ``__init__.pyi``. Each is imported at its first use; importing the package itself imports
neither torch nor matplotlib.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, _list_names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return sorted([*_list_names(), "__version__"])
