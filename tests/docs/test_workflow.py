"""Run what the documents show: the commands of the how-to pages, and the links between pages."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import CommandOutcome

from ptycho_torch.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"


def list_pages() -> list[Path]:
    """Return the how-to pages in the order of their index."""
    names = re.findall(
        r"^\d+\. \[[^\]]+\]\(([^)]+)\)", (HOW_TO / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return [HOW_TO / name for name in names]


def list_commands() -> list[list[str]]:
    """Return the words of every command in the ``bash`` blocks of the how-to pages, in order."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in list_pages())
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def test_the_index_lists_every_how_to_page() -> None:
    assert sorted(list_pages()) == sorted(set(HOW_TO.glob("*.md")) - {HOW_TO / "README.md"})


def test_the_pages_use_every_command_except_the_demo() -> None:
    used = {words[2].removeprefix("ptycho_torch.") for words in list_commands()}
    assert used == set(COMMANDS) - {"demo"}


def test_the_readme_lists_every_command() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


def test_every_command_of_the_pages_runs(
    tmp_path: Path, run_main: Callable[..., CommandOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in list_commands():
        assert words[:2] == ["python", "-m"]
        done = run_main(words[2].removeprefix("ptycho_torch."), *words[3:])
        assert done.code == 0, f"{shlex.join(words)}\n{done.stderr}"
    assert (tmp_path / "evaluation" / "report.html").stat().st_size > 10_000


def test_links_between_documents_lead_to_files() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("specs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_links_to_sections_lead_to_headings() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("specs/*.md")]:
        for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / target if target else page).read_text(encoding="utf-8")
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert section in slugs, f"{page.name} points to {target}#{section}"


def test_the_siemens_star_is_converted_by_the_command_in_the_benchmarks() -> None:
    lines = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("python -m ptycho_torch.convert ")]
    assert line.split()[3:5] == ["siemens-star-small.npz.bz2", "star.npz"]
    assert not set("'\"#") & set(line)


def test_the_architecture_page_names_existing_files() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE):
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", row):
            assert (ROOT / "ptycho_torch" / name).exists() or (ROOT / name).exists(), name
