"""What is asked of XLA besides the program, by platform. All of it stands here.

Each choice is one that a plan shows to matter (`docs/plans.md`, section "Options of the compilers").
"""

from typing import Any

from jax.sharding import AbstractMesh, Mesh

from pathways_lm.mesh import platform

# Where there are several devices.
OPTIONS: dict[str, dict[str, Any]] = {
    # Exchanges begin as early as their operands are there and are awaited as late as possible. Without it the program
    # waits for each where it begins.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
    # Gathers run beside products in parts, over several products if need be.
    "tpu": {
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_enable_async_all_gather": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        # Gradients are added by sparse cores, where a chip has them, while the others multiply.
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
    },
    # Virtual devices may otherwise begin exchanges that do not depend on each other in different orders, and wait for
    # one another for ever.
    "cpu": {"xla_cpu_enable_concurrency_optimized_scheduler": False},
}


ALWAYS: dict[str, dict[str, Any]] = {
    # Products with the same operand are otherwise made one, for which kernels are put together in memory at every step.
    "gpu": {"xla_gpu_dot_merger_threshold_mb": 0},
}

# Programs that write token by token.
DECODING: dict[str, dict[str, Any]] = {
    # Of a layer's many small kernels those run beside the long ones that do not depend on them.
    "gpu": {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"},
}

# Models with products in floats of eight bits.
FP8: dict[str, dict[str, Any]] = {
    # To try out Triton's takes over ten seconds for each product, and none was faster than cuBLAS's.
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}


def compiler_options(mesh: Mesh | AbstractMesh, matmuls: str = "", decodes: bool = False) -> dict[str, Any]:
    """For programs on the mesh's devices; for no device none is compiled.

    Args:
      matmuls: `model.matmuls`.
      decodes: whether the program writes token by token.
    """
    if isinstance(mesh, AbstractMesh):
        return {}
    asked = [ALWAYS]
    if mesh.size > 1:
        asked.append(OPTIONS)
    if matmuls == "fp8":
        asked.append(FP8)
    if decodes:
        asked.append(DECODING)
    return {name: value for table in asked for name, value in table.get(platform(mesh), {}).items()}
