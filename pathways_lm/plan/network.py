"""Where a mesh's devices lie on a machine, and how long exchanges among them take."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from pathways_lm.config import MeshConfig
from pathways_lm.mesh import AXES, lay_out
from pathways_lm.plan.machine import Machine
from pathways_lm.plan.program_cost import Exchange

# JAX lays meshes by what a device calls itself.
_KINDS = {"v3": "TPU v3", "v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5p", "v6e": "TPU v6 lite", "7x": "TPU7x"}


@dataclass(frozen=True)
class _Imagined:
    """What JAX asks of a device when it lays a mesh."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0
    slice_index: int | None = None
    process_index: int = 0


def imagined_devices(machine: Machine) -> list[_Imagined]:
    """The machine's devices in the order of its compiler, which need not be installed."""
    chip = machine.chip
    if not chip.torus_rank:
        return [_Imagined(number, "gpu", chip.name) for number in range(machine.num_devices)]
    shape = (*machine.shape, *(1 for _ in range(3 - chip.torus_rank)))
    # Host after host, of two by two chips.
    places = sorted(product(*map(range, shape)), key=lambda at: (at[2], at[1] // 2, at[0] // 2, at[1] % 2, at[0] % 2))
    everything = product(range(machine.pods), places, range(chip.devices_per_chip))
    return [
        _Imagined(number, "tpu", _KINDS[chip.name], place, core, pod)
        for number, (pod, place, core) in enumerate(everything)
    ]


def places(machine: Machine, devices: np.ndarray) -> np.ndarray:
    """Each device's pod and place: on the torus, or its island and number there. Int [devices, 1 + rank]."""
    rows = []
    for device in devices.flat:
        if machine.chip.torus_rank:
            place = device.coords[: machine.chip.torus_rank]
        else:
            place = divmod(device.id, machine.shape[1])
        rows.append((getattr(device, "slice_index", None) or 0, *place))
    return np.array(rows)


class Network:
    """How long exchanges take on one machine with one mesh, each on links that nothing else uses.

    Args:
      places: of every device of the mesh, in its order, as `places` gives them.
    """

    def __init__(self, machine: Machine, places: np.ndarray):
        self.machine = machine
        self._places = places
        self._routes: dict[tuple[int, ...], tuple[float, int, bool]] = {}

    def seconds(self, exchange: Exchange) -> float:
        """The time of one exchange."""
        bandwidth, longest, on_torus = self._route(exchange.devices)
        if exchange.kind in ("all-to-all", "ragged-all-to-all") and on_torus:
            # Each byte crosses a quarter of the ring on average, and both directions carry it.
            return exchange.operand_bytes * longest / 4 / bandwidth
        if exchange.kind == "collective-permute" and on_torus:
            return exchange.operand_bytes / self.machine.chip.link_bandwidth
        return exchange.sent_bytes / bandwidth

    def _route(self, devices: tuple[int, ...]) -> tuple[float, int, bool]:
        """A group's bandwidth, its longest way along the torus, and whether it lies on one."""
        if devices not in self._routes:
            group = self._places[list(devices)]
            on_torus = bool(self.machine.chip.torus_rank) and len(set(group[:, 0].tolist())) == 1
            self._routes[devices] = (self.machine.bandwidth(group), self.machine.longest(group), on_torus)
        return self._routes[devices]


@lru_cache(maxsize=512)
def imagined_network(machine: Machine, sizes: tuple[int, ...]) -> Network:
    """The network of a mesh with these sizes of its axes, laid as JAX would lay it."""
    told: dict[str, Any] = dict(zip(AXES, sizes, strict=True))
    return Network(machine, places(machine, lay_out(MeshConfig(**told), imagined_devices(machine))))


@lru_cache(maxsize=4096)
def group_along(axes: tuple[str, ...], mesh: tuple[tuple[str, int], ...]) -> tuple[int, ...]:
    """The devices that the mesh's first one exchanges with along these axes, as places on the flattened mesh."""
    sizes: Mapping[str, int] = dict(mesh)
    numbers = np.arange(int(np.prod(list(sizes.values())))).reshape(tuple(sizes.values()))
    return tuple(numbers[tuple(slice(None) if axis in axes else 0 for axis in sizes)].ravel().tolist())
