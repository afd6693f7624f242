"""Machines by name, and the bandwidth of groups of their devices."""

import numpy as np
import pytest

from pathways_lm.errors import ConfigError
from pathways_lm.plan.machine import CHIPS, parse_machine
from pathways_lm.plan.network import Network
from pathways_lm.plan.program_cost import Exchange


@pytest.mark.parametrize(
    ("text", "shape", "pods", "devices"),
    [
        ("v5p:8x16x16", (8, 16, 16), 1, 2048),
        ("v4-3072x2", (12, 16, 16), 2, 6144),  # PaLM's two pods
        ("v4-3072", (12, 16, 16), 1, 3072),
        ("v4-4", (1, 2, 2), 1, 4),
        ("v5e-256", (16, 16), 1, 256),
        ("TPUv6e:4x8", (4, 8), 1, 32),
        ("v3:4x4", (4, 4), 1, 32),  # two devices a chip
        ("h100:64x8", (64, 8), 1, 512),
        ("a100:8", (1, 8), 1, 8),
        ("h100-2240", (280, 8), 1, 2240),
        ("h200:1", (1, 1), 1, 1),
    ],
)
def test_names(text, shape, pods, devices):
    machine = parse_machine(text)
    assert (machine.shape, machine.pods, machine.num_devices) == (shape, pods, devices)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5", ["v5p:8x16x16"]),
        ("h10:8x8", ["did you mean 'h100'", "v5p"]),
        ("v4:16x16", ["3 dimensions"]),
        ("v5e:16x16x2", ["2 dimensions"]),
        ("h100:4x16", ["at most 8"]),
        ("v4-3071", ["3071 chips make no torus"]),
        ("v4:4x0x4", ["no devices"]),
        ("h100-64x2", ["islands x GPUs"]),
    ],
)
def test_what_is_no_machine(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_machine(text)
    assert len(str(caught.value).splitlines()) == 1
    assert all(word in str(caught.value) for word in words), caught.value


def seconds(machine, kind, places, operand_bytes=1e9):
    """Of an exchange among devices at these places."""
    exchange = Exchange(kind, tuple(range(len(places))), (), operand_bytes, 0, 0, "")
    return Network(parse_machine(machine), np.array(places)).seconds(exchange)


def test_a_ring_of_a_torus():
    """All 16 along one dimension: both directions of one dimension, 100 GB/s of a v4. Each sends 15 parts of 1 GB."""
    ring = [(0, 0, 0, z) for z in range(16)]
    assert seconds("v4:4x16x16", "all-gather", ring) == pytest.approx(15e9 / 100e9)
    assert seconds("v4:4x16x16", "all-reduce", ring) == pytest.approx(2 * 15 / 16 * 1e9 / 100e9)
    assert seconds("v4:4x16x16", "reduce-scatter", ring) == pytest.approx(15 / 16 * 1e9 / 100e9)
    # A plane of both dimensions has twice as much; half a ring has no way back.
    plane = [(0, 0, y, z) for y in range(16) for z in range(16)]
    assert seconds("v4:4x16x16", "all-gather", plane) == pytest.approx(255e9 / 200e9)
    assert seconds("v4:4x16x16", "all-gather", ring[:8]) == pytest.approx(7e9 / 50e9)
    # To a neighbour over one link. An all-to-all's bytes cross a quarter of the ring on average.
    assert seconds("v4:4x16x16", "collective-permute", ring[:2]) == pytest.approx(1e9 / 50e9)
    assert seconds("v4:4x16x16", "all-to-all", ring) == pytest.approx(1e9 * 16 / 4 / 100e9)


def test_islands_of_gpus():
    """Within an island over its links; across, each device's share of the network, of all that are in the group."""
    within = [(0, 0, gpu) for gpu in range(8)]
    assert seconds("h100:4x8", "all-reduce", within) == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)
    across = [(0, island, 0) for island in range(4)]
    assert seconds("h100:4x8", "all-reduce", across) == pytest.approx(2 * 3 / 4 * 1e9 / 50e9)
    everything = [(0, island, gpu) for island in range(4) for gpu in range(8)]
    assert seconds("h100:4x8", "all-reduce", everything) == pytest.approx(2 * 31 / 32 * 1e9 / 400e9)


def test_between_pods():
    pair = [(0, 0, 0, 0), (1, 0, 0, 0)]
    assert seconds("v4-64x2", "all-reduce", pair) == pytest.approx(1e9 / CHIPS["v4"].network_bandwidth)
