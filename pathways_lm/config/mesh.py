"""How devices are arranged, and what lies on them."""

import dataclasses
import typing
from dataclasses import dataclass

from pathways_lm.checked import Checked, bounded
from pathways_lm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """How many devices along each axis, of which one may be -1 for all that the others leave; and what lies on them."""

    section: typing.ClassVar[str] = "mesh"

    pod: int = bounded(1, at_least=-1)
    """Slices that only a data centre's network joins, each with a copy of the parameters."""
    stage: int = bounded(1, at_least=-1)
    """Stages of a pipeline, each with its own layers."""
    chunks: int = bounded(1, at_least=1)
    """Runs of layers that each stage has. With several, a microbatch goes round the stages as often, and the time that
    stages wait at the ends of a step is as many times shorter (interleaved stages; needs microbatches in multiples of
    the stages)."""
    data: int = bounded(-1, at_least=-1)
    expert: int = bounded(1, at_least=-1)
    """Along which experts lie apart; it also cuts the batch."""
    context: int = bounded(1, at_least=-1)
    """Along which sequences are cut."""
    tensor: int = bounded(1, at_least=-1)
    context_attention: str = bounded("gather", one_of=("gather", "ring"))
    """What devices that share a sequence do: `gather` each other's keys and values, or send them round in a `ring`, in
    memory that grows with the length and not with its square."""
    rules: str = "palm_2d"
    """The layout: `palm_2d`, `fsdp`, `tensor_parallel` or `sequence_parallel` (see `pathways_lm.sharding`)."""
    zero: int = bounded(3, at_least=0, at_most=3)
    """What lies cut over the devices that share a batch (ZeRO): 0 nothing; 1 the optimizer's state and the fp32
    parameters, gathered once a step; 2 gradients, too, while they are summed; 3 parameters also while they are used."""
    offload: bool = False
    """Whether the optimizer's state lies in the hosts' memory between updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = {item.name for item in dataclasses.fields(self) if item.type is int} - {"zero", "chunks"}
        sizes = {f"mesh.{axis}": size for axis, size in dataclasses.asdict(self).items() if axis in numbers}
        for name, size in sizes.items():
            if size == 0:
                raise ConfigError(f"{name} must be above 0, or -1 to fill up; not 0")
        filling = [name for name, size in sizes.items() if size == -1]
        if len(filling) > 1:
            raise ConfigError(f"{' and '.join(filling)} are -1; only one axis can fill up")
