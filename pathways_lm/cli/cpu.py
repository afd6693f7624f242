"""How a process that trains on CPUs begins: with settings that are read when it starts, and not later.

XLA takes a step's temporary memory from malloc and gives it back at every step. glibc hands so much on to the kernel,
which clears it page by page when it is taken again: an eighth of a small model's step (decision 20).

XLA for CPUs writes each of several results of one chain of elementwise operations by a loop of its own, unless told to
fuse them: a tenth to a sixth of a step (decision 22). A program cannot be compiled with that option, only a process.
"""

import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
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


def begin_for_cpus(environment: Mapping[str, str] = os.environ) -> None:
    """Begins this process anew with these settings, where it is for CPUs. Who has set a variable has chosen."""
    wanted = {"XLA_FLAGS": FUSIONS}
    if platform.libc_ver()[0] == "glibc":
        wanted["GLIBC_TUNABLES"] = TUNABLES
    missing = {name: value for name, value in wanted.items() if name not in environment}
    if missing and not _accelerated(environment):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environment, **missing})


def _accelerated(environment: Mapping[str, str]) -> bool:
    """Whether JAX would look for other devices than CPUs."""
    if environment.get("JAX_PLATFORMS"):
        return environment["JAX_PLATFORMS"] != "cpu"
    return importlib.util.find_spec("libtpu") is not None or bool(entry_points(group="jax_plugins"))
