"""A trace of some steps, and of which part of the model each of its instructions is.

`train.profile_steps` names the steps. The run folder then has `profile/`: the trace as the profiler writes it
(TensorBoard and Perfetto read it), and `scopes.json`, which the report reads beside it. The trace names instructions
of the compiled program; what they are for stands in that program's text alone.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax

SCOPES_FILE = "scopes.json"

# %fusion.3 = f32[8,16]{1,0} fusion(…), metadata={op_name="jit(step)/gradients/transpose(jvp(mlp))/dot_general" …}
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.MULTILINE)


class Profiler:
    """Traces the steps of a range, once.

    Args:
      folder: where the trace goes.
      steps: numbers of steps, from 1; empty traces nothing.
    """

    def __init__(self, folder: Path, steps: range):
        self.folder, self.steps = folder, steps
        self._tracing = False

    def before(self, step: int, ready: Any) -> None:
        """A step will begin; `ready` is what the one before it gives, which is waited for."""
        if self.steps and step == self.steps.start and not self._tracing:
            jax.block_until_ready(ready)
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self.folder)
            self._tracing = True

    def after(self, step: int, compiled: Any, ready: Any) -> bool:
        """A step has begun, whose results are `ready`. True where it was the last to be traced."""
        if not self._tracing or step < self.steps.stop - 1:
            return False
        jax.block_until_ready(ready)
        traced = len(self.steps)
        self.close()
        write_scopes(self.folder, compiled.as_text(), traced)
        return True

    def close(self) -> None:
        """Ends a trace that a stop or a spike cut short."""
        if self._tracing:
            self._tracing = False
            self.steps = range(0)
            jax.profiler.stop_trace()


def write_scopes(folder: Path, program: str, steps: int) -> None:
    """Writes the path of scopes of every instruction of a compiled program, and how many steps are in the trace."""
    told = {"steps": steps, "scopes": instruction_scopes(program)}
    (folder / SCOPES_FILE).write_text(json.dumps(told))


def instruction_scopes(program: str) -> dict[str, str]:
    """Instruction -> op_name, from the text of a compiled program; without those that say nothing of it."""
    return {match[1]: match[2] for match in _INSTRUCTION.finditer(program)}
