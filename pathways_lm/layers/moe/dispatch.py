"""Tokens to their experts and back: three ways to one result.

`einsum` multiplies with one-hot masks and leaves the exchange to the partitioner: the reference. `all_to_all` puts
tokens into their places by index and exchanges them itself. `dropless` sorts tokens by expert and has no places at all.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, auto_axes, reshard

from pathways_lm.kernels.contract import contract
from pathways_lm.kernels.ragged import ragged_dot, ragged_product
from pathways_lm.kernels.zigzag import numbers
from pathways_lm.layers.again import computed_again
from pathways_lm.layers.dropout import drawn
from pathways_lm.layers.mlp import ACTIVATIONS, gated
from pathways_lm.layers.moe.router import Routing
from pathways_lm.sharding import Rules


class Experts(NamedTuple):
    """The kernels of all experts in the type of the arithmetic, whole along the model dimension."""

    gate_EDF: Array | None
    up_EDF: Array
    down_EFD: Array


class Body(NamedTuple):
    """What an expert does after its first kernels."""

    activation: str
    rate: float
    """Of dropout of the hidden units."""

    def hidden(self, up: Array, gate: Array | None, keep: Array | None) -> Array:
        """Applies the activation and, where there is a mask, dropout."""
        hidden = ACTIVATIONS[self.activation](up) if gate is None else gated(self.activation, gate, up)
        return hidden if keep is None else jnp.where(keep, hidden / (1 - self.rate), 0).astype(hidden.dtype)

    def finish(
        self,
        multiply: Callable[[Array, Array], Array],
        up: Array,
        gate: Array | None,
        keep: Array | None,
        down_EFD: Array,
    ) -> Array:
        """The hidden units times the last kernel. They are not kept for the backward pass.

        Args:
          multiply: takes all arrays that it depends on.
        """

        def finish(up: Array, gate: Array | None, keep: Array | None, down_EFD: Array) -> Array:
            return multiply(self.hidden(up, gate, keep), down_EFD)

        return computed_again(finish, apart=False)(up, gate, keep, down_EFD)


# Groups are whole sequences or parts of them in the order of the text, however those lie on devices: tokens are moved
# with the model dimension cut in place of the length. Where an expert computes, its places are cut, as many as the
# devices divide, of which the last may stay empty.
GROUPS = ("group", "length")
"""What the gradients of experts' kernels sum over."""
Dispatch = Callable[[Array, Routing, Experts, Body, int, Array | None, Rules], Array]
"""x_GSD cut as the batch and 'moved', whole routing, kernels, body, places, key of the dropout, rules -> y_GSD, as x.
For `dropless` x_BLD and routing as they lie on devices."""


def summed_over(dispatch: str, rules: Rules) -> tuple[str, ...]:
    """What the gradients of experts' kernels are left as sums over, for `Rules.used`.

    JAX takes no kernels so into a `shard_map` that a pipeline maps over its stages: there they are added at every tick.
    """
    return GROUPS if dispatch == "einsum" or rules.stages == 1 else ()


