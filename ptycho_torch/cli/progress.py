"""Log messages of a command on stderr."""

import logging

from ptycho_torch.cli.messages import FlagFormatter
from ptycho_torch.config.base import CommonOptions


def set_up_logging(config: CommonOptions, mute: bool = False) -> None:
    """Send the package's log to stderr: warnings with ``--quiet``, everything with ``--debug``, none if ``mute``."""
    level = logging.DEBUG if config.debug else logging.WARNING if config.quiet else logging.INFO
    level = logging.CRITICAL if mute else level
    handler = logging.StreamHandler()
    handler.setFormatter(
        FlagFormatter("%(message)s" if level == logging.INFO else "%(levelname)s %(message)s", type(config))
    )
    logger = logging.getLogger("ptycho_torch")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level)
