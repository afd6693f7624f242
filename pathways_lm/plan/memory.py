"""What lies on a device."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the step's fullest moment."""

    parameters: float
    optimizer: float
    batch: float
    gradients: float
    """As large as the parameters they belong to; how many live at once only the compiler knows."""
    rest: float
    """Activations and what is in work; with gradients, what the compiler asks for besides the arguments."""
    capacity: float
    details: tuple[tuple[str, float], ...] = ()
    """What the rest consists of, where that is known."""

    @property
    def peak(self) -> float:
        return self.parameters + self.optimizer + self.batch + self.gradients + self.rest

    @property
    def fits(self) -> bool:
        return self.peak <= self.capacity