def by_einsum(
    x_GSD: Array, routing: Routing, experts: Experts, body: Body, places: int, key: Array | None, rules: Rules
) -> Array:
    """GShard's products (arXiv:2006.16668, algorithm 2): GSEC x GSD -> EGCD, experts, GSEC x EGCD -> GSD."""
    E, places = experts.up_EDF.shape[0], _divided(places, rules)
    cut, moved = rules("batch", None, None, None), rules("batch", None, None, "moved")
    expert_GSKE = jax.nn.one_hot(routing.experts_GSK, E, dtype=jnp.float32) * routing.kept_GSK[..., None]
    slot_GSKC = jax.nn.one_hot(routing.slots_GSK, places, dtype=jnp.float32)
    dispatch = jnp.einsum("gske,gskc->gsec", expert_GSKE, slot_GSKC, out_sharding=cut)
    weighted_GSKE = expert_GSKE * routing.gates_GSK[..., None]
    combine = jnp.einsum("gske,gskc->gsec", weighted_GSKE, slot_GSKC, out_sharding=cut)
    # Masks in the type of the arithmetic, before anything is exchanged (Switch section 2.4, selective precision).
    dispatch, combine = dispatch.astype(x_GSD.dtype), combine.astype(x_GSD.dtype)
    sent_GECD = contract("gsec,gsd->gecd", dispatch, x_GSD, moved)
    with_experts = rules("group", "expert", "places", None)
    sent_GECD = reshard(sent_GECD, with_experts)
    hidden_cut = rules("group", "expert", "places", "mlp")

    def into(kernel_EDF: Array) -> Array:
        return contract("gecd,edf->gecf", sent_GECD, kernel_EDF, hidden_cut)

    gate = None if experts.gate_EDF is None else into(experts.gate_EDF)
    keep = _keep(key, body.rate, (x_GSD.shape[0], E, places, experts.up_EDF.shape[2]), rules)

    def out_of(hidden_GECF: Array, down_EFD: Array) -> Array:
        return contract("gecf,efd->gecd", hidden_GECF, down_EFD, with_experts)

    y_GECD = body.finish(out_of, into(experts.up_EDF), gate, keep, experts.down_EFD)
    y_GECD = reshard(y_GECD, moved)
    return contract("gsec,gecd->gsd", combine, y_GECD, rules("batch", None, "moved"))


def by_all_to_all(
    x_GSD: Array, routing: Routing, experts: Experts, body: Body, places: int, key: Array | None, rules: Rules
) -> Array:
    """Each device puts its tokens into places, all exchange them for those of their own experts, and back."""
    E, places = experts.up_EDF.shape[0], _divided(places, rules)
    axes, cut_hidden, cut_places = (_axes(rules, name) for name in ("expert", "mlp", "places"))
    keep = _keep(key, body.rate, (x_GSD.shape[0], E, places, experts.up_EDF.shape[2]), rules)

    def local(x_GSD: Array, routing: Routing, experts: Experts, keep_GECF: Array | None) -> Array:
        G, _, D = x_GSD.shape
        groups_GSK = jnp.broadcast_to(jnp.arange(G)[:, None, None], routing.slots_GSK.shape)
        # What found no place is sent to one that does not exist.
        slots_GSK = jnp.where(routing.kept_GSK, routing.slots_GSK, places)
        # Experts first, so that each one's tokens of all groups lie together as one matrix.
        at = (routing.experts_GSK, groups_GSK, slots_GSK)
        x_GSKD = jnp.broadcast_to(x_GSD[:, :, None], (*slots_GSK.shape, D))
        sent_EGCD = jnp.zeros((E, G, places, D), x_GSD.dtype).at[at].set(x_GSKD, mode="drop")
        for axis in cut_places:
            sent_EGCD = jax.lax.all_to_all(sent_EGCD, axis, split_axis=2, concat_axis=3, tiled=True)
        for axis in axes:
            sent_EGCD = jax.lax.all_to_all(sent_EGCD, axis, split_axis=0, concat_axis=1, tiled=True)
        rows_ERD = sent_EGCD.reshape(sent_EGCD.shape[0], -1, sent_EGCD.shape[-1])

        def into(kernel_EDF: Array) -> Array:
            return _multiply("erd,edf->erf", rows_ERD, kernel_EDF, rules)

        gate = None if experts.gate_EDF is None else into(experts.gate_EDF)
        up = into(experts.up_EDF)
        keep_ERF = None if keep_GECF is None else jnp.swapaxes(keep_GECF, 0, 1).reshape(up.shape)

        def out_of(hidden_ERF: Array, down_EFD: Array) -> Array:
            return _multiply("erf,efd->erd", hidden_ERF, down_EFD, rules)

        y_ERD = body.finish(out_of, up, gate, keep_ERF, experts.down_EFD)
        y_EGCD = y_ERD.reshape(*sent_EGCD.shape[:3], y_ERD.shape[-1])
        for axis in reversed(axes):
            y_EGCD = jax.lax.all_to_all(y_EGCD, axis, split_axis=1, concat_axis=0, tiled=True)
        for axis in reversed(cut_places):
            y_EGCD = jax.lax.all_to_all(y_EGCD, axis, split_axis=3, concat_axis=2, tiled=True)
        gates_GSK = jnp.where(routing.kept_GSK, routing.gates_GSK, 0).astype(y_EGCD.dtype)
        y_GSKD = y_EGCD.at[at].get(mode="fill", fill_value=0)
        y_GSD = jnp.einsum("gsk,gskd->gsd", gates_GSK, y_GSKD)
        return jax.lax.psum(y_GSD, cut_hidden) if cut_hidden else y_GSD

    tokens, keep_cut = rules("batch", None, "moved"), rules("group", "expert", "places", "mlp")
    return _on_each_device(local, rules, tokens, rules("batch", None, None), keep_cut)(x_GSD, routing, experts, keep)


