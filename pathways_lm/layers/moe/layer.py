"""A mixture of experts in the place of an MLP."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import reshard

from pathways_lm.config import ModelConfig
from pathways_lm.errors import ConfigError
from pathways_lm.layers.dropout import site
from pathways_lm.layers.mlp import ACTIVATIONS, GATES
from pathways_lm.layers.moe.dispatch import DISPATCHES, Body, Experts
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
        self.router = init.kernel(rngs, (D, E), ("embed", "norm"), D, ("batch",))
        if self.gated:
            self.gate = init.kernel(rngs, (E, D, F), ("expert", "expert_embed", "mlp"), D, ("group",))
        self.up = init.kernel(rngs, (E, D, F), ("expert", "expert_embed", "mlp"), D, ("group",))
        self.down = init.residual(rngs, (E, F, D), ("expert", "mlp", "expert_embed"), F, ("group",))
        self.body = Body(GATES[activation] if self.gated else ACTIVATIONS[activation], moe.dropout)
        self.config = moe
        self.rules = rules

    def __call__(self, h_BLD: Array, valid_BL: Array | None, key: Array | None) -> tuple[Array, RouterSums, Array]:
        """Takes an input whole along D.

        Args:
          valid_BL: false for padding; `B` may be 1. None: all are tokens.
          key: in training, for jitter, second choices and dropout. Without one, the capacity is that of evaluation.

        Returns:
          The output, cut as the residual stream; what the router tells; and the gates [B, L, E] of choices served.
        """
        config, rules = self.config, self.rules
        B, L, D = h_BLD.shape
        groups, size = self._groups(B, L, training=key is not None)
        cut = rules("batch", None, None)
        x_GSD = jnp.reshape(h_BLD, (groups, size, D), out_sharding=cut)
        valid_BL = jnp.ones((B, L), bool) if valid_BL is None else jnp.broadcast_to(valid_BL, (B, L))
        valid_BL = reshard(valid_BL, rules("batch", None))
        valid_GS = jnp.reshape(valid_BL, (groups, size), out_sharding=rules("batch", None))

        logits_GSE = self._logits(x_GSD, site(key, JITTER))
        probabilities_GSE = jax.nn.softmax(logits_GSE, axis=-1)
        places = capacity(config, size, training=key is not None)
        routing = route(config, probabilities_GSE, valid_GS, places, site(key, SECOND))
        if config.dispatch == "dropless":
            routing = routing._replace(kept_GSK=routing.wanted_GSK)
        sums = router_sums(config, logits_GSE, probabilities_GSE, routing, valid_GS)

        y_GSD = DISPATCHES[config.dispatch](
            x_GSD, routing, self._experts(), self.body, places, site(key, HIDDEN), rules
        )
        y_BLD = jnp.reshape(y_GSD, (B, L, D), out_sharding=rules("batch", "length", None))
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

    def _logits(self, x_GSD: Array, key: Array | None) -> Array:
        wide_GSD = x_GSD.astype(jnp.float32)
        if key is not None and self.config.jitter:
            low, high = 1 - self.config.jitter, 1 + self.config.jitter
            cut = self.rules("batch", None, None)
            wide_GSD = wide_GSD * jax.random.uniform(key, x_GSD.shape, minval=low, maxval=high, out_sharding=cut)
        router_DE = reshard(self.router[...], self.rules.used(None, None, tokens=("batch",)))
        return jnp.einsum("gsd,de->gse", wide_GSD, router_DE, out_sharding=self.rules("batch", None, None))

    def _experts(self) -> Experts:
        rules = self.rules
        inward = rules.used("expert", None, "mlp", tokens=("group",))
        outward = rules.used("expert", "mlp", None, tokens=("group",))
        gate = reshard(self.gate[...], inward) if self.gated else None
        return Experts(gate, reshard(self.up[...], inward), reshard(self.down[...], outward))


def _served(routing: Routing, num_experts: int) -> Array:
    """[G, S, E]"""
    one_hot_GSKE = jax.nn.one_hot(routing.experts_GSK, num_experts, dtype=jnp.float32)
    return jnp.sum(one_hot_GSKE * jnp.where(routing.kept_GSK, routing.gates_GSK, 0)[..., None], axis=2)


def _largest_divisor(of: int, at_most: int) -> int:
    return max(divisor for divisor in range(1, min(of, at_most) + 1) if of % divisor == 0)
