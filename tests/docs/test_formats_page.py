"""The page of file formats lists every format, and writing as the registry does."""

import re
from pathlib import Path

import pytest

from ptycho_torch.io.formats.base import Format, ResultWriter, ScanWriter
from ptycho_torch.io.formats.registry import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROWS = {
    match[1]: [cell.strip() for cell in line.split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if (match := re.match(r"\| `(\w+)` \|", line))
}


@pytest.mark.parametrize("each", FORMATS, ids=lambda each: each.name)
def test_the_page_lists_the_format_and_its_writers(each: Format) -> None:
    row = ROWS[each.name]
    written = row[4]
    assert ("scan" in written) == isinstance(each, ScanWriter)
    if each.name != "npz":
        assert ("result" in written) == isinstance(each, ResultWriter)
