"""A network that looks at the whole object, on two ranks."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def test_two_ranks_do_what_one_does(run_process: Callable[..., Any]) -> None:
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, HERE / "whole_object.py")
    done = run_process(*words, PYTHONPATH=os.pathsep.join([str(HERE.parent), *sys.path]))
    assert done.code == 0, done.err
