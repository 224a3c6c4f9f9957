"""Write the network of a trained model as an ONNX file, which runs without torch.

::

    python -m ptycho_torch.export model --output model.onnx

The file is there only when onnxruntime gives the patches that torch gives.
"""

import torch

from ptycho_torch import __version__
from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.inference import ExportConfig
from ptycho_torch.models.onnx import export_network
from ptycho_torch.models.saved_model import load_model


def export(config: ExportConfig) -> float:
    """Write the network of the bundle in ``config.model_path`` to ``config.output``.

    Returns:
        The largest difference between onnxruntime and torch, as a share of the patches' largest modulus (at least 1).

    Raises:
        PtychoError: no bundle there, a network that ONNX cannot express, a missing package, or an output that cannot
            be written; then no file is left, and one that was there is as it was.
    """

    bundle = load_model(config.model_path)
    note = {
        "gridsize": str(bundle.gridsize),
        "photons_per_unit": ", ".join(repr(scan.photons_per_unit) for scan in bundle.scans),
        "ptycho_torch": __version__,
        "torch": torch.__version__,
    }
    return export_network(config.output, bundle.model, note)


def run(config: ExportConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    del invocation
    difference = export(config)
    if not config.quiet:
        print(f"onnxruntime and torch differ by {difference:.1e} at most")
        print(f"{config.output}: written; python -m ptycho_torch.inference --onnx {config.output} runs it")
    return 0
