"""Progress: lines of the log without a terminal, one updated line in a notebook."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from ptycho_torch.core import progress
from ptycho_torch.core.progress import ProgressObserver


def run_task(observer: ProgressObserver, total: int = 40) -> None:
    observer.start("pie", total)
    for step in range(total):
        observer.advance(r=1 / (step + 1))
    observer.finish()


def test_each_tenth_is_logged_without_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ptycho_torch"):
        run_task(ProgressObserver())
    assert len(caplog.messages) == 10
    assert caplog.messages[-1] == "pie: 40 of 40  r 0.025"


def test_a_notebook_gets_one_updated_line(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def display(content: dict[str, str], **options: Any) -> Any:
        texts.append(content["text/plain"])
        return SimpleNamespace(update=lambda content, **options: texts.append(content["text/plain"]))

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(__path__=[]))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(progress, "NOTEBOOK_INTERVAL_S", 0.0)
    observer = ProgressObserver()
    observer._display = progress._NotebookLine()
    run_task(observer)
    assert texts[0] == "pie: 0 of 40"
    assert texts[-1] == "pie: 40 of 40  r 0.025"
