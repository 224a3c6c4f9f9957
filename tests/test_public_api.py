"""The public API: lazy names, the shortest example, and a script as in a notebook."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ptycho_torch as pt

SOURCE = Path(pt.__file__)


def test_every_public_name_is_importable_and_listed() -> None:
    assert set(dir(pt)) == set(pt.__all__)
    for name in pt.__all__:
        assert getattr(pt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"):
        pt.train_everything  # noqa: B018


def test_the_typed_imports_equal_the_lazy_ones() -> None:
    blocks = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    typed = {
        alias.asname: f"{node.module}:{alias.name}"
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {
        name: f"ptycho_torch.{module.partition(':')[0]}:{module.partition(':')[2] or name}"
        for name, module in pt._MODULES.items()
    }
    assert typed == lazy


def test_the_package_and_its_settings_import_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ptycho_torch as pt; dir(pt); pt.PIE(epochs=3); pt.Scan; pt.Reconstruction; pt.load_scan; "
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
