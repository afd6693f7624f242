"""The compilers of machines that are not here: libtpu's, and that of JAX's CUDA plugin.

Both compile for a described machine without a device or driver. `make compilers` installs them beside the environment,
not into it: on a machine without their devices they would complain at every start.
"""

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from pathways_lm.errors import ConfigError
from pathways_lm.plan.machine import Machine

FOLDER = Path(sys.prefix) / "compilers"
PACKAGES = {"tpu": "libtpu", "cuda": "jax-cuda12-plugin"}
_MODULES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    # Otherwise one process at a time, as if each had the chips.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What XLA must know of a card: multiprocessors, shared memory of each and of a block, level-2 cache, clock, capability.
_CARDS = {
    "a100": ("NVIDIA A100-SXM4-80GB", 108, 167936, 166912, 41943040, 1.41, 64, "major: 8 minor: 0"),
    "h100": ("NVIDIA H100 80GB HBM3", 132, 233472, 232448, 52428800, 1.98, 128, "major: 9 minor: 0"),
    "h200": ("NVIDIA H200", 132, 233472, 232448, 62914560, 1.98, 128, "major: 9 minor: 0"),
    "b200": ("NVIDIA B200", 148, 233472, 232448, 132644864, 1.965, 128, "major: 10 minor: 0"),
}


def platform(machine: Machine) -> str:
    """`tpu` or `cuda`."""
    return "tpu" if machine.chip.torus_rank else "cuda"


def available(machine: Machine) -> bool:
    """Whether the machine's compiler is installed, in this environment or beside it."""
    module = _MODULES[platform(machine)]
    path = Path(*module.split("."))
    return any(Path(folder, path).is_dir() for folder in (_beside(machine), *sys.path))


def _beside(machine: Machine) -> str:
    return str(FOLDER / platform(machine))


def compiler_name(machine: Machine) -> str:
    """The compiler's package and version."""
    package = PACKAGES[platform(machine)]
    return f"{package} {metadata.version(package)}"


def without_a_device(machine: Machine) -> dict[str, Any]:
    """What must be asked of a compiler that cannot try things out.

    Without a card, Triton's matrix products have no measured tile sizes, and some shapes no sizes at all; those of
    cuBLAS are chosen when they run.
    """
    return {} if machine.chip.torus_rank else {"xla_gpu_enable_triton_gemm": False}


def described_devices(machine: Machine) -> list[jax.Device]:
    """The machine's devices, to be compiled for. Raises ConfigError where its compiler knows no such machine."""

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if _beside(machine) not in sys.path:
        sys.path.append(_beside(machine))
    if platform(machine) == "tpu":
        for name, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {"num_slices": machine.pods}
        if machine.chip.name == "v4":
            options |= {"chip_config_name": "megacore", "chips_per_host_bounds": _host_bounds(machine)}
        if machine.chip.torus_rank == 3:
            options |= {"wrap": tuple(size % 4 == 0 for size in machine.shape)}
        name = f"{'tpu' if machine.chip.name == '7x' else ''}{machine.chip.name}:{'x'.join(map(str, machine.shape))}"
        return _described(machine, name, options)
    islands, each = machine.shape
    return _described(machine, "", {"target_config": _card(machine), "topology": f"1x{islands}x{each}"})


def _described(machine: Machine, name: str, options: dict[str, Any]) -> list[jax.Device]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform=platform(machine), **options).devices)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(f"--machine: {compiler_name(machine)} knows no {machine.name}: {said}") from error


def _host_bounds(machine: Machine) -> tuple[int, int, int]:
    """A host of v4 has four chips, or what there is."""
    x, y, _ = machine.shape
    return min(2, x), min(2, y), 1


def _card(machine: Machine) -> str:
    """XLA's description of a GPU, as a text proto."""
    chip = machine.chip
    name, cores, shared, block_shared, cache, clock, lanes, capability = _CARDS[chip.name]
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {shared}  shared_memory_per_block_optin: {block_shared}
  core_count: {cores}  fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {chip.memory_bandwidth:.0f}  l2_cache_size: {cache}  clock_rate_ghz: {clock}
  device_memory_size: {chip.memory_bytes:.0f}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  cuda_compute_capability {{ {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
device_description_str: "{name}"
"""
