"""Objects of several layers in files of other programs."""

from typing import Any

from numpy.typing import NDArray

from ptycho_torch.io.parts import InputReport


def flatten_layers(obj: NDArray[Any], path: str, report: InputReport) -> NDArray[Any]:
    """Return the product of the layers of a complex object, as a thin object.

    Args:
        obj: (layers, rows, columns) or (rows, columns).
        path: its place in the file.
        report: record of the file.
    """
    if obj.ndim == 2:
        return obj
    if obj.shape[0] > 1:
        report.assumptions.append(f"{path}: the object is the product of {obj.shape[0]} layers")
    product: NDArray[Any] = obj.prod(0)
    return product
