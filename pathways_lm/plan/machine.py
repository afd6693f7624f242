"""Machines that a plan can be made for: what one device can do, and how devices are joined.

Figures are of one device as JAX counts them: a chip, or half a chip of TPU v3 and 7x. Sources: Google Cloud's pages
of TPU versions; "TPU v4" (arXiv:2304.01433), table 4, for links and power; NVIDIA's data sheets of the SXM cards.
"""

import math
import re
from dataclasses import dataclass
from itertools import product

import numpy as np

from pathways_lm.errors import ConfigError, nearest

GIB = 2**30
# What a large product of bf16 matrices reaches of the peak: 790 of 989 TFLOP/s measured on an H200.
MATRIX_EFFICIENCY = 0.8


@dataclass(frozen=True)
class Chip:
    """One kind of device. Rates are of dense bf16, links one way."""

    name: str
    flops: float
    memory_bytes: float
    memory_bandwidth: float
    """Bytes a second."""
    link_bandwidth: float
    """Bytes a second one way: of each link of a torus; of all of a GPU's links to its island."""
    network_bandwidth: float
    """Bytes a second one way of a device's share of the network between islands or pods."""
    torus_rank: int = 0
    """Dimensions of the torus; 0 where islands of devices are joined by switches."""
    island: int = 1
    """Devices that a switch joins."""
    devices_per_chip: int = 1
    watts: float | None = None
    """Of one device under load, where its maker or a paper says."""


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v3", 61.5e12, 16 * GIB, 450e9, 70e9, 3.1e9, torus_rank=2, devices_per_chip=2, watts=110),
        Chip("v4", 275e12, 32 * GIB, 1228e9, 50e9, 6.25e9, torus_rank=3, watts=170),
        Chip("v5e", 197e12, 16 * GIB, 819e9, 50e9, 6.25e9, torus_rank=2),
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 100e9, 6.25e9, torus_rank=3),
        Chip("v6e", 918e12, 32 * GIB, 1640e9, 112e9, 12.5e9, torus_rank=2),
        Chip("7x", 1153.5e12, 96 * GIB, 3690e9, 100e9, 12.5e9, torus_rank=3, devices_per_chip=2),
        Chip("a100", 312e12, 80e9, 2039e9, 300e9, 25e9, island=8, watts=400),
        Chip("h100", 989e12, 80e9, 3350e9, 450e9, 50e9, island=8, watts=700),
        Chip("h200", 989e12, 141e9, 4800e9, 450e9, 50e9, island=8, watts=700),
        Chip("b200", 2250e12, 180e9, 8000e9, 900e9, 50e9, island=8, watts=1000),
    )
}


@dataclass(frozen=True)
class Machine:
    """Alike devices: the torus of each pod, or islands x devices of each."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along each dimension of a pod's torus; (islands, GPUs of each)."""
    pods: int = 1

    @property
    def num_devices(self) -> int:
        return math.prod(self.shape) * self.chip.devices_per_chip * self.pods

    @property
    def name(self) -> str:
        text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return f"{text} x {self.pods} pods" if self.pods > 1 else text

    def bandwidth(self, places: np.ndarray) -> float:
        """Bytes a second that each device of a group sends to its neighbour on the best ring through the group.

        Args:
          places: int [group, 1 + rank]: each device's pod and place, as `compilers.places` gives them.

        On a torus, both directions of every dimension that the group spans whole are used, one of those it spans in
        part. A group in several islands shares the network of its devices; one in several pods the data centre's.
        """
        members = len(places)
        pods = len(set(places[:, 0].tolist()))
        if pods > 1:
            return self.chip.network_bandwidth * (members // pods)
        if not self.chip.torus_rank:
            islands = len(set(places[:, 1].tolist()))
            if islands == 1:
                return self.chip.link_bandwidth
            return min(self.chip.link_bandwidth, self.chip.network_bandwidth * max(1, members // islands))
        total = 0.0
        for axis, size in enumerate(self.shape):
            spanned = len(set(places[:, 1 + axis].tolist()))
            if spanned > 1:
                total += self.chip.link_bandwidth * (2 if spanned == size and size > 2 else 1)
        # Devices of one chip exchange within it.
        return total or 2 * self.chip.link_bandwidth * len(self.shape)

    def longest(self, places: np.ndarray) -> int:
        """The most devices of a group along one dimension of the torus, over which an all-to-all must be carried."""
        if not self.chip.torus_rank:
            return 1
        return max(len(set(places[:, 1 + axis].tolist())) for axis in range(len(self.shape)))


def parse_machine(text: str) -> Machine:
    """A machine from `v5p:8x16x16`, `v4-3072x2`, `h100:64x8` or `a100:8`.

    After a colon stands the torus of chips, or islands x GPUs of each; after a dash the number of chips of each pod,
    for which the most cubic torus is taken, and `xN` for N pods of a TPU.
    """
    written = re.fullmatch(r"(?:tpu)?(\w+?)(?::([\dx]+)|-(\d+)(?:x(\d+))?)", text.strip().lower())
    if written is None:
        raise ConfigError(f"--machine '{text}' is not like v5p:8x16x16, v4-3072x2 or h100:64x8")
    name, shape, count, pods = written.groups()
    if name not in CHIPS:
        raise ConfigError(f"--machine: no chip '{name}'{nearest(name, CHIPS)}; known are {', '.join(CHIPS)}")
    chip = CHIPS[name]
    if count:
        return _counted(chip, int(count), int(pods or 1), text)
    sizes = tuple(int(size) for size in shape.split("x") if size)
    if not sizes or 0 in sizes:
        raise ConfigError(f"--machine '{text}' has a dimension of no devices")
    if chip.torus_rank:
        if len(sizes) != chip.torus_rank:
            raise ConfigError(f"--machine '{text}': a {name} has a torus of {chip.torus_rank} dimensions")
        return Machine(chip, sizes)
    if len(sizes) == 1:
        island = math.gcd(sizes[0], chip.island)
        sizes = (sizes[0] // island, island)
    if len(sizes) != 2 or sizes[1] > chip.island:
        raise ConfigError(f"--machine '{text}': write islands x GPUs of each, at most {chip.island}: {name}:64x8")
    return Machine(chip, sizes)


def _counted(chip: Chip, count: int, pods: int, text: str) -> Machine:
    if not chip.torus_rank:
        if pods > 1:
            raise ConfigError(f"--machine '{text}': write islands x GPUs of each, as {chip.name}:{count}x{chip.island}")
        return parse_machine(f"{chip.name}:{count}")
    # Tori are cubes of 4 x 4 x 4 joined together, or of 4 x 4 where they are flat; less than one is a part of one.
    unit = 4 if count >= 4**chip.torus_rank else 1
    sizes = [size for size in range(unit, count + 1, unit) if count % size == 0]
    fitting = [each for each in product(sizes, repeat=chip.torus_rank) if math.prod(each) == count]
    fitting = [each for each in fitting if list(each) == sorted(each)]
    if not fitting:
        raise ConfigError(f"--machine '{text}': {count} chips make no torus of multiples of {unit}")
    return Machine(chip, min(fitting, key=lambda each: max(each) / min(each)), pods)
