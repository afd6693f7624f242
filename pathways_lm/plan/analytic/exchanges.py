"""What devices exchange in a step, by formulas.

Megatron's two all-reduces forward and two backward a layer (arXiv:1909.08053, section 3), or gathers and scatters of
sequences (arXiv:2205.05198); PaLM's gathers along the model dimension (arXiv:2204.02311, section 4); two all-to-alls
forward and two backward of experts (arXiv:2101.03961, section 5.5); ZeRO's gathers and scatters of parameters and
gradients (arXiv:1910.02054, section 7); a pipeline's activations (arXiv:2104.04473, section 3.2); keys and values
that go round (arXiv:2310.01889).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pathways_lm.layers.moe.router import capacity
from pathways_lm.mesh import POD, STAGE
from pathways_lm.plan.analytic.arithmetic import group_tokens
from pathways_lm.plan.analytic.parameters import Parameter
from pathways_lm.plan.analytic.work import BLOCKS, FP32, Tower, Work
from pathways_lm.plan.network import group_along
from pathways_lm.plan.program_cost import Exchange

Axes = tuple[str, ...]
_WIDTH = 64


@dataclass(frozen=True)
class Exchanges:
    """Makes exchanges of one device.

    Attributes:
      started: whether the machine's compiler starts exchanges beside arithmetic, where the next instruction does not
        need them. That of GPUs does. TPU's does so with gathers of parameters, and with what goes to a neighbour or
        another pod.
    """

    work: Work
    started: bool

    def of(
        self, kind: str, axes: Axes, size: float, scope: str, times: int = 1, *, beside: bool = False
    ) -> list[Exchange]:
        """`times` exchanges, each of what a device puts in: `size` bytes. None along axes of one device.

        Args:
          beside: whether the compiler starts it beside arithmetic.
        """
        axes = tuple(axis for axis in self.work.cuts.mesh if axis in axes and self.work.cuts.mesh[axis] > 1)
        if not axes or not size:
            return []
        devices = group_along(axes, tuple(self.work.cuts.mesh.items()))
        if kind == "collective-permute":
            devices = devices[:2]
        beside = beside or kind == "collective-permute" or POD in axes
        return [Exchange(kind, devices, axes, size, 0, math.inf if beside else 0, scope)] * times

    # --- a turn of the loop over layers

    def forward(self, tower: Tower) -> list[Exchange]:
        """Those of a turn, forward."""
        return [*self._forward(tower, again=False), *self._parameters(tower)]

    def recomputed(self, tower: Tower) -> list[Exchange]:
        """Those that the backward pass does again."""
        model, again = self.work.model, []
        if self.work.stages > 1:
            again += self.forward(tower)
        if model.remat in BLOCKS:
            again += self._forward(tower, again=True)
        if model.remat == "attention":
            again += self._others(tower)
        # Gathered parameters are not kept, whatever else is.
        return [*again, *self._parameters(tower)]

    def backward(self, tower: Tower) -> list[Exchange]:
        """Those of the gradients of a turn."""
        whole, stream, axes = self._activations(tower)
        summed = self.work.cuts.axes("heads", "mlp")
        into, out = self._branches(tower)
        done = []
        if axes:
            done += self.of("all-gather", axes, stream, "gradients between blocks", out)
            done += self.of("reduce-scatter", axes, whole, "gradients into branches", into, beside=self.started)
        else:
            # Gradients of the weights can be computed meanwhile.
            done += self.of("all-reduce", summed, whole, "gradients into branches", into, beside=self.started)
        done += self._experts(tower) + self._others(tower, back=True)
        for each in self.work.of(tower.name):
            done += self._gradient(each)
        return done

    def _activations(self, tower: Tower) -> tuple[float, float, Axes]:
        """Bytes of a device's activations within a branch and between blocks, and the axes that make the difference."""
        cuts = self.work.cuts
        whole = float(self.work.item * tower.tokens * self.work.model.embed_dim)
        inner = cuts.axes("length")
        axes = tuple(axis for axis in cuts.axes("residual", "residual_length") if axis not in inner)
        return whole, whole / cuts.size(axes), axes

    def turned(self, tower: Tower, exchanges: list[Exchange]) -> float:
        """Bytes that a GPU moves besides: what is gathered or scattered between blocks is turned, so that the cut
        dimension comes first. TPU's exchanges take it as it lies."""
        _, _, axes = self._activations(tower)
        if not self.started or not axes:
            return 0.0
        parts = {"all-gather": len(group_along(axes, tuple(self.work.cuts.mesh.items()))), "reduce-scatter": 1}
        sizes = [
            parts[each.kind] * each.operand_bytes for each in exchanges if each.axes == axes and each.kind in parts
        ]
        return 2 * sum(sizes)

    def _branches(self, tower: Tower) -> tuple[int, int]:
        """How many inputs of branches are gathered, and how many outputs of branches summed in a turn."""
        found = self.work.of(tower.name)
        out = sum(each.name in ("out", "down") for each in found)
        norms = sum(each.module.endswith("norm") and each.name == "scale" for each in found)
        return norms or out, out

    def _forward(self, tower: Tower, again: bool) -> list[Exchange]:
        cuts, block = self.work.cuts, self.work.model.block
        whole, stream, axes = self._activations(tower)
        summed = cuts.axes("heads", "mlp")
        into, out = self._branches(tower)
        if again:
            # The last output is nobody's input; of parallel branches, neither is.
            out -= {"parallel": out, "pre_norm": 1, "post_norm": 0}[block]
        done = []
        if axes:
            done += self.of("all-gather", axes, stream, "into branches", into)
            done += self.of("reduce-scatter", axes, whole, "out of branches", out)
        else:
            done += self.of("all-reduce", summed, whole, "out of branches", out)
        return done + self._experts(tower) + self._others(tower)

    def _experts(self, tower: Tower) -> list[Exchange]:
        """To experts and back."""
        work = self.work
        moe, cuts = work.model.moe, work.cuts
        layers = sum(each.name == "router" for each in work.of(tower.name))
        if not layers:
            return []
        axes = cuts.axes("expert")
        width = work.item * work.model.embed_dim
        if moe.dispatch == "dropless":
            gathered = self.of("all-gather", axes, width * tower.tokens, "tokens to experts", layers)
            return gathered + self.of("reduce-scatter", axes, width * tower.tokens * cuts.size(axes), "back", layers)
        size = group_tokens(work, tower)
        slots = tower.tokens // size * capacity(moe, size, training=True) * moe.num_experts
        return self.of("all-to-all", axes, width * slots, "tokens to experts and back", 2 * layers)

    def _others(self, tower: Tower, back: bool = False) -> list[Exchange]:
        """Keys and values of the other parts of a sequence, gathered or sent round; or with their gradients back."""
        work, done = self.work, []
        axes = work.cuts.axes("length")
        parts = work.cuts.size(axes)
        for each in work.of(tower.name):
            if each.name in ("key", "value") and each.module == "attention" and axes:
                size = work.item * tower.tokens * work.cuts.used(each) / work.model.embed_dim
                if work.cuts.rules.ring:
                    turns = (2 if back else 1) * (parts - 1)
                    done += self.of("collective-permute", axes, size, "keys and values", turns)
                elif back:
                    done += self.of("reduce-scatter", axes, size * parts, "keys and values")
                else:
                    done += self.of("all-gather", axes, size, "keys and values")
        return done

    # --- parameters

    def _parameters(self, tower: Tower) -> list[Exchange]:
        """ZeRO 3: parameters gathered for a turn."""
        if self.work.cuts.rules.zero < 3:
            return []
        return self._gathered(self.work.of(tower.name))

    def _gathered(self, found: Iterable[Parameter], layers: bool = False) -> list[Exchange]:
        cuts, done = self.work.cuts, []
        for each in found:
            size = each.item_bytes(self.work.item) * cuts.stored(each) * (cuts.layers(each) if layers else 1)
            done += self.of("all-gather", cuts.gathered(each), size, f"gather {each.name}", beside=True)
        return done

    def _gradient(self, each: Parameter) -> list[Exchange]:
        """What is added over devices in each microbatch: where parameters are gathered in each layer, or gradients cut
        each time."""
        cuts = self.work.cuts
        if not each.product:
            axes, size = cuts.axes("batch", "length"), FP32 * cuts.used(each)
            return self.of("all-reduce", axes, size, "gradient", beside=self.started)
        if cuts.rules.zero < 3:
            return []
        size = each.item_bytes(self.work.item) * cuts.used(each)
        return self._scattered(cuts.gathered(each), size)

    def _scattered(self, axes: Axes, size: float) -> list[Exchange]:
        """A gradient added and cut. TPU's compiler adds it whole where a device would keep few columns: of PaLM-62B 32,
        and not 64."""
        whole = not self.started and self.work.model.embed_dim // self.work.cuts.size(axes) < _WIDTH
        return self.of("all-reduce" if whole else "reduce-scatter", axes, size, "gradient", beside=self.started)

    def microbatch(self) -> list[Exchange]:
        """Those of embeddings and logits, forward and backward, and of gradients that are cut each time."""
        work = self.work
        cuts, done = work.cuts, []
        vocab = cuts.axes("vocab")
        outside = [each for each in work.of("") if each.product]
        if cuts.rules.zero == 3:
            done += self._gathered(outside)
            for each in outside:
                done += self._gradient(each)
        for tower in work.towers:
            whole, stream, axes = self._activations(tower)
            done += self.of("all-reduce", vocab, whole, "embedding")
            done += self.of("all-gather", axes, stream, "gradient of the embedding")
            if work.stages > 1:
                done += self.of("all-reduce", (STAGE,), whole, "from the last stage to all, and back", 2)
        whole, stream, axes = self._activations(work.last)
        done += self.of("all-gather", axes, stream, "into logits")
        done += self.of("all-reduce", vocab, whole, "gradient of logits")
        if cuts.rules.zero == 2 and work.microbatches > 1:
            done += self._settled()
        return done

    def once(self) -> list[Exchange]:
        """Those of a step besides its microbatches."""
        work = self.work
        zero = work.cuts.rules.zero
        done = self._gathered((each for each in work.parameters if each.product), layers=True) if 0 < zero < 3 else []
        if zero != 2 or work.microbatches == 1:
            done += self._settled()
        return done

    def _settled(self) -> list[Exchange]:
        """Gradients added over all devices that have not done so in their layers, and cut as they are stored."""
        cuts, done = self.work.cuts, []
        for each in self.work.parameters:
            if not each.product:
                continue
            layers = cuts.layers(each)
            gathered, summed = cuts.gathered(each), cuts.summed(each)
            if cuts.rules.zero < 3:
                done += self._scattered(gathered, FP32 * layers * cuts.used(each))
            size = FP32 * layers * cuts.stored(each)
            done += self.of("all-reduce", summed, size, "gradient", beside=self.started)
        return done

    # --- pipelines

    def tick(self) -> list[Exchange]:
        """What a stage hands to the next for a microbatch, and gets back: its boundary's activations and gradients."""
        if self.work.stages == 1:
            return []
        _, stream, _ = self._activations(self.work.last)
        return self.of("collective-permute", (STAGE,), stream, "to the next stage and back", 2)
