"""``python -m ptycho_torch <verb>``, the same as the command ``ptycho-torch``."""

import sys
from collections.abc import Sequence
from importlib import import_module

VERBS = {
    "train": "train a network on a scan, without labels",
    "pretrain": "train a network on simulated patterns, for scans that it never saw",
    "inference": "reconstruct a scan with a trained network",
    "reconstruct": "reconstruct a scan by iterative engines, a network, or a chain of them",
    "export": "write a trained network as an ONNX file, which runs without torch",
    "evaluate": "measure a reconstruction against the truth or the patterns",
    "simulate": "make a scan file from a simulated object",
    "describe": "say what is in a scan file, and what breaks the contract",
    "convert": "make a canonical scan file from a foreign one",
    "subset": "cut a small deterministic fixture out of a big scan",
    "sweep": "measure what the runtime of training depends on",
    "demo": "simulate, train, infer and evaluate in one go",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` names with the rest of ``argv``; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in VERBS:
        return int(import_module(f"ptycho_torch.{argv[0]}").main(argv[1:]))
    listing = "\n".join(f"  {name:<11} {text}" for name, text in VERBS.items())
    usage = f"usage: ptycho-torch VERB [options]   (ptycho-torch VERB --help)\n\nverbs:\n{listing}"
    if argv and argv[0] == "--version":
        from ptycho_torch import __version__

        print(__version__)
        return 0
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    found = f"unknown verb {argv[0]}" if argv else "no verb given"
    print(f"ptycho-torch: {found}; expected one of {', '.join(VERBS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
