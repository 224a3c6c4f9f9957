"""Networks with object stages on two ranks."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def test_two_ranks_give_the_result_of_one(run_process: Callable[..., Any]) -> None:
    arguments = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        HERE / "two_rank_object_stages.py",
    )
    outcome = run_process(*arguments, PYTHONPATH=os.pathsep.join([str(HERE.parent), *sys.path]))
    assert outcome.code == 0, outcome.err
