"""What the documents show works as it stands: the commands of the workflow page, the Python of the README."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "workflows" / "pytorch.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def test_the_page_shows_every_verb_but_the_demo() -> None:
    from ptycho_torch.__main__ import VERBS

    shown = {words[2].removeprefix("ptycho_torch.") for words in commands()}
    assert shown == set(VERBS) - {"demo"}


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    for words in commands():
        assert words[:2] == ["python", "-m"]
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 10_000


def test_the_python_of_the_readme_runs(tmp_path: Path, model_folder: Path, scan_file: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    shutil.copytree(model_folder, tmp_path / "demo_output" / "model")
    shutil.copy(scan_file, tmp_path / "demo_output" / "scan.npz")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "complex64" in done.stdout


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("specs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_star_is_converted_by_the_line_in_the_benchmarks() -> None:
    lines = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("python -m ptycho_torch.convert ")]
    assert line.split()[3:5] == ["siemens-star-small.npz.bz2", "star.npz"]
    assert not set("'\"#") & set(line)
