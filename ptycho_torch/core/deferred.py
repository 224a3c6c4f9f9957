"""Calls into higher layers: the one mechanism behind convenience methods of the public API.

``Reconstruction.plot`` belongs to a class of a low layer, and its work belongs to a higher one. Such a method names the
function that does the work, which is imported at the first call. Importing the class then costs nothing, and no other
code imports upward.
"""

from importlib import import_module
from typing import Any


def call_deferred(target: str, /, *args: Any, **kwargs: Any) -> Any:
    """Import the function ``target`` and return the result of calling it.

    Args:
        target: module and function, ``package.module:function``.
        *args: positional arguments of the function.
        **kwargs: keyword arguments of the function.
    """
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)(*args, **kwargs)
