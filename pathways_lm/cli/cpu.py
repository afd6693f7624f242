"""Settings of a process that trains on CPUs, which are read once: memory when it starts, XLA's when it finds devices.

XLA takes a step's temporary memory from malloc and gives it back at every step. glibc hands so much on to the kernel,
which clears it page by page when it is taken again: an eighth of a small model's step (decision 20).

XLA for CPUs writes each of several results of one chain of elementwise operations by a loop of its own, unless told to
fuse them: a tenth of a step (decision 22). A program cannot be compiled with that option, only a process.
"""

import importlib.util
import os
import platform
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import entry_points

TUNABLES = ":".join(
    (
        # One heap, as only the first can grow without bounds, from which everything comes and nothing is given back.
        "glibc.malloc.arena_max=1",
        "glibc.malloc.mmap_max=0",
        "glibc.malloc.trim_threshold=1000000000000",
        "glibc.malloc.hugetlb=1",
    )
)
FUSIONS = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"


def keep_memory(environment: Mapping[str, str] = os.environ) -> None:
    """Begins this process anew with these settings, where it is for CPUs and glibc has been told nothing else."""
    if "GLIBC_TUNABLES" not in environment and platform.libc_ver()[0] == "glibc" and not _accelerated(environment):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment, "GLIBC_TUNABLES": TUNABLES})


def fuse_chains(environment: MutableMapping[str, str] = os.environ) -> None:
    """Asks XLA to, where this process is for CPUs and XLA has been told nothing else. Devices must not be found yet."""
    if "XLA_FLAGS" not in environment and not _accelerated(environment):
        environment["XLA_FLAGS"] = FUSIONS


def _accelerated(environment: Mapping[str, str]) -> bool:
    """Whether JAX would look for other devices than CPUs."""
    if environment.get("JAX_PLATFORMS"):
        return environment["JAX_PLATFORMS"] != "cpu"
    return importlib.util.find_spec("libtpu") is not None or bool(entry_points(group="jax_plugins"))
