"""The public API: lazy names, the shortest example, and a script as in a notebook."""

import subprocess
import sys

import pytest

import ptycho_torch as pt


def test_every_public_name_is_importable_and_listed() -> None:
    assert set(dir(pt)) == {*pt.__all__, "__version__"}
    for name in pt.__all__:
        assert getattr(pt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"):
        pt.train_everything  # noqa: B018


def test_the_package_and_its_settings_import_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ptycho_torch as pt; dir(pt); pt.PIE(epochs=3); pt.Scan; pt.Reconstruction; pt.load_scan; "
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
