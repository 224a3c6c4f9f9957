"""The public API: lazy names, the shortest example, and a script as in a notebook."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, run_python_blocks
from PIL import Image

import ptycho_torch as pt


def test_every_public_name_is_importable_and_listed() -> None:
    assert set(dir(pt)) == {*pt.__all__, "__version__"}
    for name in pt.__all__:
        assert getattr(pt, name) is not None
    with pytest.raises(AttributeError, match="attribute train_everything"):
        pt.train_everything  # noqa: B018


def test_the_package_and_its_settings_import_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, ptycho_torch as pt; dir(pt); pt.PIE(epochs=3); pt.Scan; pt.Reconstruction; pt.load_scan; "
        "print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_five_lines_of_the_readme_give_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_python_blocks(ROOT / "README.md")
    assert "NRMSE" in capsys.readouterr().out
    assert names["result"].compare(names["scan"].truth)["nrmse"] < 0.02
    gray = np.asarray(Image.open("object.png").convert("L"), float)
    rows, columns = gray.shape
    for panel in (gray[:, : columns // 2], gray[:, columns // 2 :]):
        assert panel[rows // 4 : 3 * rows // 4, columns // 8 : columns // 3].std() > 10


def test_a_notebook_simulates_reconstructs_fits_predicts_compares_and_draws() -> None:
    scan = pt.simulate_scan("tiny", seed=0)
    result = pt.Pipeline(pt.PIE(epochs=3), pt.LSQML(epochs=2, update_probe=True)).run(scan)
    model = pt.fit(scan, epochs=2, targets=result, network="unet")
    image = model.predict(scan)
    for each in (result, image):
        assert each.scores(scan)["r"] < 1
        assert 0 < each.compare(scan.truth, remove_ramp=True, remove_shift=True)["nrmse"] < 2
        for figure in (each.plot(), each.plot_probe()):
            assert figure._repr_png_().startswith(b"\x89PNG")
        assert len(repr(each).splitlines()) < 12
    result.plot_history()
    scan.plot()
