"""Shapes of meshes, and how a program finds out that it is one of several."""

import sys

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from pathways_lm.config import MeshConfig
from pathways_lm.errors import ConfigError
from pathways_lm.mesh import (
    abstract_mesh,
    axis_sizes,
    join_pathways,
    join_processes,
    launched_as_several,
    make_mesh,
)


def refusal(call, *args) -> str:
    """The one line of a ConfigError."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@given(st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_filling_up(given_size, factor, data_is_given):
    """-1 becomes what makes the product the number of devices."""
    config = MeshConfig(data=given_size, tensor=-1) if data_is_given else MeshConfig(data=-1, tensor=given_size)
    expected = (1, 1, given_size, 1, 1, factor) if data_is_given else (1, 1, factor, 1, 1, given_size)
    assert axis_sizes(config, given_size * factor) == expected


@given(st.integers(1, 64), st.integers(1, 64))
def test_not_filling_up(size, devices):
    """What does not fit is refused, naming the axes that are not 1 and the number of devices; what does, fits."""
    config = MeshConfig(data=-1, tensor=size)
    if devices % size:
        message = refusal(axis_sizes, config, devices)
        assert "mesh.data=-1" in message
        assert f"mesh.tensor={size}" in message
        assert str(devices) in message
    else:
        assert axis_sizes(config, devices) == (1, 1, devices // size, 1, 1, size)


@pytest.mark.parametrize(("data", "tensor"), [(9, 1), (4, 4), (1, 16), (-1, 16)])
def test_larger_than_the_machine(data, tensor):
    message = refusal(make_mesh, MeshConfig(data=data, tensor=tensor))
    needed = abs(data) * tensor
    sizes = {"data": data, "tensor": tensor}
    named = " x ".join(f"mesh.{axis}={size}" for axis, size in sizes.items() if size != 1)
    assert message == f"{named} needs {needed} devices; there are 8"


def test_not_dividing():
    assert "mesh.tensor=3" in refusal(make_mesh, MeshConfig(data=-1, tensor=3))


def test_real_mesh():
    mesh = make_mesh(MeshConfig(data=-1, expert=2, tensor=2))
    assert dict(mesh.shape) == {"pod": 1, "stage": 1, "data": 2, "expert": 2, "context": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Explicit}
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


def test_a_smaller_mesh_takes_the_first_devices():
    mesh = make_mesh(MeshConfig(data=3, tensor=1))
    assert list(mesh.devices.flat) == jax.devices()[:3]


def test_several_processes_must_take_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert make_mesh(MeshConfig(data=8)).size == 8
    assert "2 of 8 devices" in refusal(make_mesh, MeshConfig(data=2))


def test_abstract_mesh_is_larger_than_any_machine():
    mesh = abstract_mesh(MeshConfig(data=256, tensor=-1), 3072)
    assert dict(mesh.shape) == {"pod": 1, "stage": 1, "data": 256, "expert": 1, "context": 1, "tensor": 12}
    assert set(mesh.axis_types) == {AxisType.Explicit}


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"HOME": "/root", "PATH": "/bin"}, False),
        # srun -n 4, srun -n 1, and the shell of salloc -n 4, which is no task of its own.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_NTASKS": "4"}, False),
        # A line of a script of sbatch -n 4 that is not behind srun: it runs once, as process 0.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        # An indexed job, and any other pod.
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        # A slice of several hosts, of one, and several slices.
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2", "TPU_WORKER_ID": "1"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_COORDINATOR_ADDRESS": "10.0.0.1:8080"}, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0", "JAX_PLATFORMS": "proxy"}, False),
    ],
)
def test_launched_as_several(environment, several):
    assert launched_as_several(environment) is several


@pytest.fixture
def calls(monkeypatch):
    """What jax.distributed.initialize is called with, besides a heartbeat that tells a loss within a minute."""
    seen = []

    def initialize(*args, heartbeat_timeout_seconds):
        assert heartbeat_timeout_seconds < 60
        seen.append(args)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return seen


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("host:1", None, None), "--coordinator also needs --num-processes, --process-id"),
        ((None, 2, 0), "--num-processes, --process-id also needs --coordinator"),
        (("host:1", 2, None), "--coordinator, --num-processes also needs --process-id"),
        (("host:1", 2, 2), "--process-id 2 must be from 0 to 1"),
        (("host:1", 2, -1), "--process-id -1 must be from 0 to 1"),
    ],
)
def test_wrong_flags(calls, flags, said):
    assert refusal(join_processes, *flags, {}) == said
    assert calls == []


def test_joining(calls):
    """Flags come before the environment, and alone there is nothing to join."""
    join_processes(None, None, None, {})
    assert calls == []
    cluster = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_STEP_NODELIST": "n[1-4]", "SLURM_LOCALID": "0"}
    join_processes("host:1234", 2, 0, cluster)
    assert calls == [("host:1234", 2, 0)]
    join_processes(None, None, None, cluster)
    assert calls[1:] == [()]


def test_no_process_at_all(calls):
    """A count below one is the mistake, not the id."""
    assert "--num-processes" in refusal(join_processes, "host:1", 0, 0, {})


def test_a_pathways_cluster(monkeypatch, tmp_path):
    """Joined only where JAX_PLATFORMS says so; without the package, one line that names it."""
    join_pathways({"JAX_PLATFORMS": "cpu"})
    join_pathways({})
    assert "pip install pathwaysutils" in refusal(join_pathways, {"JAX_PLATFORMS": "proxy"})
    (tmp_path / "pathwaysutils.py").write_text("calls = 0\n\ndef initialize():\n    global calls\n    calls += 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    join_pathways({"JAX_PLATFORMS": "proxy,cpu"})
    assert sys.modules.pop("pathwaysutils").calls == 1