def dropless(
    x_BLD: Array, routing: Routing, experts: Experts, body: Body, places: int, key: Array | None, rules: Rules
) -> Array:
    """Every wanted choice is served: tokens sorted by expert, one ragged product (MegaBlocks, arXiv:2211.15841).

    Groups are nothing to it: tokens stay where their sequence is cut. Devices along the experts' axes see each other's
    tokens, serve those of their own experts, and add up.
    """
    del places
    axes, cut_hidden = (_axes(rules, name) for name in ("expert", "mlp"))
    hidden_shape = (*routing.experts_GSK.shape, experts.up_EDF.shape[2])
    keep, keep_cut = None, rules("batch", "length", None, "mlp")
    if key is not None and body.rate:
        draw = partial(jax.random.bernoulli, p=1 - body.rate)
        keep = drawn(draw, key, numbers(x_BLD.shape[1], rules), hidden_shape, 1, keep_cut)

    def local(x_GSD: Array, routing: Routing, experts: Experts, keep_GSKF: Array | None) -> Array:
        E = experts.up_EDF.shape[0]
        first = _index(axes) * E
        for axis in reversed(axes):
            gather = partial(jax.lax.all_gather, axis_name=axis, axis=0, tiled=True)
            x_GSD, routing, keep_GSKF = jax.tree.map(gather, (x_GSD, routing, keep_GSKF))
        G, S, K = routing.experts_GSK.shape
        own = routing.experts_GSK - first
        served = routing.wanted_GSK & (own >= 0) & (own < E)
        # Those of other devices come last, behind the end of the last own expert.
        expert_of = jnp.where(served, own, E).reshape(G * S * K)
        order = jnp.argsort(expert_of, stable=True)
        sizes_E = jnp.sum(expert_of[:, None] == jnp.arange(E), axis=0, dtype=jnp.int32)
        back = jnp.argsort(order)
        each = jnp.broadcast_to(x_GSD[:, :, None], (G, S, K, x_GSD.shape[-1]))
        rows = _permuted(each.reshape(G * S * K, -1), order, back)

        def product(left: Array, kernels: Array) -> Array:
            # What devices see differs along axes of the mesh, which the loop on CPUs does not tell of its results.
            if rules.mesh.size > 1:
                return ragged_dot(left, kernels, sizes_E)
            return ragged_product(left, kernels, sizes_E)

        gate = None if experts.gate_EDF is None else product(rows, experts.gate_EDF)
        keep_rows = None if keep_GSKF is None else _permuted(keep_GSKF.reshape(G * S * K, -1), order, back)
        hidden = body.hidden(product(rows, experts.up_EDF), gate, keep_rows)
        y_GSKD = _permuted(product(hidden, experts.down_EFD), back, order).reshape(G, S, K, -1)
        gates_GSK = jnp.where(served, routing.gates_GSK, 0).astype(y_GSKD.dtype)
        y_GSD = jnp.einsum("gsk,gskd->gsd", gates_GSK, y_GSKD)
        for axis in axes:
            y_GSD = jax.lax.psum_scatter(y_GSD, axis, scatter_dimension=0, tiled=True)
        return jax.lax.psum(y_GSD, cut_hidden) if cut_hidden else y_GSD

    tokens = rules("batch", "length", None)
    return _on_each_device(local, rules, tokens, tokens, keep_cut)(x_BLD, routing, experts, keep)


