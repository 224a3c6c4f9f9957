"""The commands of the workflow page run as they stand, in their order."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "workflows" / "pytorch.md"


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
