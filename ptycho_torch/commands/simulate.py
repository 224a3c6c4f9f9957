"""Make a scan file from a simulated object.

::

    python -m ptycho_torch.simulate scan.npz --preset run1084 --photons 1e6 --seed 0
"""

from pathlib import Path

from ptycho_torch.commands.base import Invocation
from ptycho_torch.config.data import SimulateConfig
from ptycho_torch.io.npz import save_scan
from ptycho_torch.simulation.scan import make_simulation_settings, simulate_from_settings


def simulate(config: SimulateConfig) -> Path:
    """Write the scan that ``config`` describes; return its path. The same settings give the same bytes.

    Raises:
        ConfigError: an unknown object or probe, or parts that do not fit together.
        DataError: the file cannot be written.
    """

    recipe = make_simulation_settings(
        config.preset,
        object=config.object,
        probe=config.probe,
        trajectory=config.trajectory,
        size=config.size,
        positions=config.positions,
        overlap=config.overlap,
        jitter=config.jitter,
        modes=config.modes,
        photons=config.photons,
    )
    save_scan(config.output, simulate_from_settings(recipe, config.seed), config.layout)
    return config.output


def run(config: SimulateConfig, invocation: Invocation) -> int:
    """Run the command; return the exit code."""
    del invocation
    path = simulate(config)
    if not config.quiet:
        print(f"{path}: written; python -m ptycho_torch.describe {path} says what is in it")
    return 0
