"""What is asked of XLA for which programs."""

from types import SimpleNamespace

import numpy as np
import pytest

from pathways_lm.compiler import compiler_options
from pathways_lm.config import MeshConfig
from pathways_lm.mesh import abstract_mesh

MERGES_NONE = {"xla_gpu_dot_merger_threshold_mb": 0}
HIDES = {"xla_gpu_enable_latency_hiding_scheduler": True}
NO_TRITON = {"xla_gpu_enable_triton_gemm": False}
CONCURRENT = {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}


def mesh_of(platform: str, size: int) -> SimpleNamespace:
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)] * size), size=size)


@pytest.mark.parametrize(
    ("platform", "size", "asked", "expected"),
    [
        ("cuda", 1, {}, MERGES_NONE),
        ("cuda", 8, {}, MERGES_NONE | HIDES),
        ("cuda", 1, {"matmuls": "fp8"}, MERGES_NONE | NO_TRITON),
        ("cuda", 8, {"matmuls": "int8", "decodes": True}, MERGES_NONE | HIDES | CONCURRENT),
        ("cpu", 1, {"matmuls": "fp8", "decodes": True}, {}),
    ],
)
def test_asked(platform, size, asked, expected):
    assert compiler_options(mesh_of(platform, size), **asked) == expected


def test_for_no_device_none_is_compiled():
    assert compiler_options(abstract_mesh(MeshConfig(data=2), 2), decodes=True) == {}
