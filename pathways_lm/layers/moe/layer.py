"""A mixture of experts in the place of an MLP."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.errors import ConfigError
from pathways_lm.kernels.zigzag import lay, numbers, stand
from pathways_lm.layers.dropout import drawn, site
from pathways_lm.layers.mlp import GATES
from pathways_lm.layers.moe.dispatch import DISPATCHES, Body, Experts, summed_over
from pathways_lm.layers.moe.losses import RouterSums, router_sums
from pathways_lm.layers.moe.router import Routing, capacity, route
from pathways_lm.layers.parameter import Init
from pathways_lm.sharding import Rules

JITTER, SECOND, HIDDEN = range(3)


class MoE(nnx.Module):
    """sum over a token's experts of gate x expert(token); what finds no place gives zero, and the residual passes it.

    The router's arithmetic is fp32, the experts' that of their kernels (Switch section 2.4). Source: Switch
    (arXiv:2101.03961, section 2), GShard (arXiv:2006.16668, section 2.2), GLaM, ST-MoE.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, rules: Rules):
        moe = config.moe
        D, E, F = config.embed_dim, moe.num_experts, moe.mlp_dim or config.mlp_dim
        init = Init(config, rules)
        activation = moe.activation or config.activation
        self.gated = activation in GATES
        self.router = init.kernel(rngs, (D, E), ("embed", "norm"), D)
        self.summed = summed_over(moe.dispatch, rules)
        if self.gated:
            self.gate = init.kernel(rngs, (E, D, F), ("expert", "expert_embed", "mlp"), D, self.summed)
        self.up = init.kernel(rngs, (E, D, F), ("expert", "expert_embed", "mlp"), D, self.summed)
        self.down = init.residual(rngs, (E, F, D), ("expert", "mlp", "expert_embed"), F, self.summed)
        self.body = Body(activation, moe.dropout)
        self.config = moe
        self.rules = rules

    @jax.named_scope("moe")
    def __call__(self, h_BLD: Array, valid_BL: Array | None, key: Array | None) -> tuple[Array, RouterSums, Array]:
        """Takes an input whole along D.

        Args:
          valid_BL: false for padding; `B` may be 1. None: all are tokens.
          key: in training, for jitter, second choices and dropout. Without one, the capacity is that of evaluation.

        Returns:
          The output, cut as the residual stream; what the router tells; and the gates [B, L, E] of choices served.
        """
        config, rules = self.config, self.rules
        B, L = h_BLD.shape[:2]
        groups, size = self._groups(B, L, training=key is not None)
        cut = rules("batch", None, None)

        def in_groups(x_BLX: Array, dim: str | None = None) -> Array:
            """Sequences in the order of the text, as groups; cut along `dim`, the last."""
            x_BLX = stand(reshard(x_BLX, rules("batch", None, dim)), rules)
            return jnp.reshape(x_BLX, (groups, size, x_BLX.shape[-1]), out_sharding=rules("batch", None, dim))

        def on_devices(x_GSX: Array, dim: str | None = None) -> Array:
            """The inverse."""
            x_BLX = jnp.reshape(x_GSX, (B, L, x_GSX.shape[-1]), out_sharding=rules("batch", None, dim))
            return reshard(lay(x_BLX, rules), rules("batch", "length", None))

        valid_BL = jnp.ones((B, L), bool) if valid_BL is None else jnp.broadcast_to(valid_BL, (B, L))
        valid_BL = reshard(valid_BL, rules("batch", None))
        valid_GS = jnp.reshape(valid_BL, (groups, size), out_sharding=rules("batch", None))

        # What the router says of each token is small: every device decides for whole sequences.
        logits_GSE = in_groups(self._logits(h_BLD, site(key, JITTER)))
        probabilities_GSE = jax.nn.softmax(logits_GSE, axis=-1)
        places = capacity(config, size, training=key is not None)
        routing = route(config, probabilities_GSE, valid_GS, places, site(key, SECOND))
        if config.dispatch == "dropless":
            routing = routing._replace(kept_GSK=routing.wanted_GSK)
        sums = router_sums(config, logits_GSE, probabilities_GSE, routing, valid_GS)

        def served(x: Array, routing: Routing) -> Array:
            dispatch = DISPATCHES[config.dispatch]
            return dispatch(x, routing, self._experts(), self.body, places, site(key, HIDDEN), rules)

        if config.dispatch == "dropless":
            y_BLD = served(h_BLD, jax.tree.map(on_devices, routing))
        else:
            y_BLD = on_devices(served(in_groups(h_BLD, "moved"), routing), "moved")
        gates_BLE = jnp.reshape(_served(routing, config.num_experts), (B, L, config.num_experts), out_sharding=cut)
        return reshard(y_BLD, rules("batch", "residual_length", "residual")), sums, gates_BLE

    def _groups(self, B: int, L: int, training: bool) -> tuple[int, int]:
        """How many groups, of how many tokens: as many whole sequences, or as long a part of one, as stay within the
        bound and divide evenly. In evaluation, where batches may be small, a group is at most a sequence where the mesh
        could not share them out otherwise.
        """
        bound = self.config.group_tokens or L
        size = _largest_divisor(L, bound) if bound < L else L * _largest_divisor(B, bound // L)
        groups, parts = B * L // size, self.rules.parts("batch")
        if groups % parts == 0:
            return groups, size
        if training:
            raise ConfigError(
                f"model.moe.group_tokens={bound} makes {groups} groups of {B} sequences of {L} tokens, which {parts} "
                f"parts of the mesh cannot share: at most {B // parts * L} tokens make groups enough"
            )
        return B, L

    def _logits(self, h_BLD: Array, key: Array | None) -> Array:
        """[B, L, E], as the tokens lie."""
        wide_BLD, cut = h_BLD.astype(jnp.float32), self.rules("batch", "length", None)
        if key is not None and self.config.jitter:
            draw = partial(jax.random.uniform, minval=1 - self.config.jitter, maxval=1 + self.config.jitter)
            wide_BLD = wide_BLD * drawn(draw, key, numbers(h_BLD.shape[1], self.rules), h_BLD.shape, 1, cut)
        router_DE = reshard(self.router[...], self.rules.used(None, None))
        return jnp.einsum("bld,de->ble", wide_BLD, router_DE, out_sharding=cut)

    def _experts(self) -> Experts:
        rules = self.rules
        inward = rules.used("expert", None, "mlp", tokens=self.summed)
        outward = rules.used("expert", "mlp", None, tokens=self.summed)
        gate = reshard(self.gate[...], inward) if self.gated else None
        return Experts(gate, reshard(self.up[...], inward), reshard(self.down[...], outward))


def _served(routing: Routing, num_experts: int) -> Array:
    """[G, S, E]"""
    one_hot_GSKE = jax.nn.one_hot(routing.experts_GSK, num_experts, dtype=jnp.float32)
    return jnp.sum(one_hot_GSKE * jnp.where(routing.kept_GSK, routing.gates_GSK, 0)[..., None], axis=2)


def _largest_divisor(of: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, min(of, at_most) + 1) if of % divisor == 0)
