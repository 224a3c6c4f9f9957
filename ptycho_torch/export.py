"""Write the network of a trained model as an ONNX file, which runs without torch.

::

    python -m ptycho_torch.export model --output model.onnx

The file is there only when onnxruntime gives the patches that torch gives.
"""

from collections.abc import Sequence

from ptycho_torch.cli import run_verb
from ptycho_torch.core.config import ExportConfig


def export(config: ExportConfig) -> float:
    """Write the network of the bundle in ``config.model_path`` to ``config.output``.

    Returns:
        The largest difference between onnxruntime and torch, as a share of the patches' largest modulus (at least 1).

    Raises:
        PtychoError: no bundle there, a network that ONNX cannot express, a missing package, or an output that cannot
            be written; then no file is left, and one that was there is as it was.
    """
    import torch

    from ptycho_torch import __version__
    from ptycho_torch.networks.exported import export_network
    from ptycho_torch.training.bundle import load_bundle

    bundle = load_bundle(config.model_path)
    note = {
        "gridsize": str(bundle.gridsize),
        "photons_per_unit": ", ".join(repr(scan.photons_per_unit) for scan in bundle.scans),
        "ptycho_torch": __version__,
        "torch": torch.__version__,
    }
    return export_network(config.output, bundle.model, note)


def _command(config: ExportConfig) -> None:
    difference = export(config)
    if not config.quiet:
        print(f"onnxruntime and torch differ by {difference:.1e} at most")
        print(f"{config.output}: written; python -m ptycho_torch.inference --onnx {config.output} runs it")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ptycho-torch export``."""
    return run_verb(ExportConfig, _command, argv, "ptycho-torch export")


if __name__ == "__main__":
    raise SystemExit(main())
