"""Write the network of a trained model as an ONNX file, which onnxruntime runs without torch.

::

    python -m ptycho_torch.export model --output model.onnx

The file is written only if onnxruntime and torch compute the same patches.
"""

import torch

from ptycho_torch import __version__
from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.inference import ExportConfig
from ptycho_torch.models.onnx import export_network
from ptycho_torch.models.saved_model import load_model


def export(config: ExportConfig) -> float:
    """Write the network of the model in ``config.model_path`` to the ONNX file ``config.output``.

    Returns:
        The largest difference between onnxruntime and torch, as a fraction of the largest modulus of the patches (at
        least 1).

    Raises:
        PtychoError: the folder contains no model, ONNX cannot express the network, a package is missing, or the file
            cannot be written; an earlier file of that name then remains unchanged.
    """
    model = load_model(config.model_path)
    note = {
        "gridsize": str(model.gridsize),
        "photons_per_unit": ", ".join(repr(scan.photons_per_unit) for scan in model.scans),
        "ptycho_torch": __version__,
        "torch": torch.__version__,
    }
    return export_network(config.output, model.model, note)


def run(config: ExportConfig, invocation: Invocation) -> int:
    """Export the network, and print its agreement with torch; return the exit code."""
    del invocation
    difference = export(config)
    if not config.quiet:
        print(f"onnxruntime and torch differ by {difference:.1e} at most")
        print(f"{config.output}: written; to run it: python -m ptycho_torch.inference --onnx {config.output}")
    return 0