@jax.custom_vjp
def _permuted(rows: Array, to: Array, back: Array) -> Array:
    """Row `to[i]` in place i; `back` is the way back, by which gradients go, without adding any."""
    del back
    return rows.at[to].get(mode="promise_in_bounds", wrap_negative_indices=False, unique_indices=True)


def _permuted_backward(ways: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    to, back = ways
    return _permuted(gradient, back, to), None, None


_permuted.defvjp(lambda rows, to, back: (_permuted(rows, to, back), (to, back)), _permuted_backward)


DISPATCHES: Mapping[str, Dispatch] = {"einsum": by_einsum, "all_to_all": by_all_to_all, "dropless": dropless}


def _keep(key: Array | None, rate: float, shape: tuple[int, ...], rules: Rules) -> Array | None:
    """The dropout mask of all hidden units in their places, drawn as one array: the same on every mesh."""
    if key is None or rate == 0:
        return None
    cut = rules("group", "expert", "places", "mlp")
    # By place, so that others than those of the capacity change nothing.
    return drawn(partial(jax.random.bernoulli, p=1 - rate), key, jnp.arange(shape[2]), shape, 2, cut)


def _divided(places: int, rules: Rules) -> int:
    """As many places as devices along a sequence divide."""
    parts = rules.parts("places")
    return -(-places // parts) * parts


def _on_each_device(
    local: Callable[..., Array], rules: Rules, tokens: NamedSharding, routed: NamedSharding, keep_cut: NamedSharding
) -> Callable[..., Array]:
    """`local` on every device's own part of tokens and experts; on one device, on all of them."""
    if rules.mesh.size == 1:
        return partial(_on_one_device, local, tokens)
    summed = summed_over("all_to_all", rules)
    inward = rules.used("expert", None, "mlp", tokens=summed).spec
    outward = rules.used("expert", "mlp", None, tokens=summed).spec
    kernels = Experts(gate_EDF=inward, up_EDF=inward, down_EFD=outward)  # type: ignore[arg-type]

    def vary(kernel: Array) -> Array:
        # Each device's tokens are others: so its gradient is left as sums, as that of any product.
        return jax.lax.pcast(kernel, tuple(inward.reduced), to="varying") if inward.reduced else kernel

    def on_device(x_GSD: Array, routing: Routing, experts: Experts, keep: Array | None) -> Array:
        return local(x_GSD, routing, jax.tree.map(vary, experts), keep)

    def call(x_GSD: Array, routing: Routing, experts: Experts, keep: Array | None) -> Array:
        specs = (
            tokens.spec,
            jax.tree.map(lambda _: routed.spec, routing),
            kernels._replace(gate_EDF=None) if experts.gate_EDF is None else kernels,
            None if keep is None else keep_cut.spec,
        )
        mapped = jax.shard_map(on_device, mesh=rules.mesh, in_specs=specs, out_specs=tokens.spec)
        return mapped(x_GSD, routing, experts, keep)

    return call


def _on_one_device(local: Callable[..., Array], tokens: NamedSharding, *given: Any) -> Array:
    """Without `shard_map`, which would exchange even where nobody else is. How arrays lie is not asked inside."""
    return auto_axes(local, out_sharding=tokens)(*given)


def _multiply(subscripts: str, left: Array, right: Array, rules: Rules) -> Array:
    """A product of what a device has for itself."""
    # What devices see differs along axes of the mesh, which the backward pass of `contract` does not tell.
    return contract(subscripts, left, right, None) if rules.mesh.size == 1 else jnp.einsum(subscripts, left, right)


def _axes(rules: Rules, name: str) -> tuple[str, ...]:
    """The mesh axes along which there is something to exchange."""
    return rules.axes(name) if rules.mesh.size > 1 else ()


def _index(axes: tuple[str, ...]) -> Array | int:
    """This device's number along the axes."""
    index: Array | int = 0
    for axis in axes:
        index = index * jax.lax.axis_size(axis) + jax.lax.axis_index(axis)
    return index
