"""Run by torchrun: a training whose second rank kills itself once a whole epoch is done."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from ptycho_torch.train import main


def die_after_an_epoch(state: Path) -> None:
    untrained = None  # the first state is that of the untrained model
    while untrained is None or state.stat().st_mtime_ns == untrained:
        time.sleep(0.01)
        if untrained is None and state.exists():
            untrained = state.stat().st_mtime_ns
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
    if os.environ["RANK"] == "1":
        threading.Thread(
            target=die_after_an_epoch, args=(folder / "checkpoints" / "last" / "state.safetensors",), daemon=True
        ).start()
    raise SystemExit(main(sys.argv[1:]))
