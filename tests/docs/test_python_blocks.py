"""The Python blocks of the documents run; those of the README run in ``tests/test_public_api.py``."""

from pathlib import Path

import pytest
from helpers import ROOT, list_python_blocks, run_python_blocks

PAGES = [page for page in sorted((ROOT / "docs").glob("**/*.md")) if list_python_blocks(page)]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_blocks_of_a_page_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_python_blocks(page)


def test_a_block_is_skipped_only_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na = 1\n```\n\n<!-- not run: needs a file -->\n```python\nb = 1\n```\n\n```bash\nc\n```\n"
        "<!-- not run: -->\n\n```python\nd = a\n```\n"
    )
    assert list_python_blocks(page) == ["a = 1\n", "d = a\n"]
    assert run_python_blocks(page)["d"] == 1
