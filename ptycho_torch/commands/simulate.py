"""Simulate a scan and write it to a scan file.

python -m ptycho_torch.simulate scan.npz --preset run1084 --photons 1e6 --seed 0
"""

from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import SimulateConfig
from ptycho_torch.io.scan import save_scan
from ptycho_torch.simulation.scan import simulate_scan


def simulate(config: SimulateConfig) -> Path:
    """Write the scan of ``config`` and return its path. The same settings give the same bytes.

    Raises:
        ConfigError: an object or a probe is unknown, or a setting is out of range.
        DataError: the file cannot be written.
    """
    scan = simulate_scan(
        config.preset,
        photons=config.photons,
        seed=config.seed,
        object=config.object,
        probe=config.probe,
        trajectory=config.trajectory,
        size=config.size,
        positions=config.positions,
        overlap=config.overlap,
        jitter=config.jitter,
        modes=config.modes,
    )
    save_scan(config.output, scan, config.layout)
    return config.output


def run(config: SimulateConfig, invocation: Invocation) -> int:
    """Run the command and return the exit code."""
    del invocation
    path = simulate(config)
    if not config.quiet:
        print(f"Wrote {path}. To list its content: python -m ptycho_torch.describe {path}")
    return 0
