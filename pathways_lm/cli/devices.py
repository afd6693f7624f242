"""Devices, as the command line sets them up before the first is touched."""

import argparse
import logging
import sys
from pathlib import Path

import jax

from pathways_lm.errors import ConfigError
from pathways_lm.mesh import join_pathways


def prepare_devices(arguments: argparse.Namespace, cache_dir: str) -> None:
    """Virtual CPU devices where asked for, a Pathways cluster's where there is one; a lasting cache of programs."""
    set_up_logging()
    if arguments.cpu_devices is not None:
        if arguments.cpu_devices < 1:
            raise ConfigError(f"--cpu-devices must be at least 1, not {arguments.cpu_devices}")
        jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
    join_pathways()
    jax.config.update("jax_compilation_cache_dir", str(compiled_folder(cache_dir)))


def compiled_folder(cache_dir: str) -> Path:
    """Where compiled programs lie, from one process to the next."""
    return Path(cache_dir).expanduser() / "compiled"


def set_up_logging() -> None:
    """The error stream tells what takes a while here, and not what Orbax does."""
    _quiet_orbax()
    logging.basicConfig(format="%(message)s", force=True)
    logging.getLogger("pathways_lm").setLevel(logging.INFO)


def _quiet_orbax() -> None:
    """Keeps off the error stream what Orbax announces by itself, and what it tells besides raising it."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    report = sys.unraisablehook
    # From tensorstore's threads, for each further array when the first could not be written.
    sys.unraisablehook = lambda raised: None if str(raised.exc_value) == "Event loop is closed" else report(raised)
