"""Axis names, and meshes of real, virtual and abstract devices.

Every mesh has explicit axis types: the sharding of an array is part of its type, and a layer that
would need a silent reshard fails while it is traced.
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from pathways_lm.config import MeshConfig
from pathways_lm.errors import ConfigError

# From the slowest network to the fastest: neighbours on the last axis are neighbours on the machine.
POD = "pod"
STAGE = "stage"
DATA = "data"
EXPERT = "expert"
CONTEXT = "context"
TENSOR = "tensor"
AXES = (POD, STAGE, DATA, EXPERT, CONTEXT, TENSOR)

# So long after a process was lost JAX ends the others, should nothing else do it.
HEARTBEAT_SECONDS = 45


def axis_sizes(config: MeshConfig, num_devices: int) -> tuple[int, ...]:
    """The mesh's shape with -1 filled up. Raises ConfigError where it does not fit `num_devices`."""
    sizes = {POD: config.pod, STAGE: config.stage, DATA: config.data}
    sizes |= {EXPERT: config.expert, CONTEXT: config.context, TENSOR: config.tensor}
    given = int(np.prod([size for size in sizes.values() if size != -1]))
    shape = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items() if size != 1)
    if given > num_devices:
        raise ConfigError(f"{shape} needs {given} devices; there are {num_devices}")
    if -1 in sizes.values():
        if num_devices % given:
            raise ConfigError(f"{shape} cannot fill {num_devices} devices: {num_devices} is not a multiple of {given}")
        sizes = {axis: num_devices // given if size == -1 else size for axis, size in sizes.items()}
    return tuple(sizes.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over this program's devices; over the first ones where the config asks for fewer.

    Args:
      devices: others than this program's, which a step is only compiled for.

    Neighbours on an axis are neighbours on the machine, as far as its torus allows; pods are the machine's own slices
    where it has several.
    """
    everything = jax.devices() if devices is None else list(devices)
    shape = axis_sizes(config, len(everything))
    needed = int(np.prod(shape))
    if needed < len(everything) and (jax.process_count() > 1 or devices is not None):
        where = "with several processes" if devices is None else "on another machine"
        raise ConfigError(f"the mesh takes {needed} of {len(everything)} devices; {where} it must take all")
    laid = lay_out(config, everything[:needed])
    return Mesh(laid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def lay_out(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """The devices in the shape of the mesh, neighbours beside one another."""
    shape = axis_sizes(config, len(devices))
    pods = len({getattr(device, "slice_index", None) or 0 for device in devices})
    if pods > 1 and pods != shape[0]:
        raise ConfigError(f"mesh.pod={shape[0]} on {pods} slices; there must be as many pods as slices")
    if pods > 1:
        inside, outside = (1, *shape[1:]), (shape[0], *(1 for _ in shape[1:]))
        return mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=True)
    return _laid(shape, devices)


def _laid(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    except NotImplementedError:
        # A torus that no product of its dimensions cuts so: neighbours in JAX's own order, which goes along the torus.
        return np.array(devices).reshape(shape)


def abstract_mesh(config: MeshConfig, num_devices: int = 1) -> AbstractMesh:
    """A mesh without devices, for shapes and counts."""
    return AbstractMesh(axis_sizes(config, num_devices), AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def join_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Connects the processes of one program, before any device is touched.

    From the flags where they are given; otherwise from what Slurm, Kubernetes or Cloud TPU sets,
    which JAX reads itself. Does nothing in a program of one process.
    """
    flags = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id}
    given = [flag for flag, value in flags.items() if value is not None]
    if given and len(given) < len(flags):
        missing = ", ".join(flag for flag in flags if flag not in given)
        raise ConfigError(f"{', '.join(given)} also needs {missing}")
    if given:
        assert num_processes is not None and process_id is not None
        if num_processes < 1:
            raise ConfigError(f"--num-processes {num_processes} must be at least 1")
        if not 0 <= process_id < num_processes:
            raise ConfigError(f"--process-id {process_id} must be from 0 to {num_processes - 1}")
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    elif launched_as_several(environment):
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


def platform(mesh: Mesh | AbstractMesh) -> str:
    """`cpu`, `tpu` or `gpu`: of the devices that a program is for, also where they are only described."""
    if isinstance(mesh, AbstractMesh):
        return "cpu"
    name = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def of_devices(mesh: Mesh | AbstractMesh, attribute: str) -> str:
    """What the mesh's devices say of themselves; empty where there are none, or they do not."""
    return "" if isinstance(mesh, AbstractMesh) else getattr(mesh.devices.flat[0], attribute, "")


def join_pathways(environment: Mapping[str, str] = os.environ) -> None:
    """Where this process drives a whole Pathways cluster, registers its devices, before any is touched.

    Pathways on Cloud says so by JAX_PLATFORMS=proxy; its package `pathwaysutils` knows how. Raises ConfigError where
    that is not installed.
    """
    if not _drives_pathways(environment):
        return
    if importlib.util.find_spec("pathwaysutils") is None:
        raise ConfigError("JAX_PLATFORMS=proxy asks for a Pathways cluster, which needs: pip install pathwaysutils")
    importlib.import_module("pathwaysutils").initialize()


def _drives_pathways(environment: Mapping[str, str]) -> bool:
    return "proxy" in environment.get("JAX_PLATFORMS", "").split(",")


def launched_as_several(environment: Mapping[str, str]) -> bool:
    """Whether a cluster's environment says that this process is one of several. The one that drives Pathways is not."""
    if _drives_pathways(environment):
        return False
    slurm = int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_STEP_NODELIST" in environment
    kubernetes = "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment
    cloud_tpu = "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in environment
    return slurm or kubernetes or cloud_tpu
