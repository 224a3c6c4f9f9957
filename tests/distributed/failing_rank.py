"""Program for two ranks: a training whose rank FAILING_RANK (default 1) sends itself a signal after an epoch.

The first argument names the signal; the others are the arguments of ``train``.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from ptycho_torch.train import main


def send_signal_after_an_epoch(checkpoint: Path, signal_number: signal.Signals) -> None:
    first_time = None  # the first checkpoint is of the untrained model
    while first_time is None or checkpoint.stat().st_mtime_ns == first_time:
        time.sleep(0.01)
        if first_time is None and checkpoint.exists():
            first_time = checkpoint.stat().st_mtime_ns
    os.kill(os.getpid(), signal_number)


if __name__ == "__main__":
    _, signal_name, *arguments = sys.argv
    folder = Path(arguments[arguments.index("--output_dir") + 1])
    if os.environ["RANK"] == os.environ.get("FAILING_RANK", "1"):
        checkpoint = folder / "checkpoints" / "last" / "state.safetensors"
        threading.Thread(
            target=send_signal_after_an_epoch, args=(checkpoint, signal.Signals[signal_name]), daemon=True
        ).start()
    raise SystemExit(main(arguments))
