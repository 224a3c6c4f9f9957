"""Types for annotations whose import would cost time at run time."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any  # importing matplotlib takes 0.4 s, and most commands draw nothing

__all__ = ["Figure"]
