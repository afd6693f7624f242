"""Reading programs: loops, groups and products, against numbers known from elsewhere."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pathways_lm.plan.hlo import parse
from pathways_lm.plan.program_arithmetic import _taps
from pathways_lm.plan.program_cost import _group, segments

LOOP = """HloModule loops

%step.1 (param.2: s32[], param.3: f32[8,8]) -> s32[] {{
  %param.2 = s32[] parameter(0)
  %two = s32[] constant({step})
  ROOT %add.9 = s32[] add(%param.2, %two)
}}

%body (item: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %item = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %number = s32[] get-tuple-element(%item), index=0
  %matrix = f32[8,8]{{1,0:T(8,128)}} get-tuple-element(%item), index=1
  %next = s32[]{{:T(128)}} fusion(%number, %matrix), kind=kLoop, calls=%step.1
  %product = f32[8,8]{{1,0:T(8,128)S(1)}} dot(%matrix, %matrix), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %out = (s32[], f32[8,8]{{1,0}}) tuple(%next, %product)
}}

%condition (item.1: (s32[], f32[8,8])) -> pred[] {{
  %item.1 = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %number.1 = s32[] get-tuple-element(%item.1), index=0
  %end = s32[]{{:T(128)}} constant({end})
  ROOT %less = pred[] compare(%number.1, %end), direction=LT
}}

ENTRY %main (matrix.1: f32[8,8]) -> f32[8,8] {{
  %matrix.1 = f32[8,8]{{1,0}} parameter(0)
  %start = s32[] constant({start})
  %copied = s32[]{{:T(128)}} copy(%start)
  %first = (s32[], f32[8,8]{{1,0}}) tuple(%copied, %matrix.1)
  %loop = (s32[], f32[8,8]{{1,0}}) while(%first), condition=%condition, body=%body
  ROOT %answer = f32[8,8]{{1,0}} get-tuple-element(%loop), index=1
}}
"""


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 7))
def test_turns_of_a_loop(start, end, step):
    """Where the compiler does not write them down, as many as a loop of Python makes."""
    program = parse(LOOP.format(start=start, end=end, step=step))
    turns = len(range(start, end, step))
    assert program.trip_count(program.entry, program.entry.instructions["loop"]) == turns
    flops = sum(s.times * each.flops for s in segments(program, {"data": 1}) for each in s.arithmetic)
    assert flops == turns * 2 * 8**3


def test_unknown_turns_are_told():
    program = parse(LOOP.format(start=0, end=9, step=1).replace("direction=LT", "direction=NE"))
    assert [(s.times, s.known) for s in segments(program, {"data": 1})] == [(1.0, True), (1.0, False)]


def test_what_lies_on_the_chip_costs_no_memory_traffic():
    program = parse(LOOP.format(start=0, end=1, step=1))
    body = program.computations["body"]
    assert [body.instructions[name].shapes[0].on_chip for name in ("matrix", "product")] == [False, True]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(0, 4), *[st.integers(1, 4)] * 3)
def test_windows_that_meet_padding(source, kernel, out, pad, stride, spread_in, spread_kernel):
    """Taps counted one by one over a source that is written out with its gaps and padding."""
    line = [0] * pad + [int(place % spread_in == 0) for place in range(source * spread_in)]
    line += [0] * (out * stride + kernel * spread_kernel)
    met = sum(line[o * stride + k * spread_kernel] for o in range(out) for k in range(kernel))
    assert _taps(source, kernel, out, pad, stride, spread_in, spread_kernel) == met


class Written:
    """An instruction of which only the groups matter."""

    name = "all-reduce"

    def __init__(self, attributes):
        self.attributes = f"channel_id=1, {attributes}, use_global_device_ids=true"

    def attribute(self, pattern):
        import re

        return re.search(pattern, self.attributes)


@pytest.mark.parametrize("varying", [axes for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)], ids=str)
def test_groups_in_every_way_of_writing(varying):
    """The first group of a mesh of 2 x 3 x 4, listed, as an iota, and as a mesh with the axes that vary."""
    shape = (2, 3, 4)
    ids = np.arange(24).reshape(shape)
    kept = [axis for axis in range(3) if axis not in varying]
    groups = ids.transpose([*kept, *varying]).reshape(-1, math.prod(shape[axis] for axis in varying))
    listed = ",".join("{" + ",".join(map(str, group)) + "}" for group in groups)
    order = ",".join(map(str, [*kept, *varying]))
    names = ",".join(f"'axis_{axis}'" for axis in varying)
    ways = [
        f"replica_groups={{{listed}}}",
        f"replica_groups=[{groups.shape[0]},{groups.shape[1]}]<=[2,3,4]T({order})",
        f"replica_groups=mesh['axis_0'=2,'axis_1'=3,'axis_2'=4] {{{names}}}",
    ]
    for way in ways:
        assert _group(Written(way), 24) == tuple(groups[0].tolist()), way


def test_groups_of_a_mesh_in_another_order_and_of_a_part_of_an_axis():
    transposed = np.arange(12).reshape(4, 3).T
    way = "replica_groups=mesh['axis_0'=3,'axis_1'=4], device_ids=([4,3]T(1,0)) {'axis_0'}"
    assert _group(Written(way), 12) == tuple(transposed[:, 0].tolist())
    way = "replica_groups=mesh['axis_0'=12] {'axis_0':(1)3}"
    assert _group(Written(way), 12) == (0, 4, 8)
    assert _group(Written("source_target_pairs={{0,5},{5,0}}"), 8) == (0, 5)
    assert _group(Written("replica_groups={}"), 4) == (0, 1, 2, 3)


SPREAD = """HloModule spread

%async_start (a: f32[8]) -> f32[16] {
  %a = f32[8]{0} parameter(0)
  ROOT %gather.1 = f32[16]{0} all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}
}

%beside (b: f32[8], m: f32[4,4]) -> f32[4,4] {
  %b = f32[8]{0} parameter(0)
  %m = f32[4,4]{1,0} parameter(1)
  %gather.2 = f32[16]{0} all-gather(%b), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  ROOT %product = f32[4,4]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[8], y: f32[4,4]) -> f32[4,4] {
  %x = f32[8]{0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %start = f32[16]{0} fusion(%x), kind=kCustom, calls=%async_start
  ROOT %out = f32[4,4]{1,0} fusion(%x, %y), kind=kOutput, calls=%beside
}
"""


def test_an_exchange_spread_over_fusions_is_one():
    """TPU's compiler runs parts of an exchange beside products. It is counted once, beside both; the products, too."""
    (segment,) = segments(parse(SPREAD), {"data": 2})
    (exchange,) = segment.exchanges
    assert (exchange.kind, exchange.operand_bytes, exchange.end - exchange.start) == ("all-gather", 32, 2)
    assert sum(each.flops for each in segment.arithmetic) == 2 * 4**3


def test_exchanges_in_which_nobody_sends():
    product = "dot(%matrix, %matrix), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    text = LOOP.format(start=0, end=3, step=1)
    assert product in text
    text = text.replace(product, "collective-permute(%matrix), channel_id=1, source_target_pairs={}")
    assert exchanged(segments(parse(text), {"data": 1})) == []


def mesh_of(shape, names):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Explicit,) * len(shape))


def compiled(function, mesh, *arguments):
    """The program of arrays given as (shape, spec)."""
    given = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec)) for shape, spec in arguments]
    return segments(parse(jax.jit(function).lower(*given).compile().as_text()), dict(mesh.shape))


def exchanged(found):
    return sorted((e.kind, e.axes, len(e.devices), s.times * e.operand_bytes) for s in found for e in s.exchanges)


def test_a_scan_of_megatrons_mlp():
    """Megatron-LM section 3: two products of 2BDF / t a layer, and one all-reduce of the whole B x D of a device."""
    mesh = mesh_of((2, 4), ("data", "tensor"))
    L, B, D, F = 5, 16, 32, 64

    def layers(x, up, down):
        def layer(x, kernels):
            hidden = jnp.einsum("bd,df->bf", x, kernels[0], out_sharding=NamedSharding(mesh, P("data", "tensor")))
            return jnp.einsum("bf,fd->bd", hidden, kernels[1], out_sharding=NamedSharding(mesh, P("data", None))), None

        return jax.lax.scan(layer, x, (up, down))[0]

    kernels = ((L, D, F), P(None, None, "tensor")), ((L, F, D), P(None, "tensor", None))
    found = compiled(layers, mesh, ((B, D), P("data", None)), *kernels)
    assert sum(s.times * each.flops for s in found for each in s.arithmetic) == L * 2 * 2 * (B // 2) * D * F // 4
    assert exchanged(found) == [("all-reduce", ("tensor",), 4, L * (B // 2) * D * 4.0)]


def test_an_array_that_is_gathered():
    """ZeRO: what each of 8 devices holds goes to the 7 others."""
    mesh = mesh_of((8,), ("data",))
    found = compiled(lambda x: jax.sharding.reshard(x, NamedSharding(mesh, P(None))) * 2, mesh, ((1024,), P("data")))
    assert exchanged(found) == [("all-gather", ("data",), 8, 1024 * 4 / 8)]
    (exchange,) = [each for s in found for each in s.exchanges]
    assert exchange.sent_bytes == 7 * 1024 * 4 / 8


AWAITED = """HloModule awaited

ENTRY %main (x: f32[8], y: f32[4,4]) -> f32[4,4] {
  %x = f32[8]{0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %at_once = f32[16]{0} all-gather(%x), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %start = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), channel_id=2, replica_groups={{0,1}}, dimensions={0}
  %one = f32[4,4]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %two = f32[4,4]{1,0} dot(%one, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = f32[16]{0} all-gather-done(%start)
  ROOT %three = f32[4,4]{1,0} dot(%two, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_an_exchange_runs_until_it_is_awaited():
    """One is awaited where it begins, one runs beside two of three products (after what reads the parameters)."""
    (segment,) = segments(parse(AWAITED), {"data": 2})
    products = [each.flops for each in segment.arithmetic]
    at_once, started = segment.exchanges
    assert at_once.start == at_once.end
    assert sum(products[started.start : started.end]) == 2 * 2 * 4**3 and sum(products) == 3 * 2 * 4**3


NESTED = """HloModule nested

%slice (stack: f32[16,8], at: s32[]) -> f32[1,8] {
  %stack = f32[16,8]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %one = f32[1,8]{1,0} dynamic-slice(%stack, %at, %zero), dynamic_slice_sizes={1,8}
}

%outer (kept: f32[16,8], layer: s32[]) -> f32[1,8] {
  %kept = f32[16,8]{1,0} parameter(0)
  %layer = s32[] parameter(1)
  %inner = f32[1,8]{1,0} fusion(%kept, %layer), kind=kLoop, calls=%slice
  ROOT %twice = f32[1,8]{1,0} add(%inner, %inner)
}

ENTRY %main (x: f32[16,8], i: s32[]) -> f32[1,8] {
  %x = f32[16,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %out = f32[1,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%outer
}
"""


def test_a_slice_taken_within_a_fusion_within_a_fusion():
    """A row of 8 numbers is read and one is written, besides the index; not the stack of 16."""
    (segment,) = segments(parse(NESTED), {"data": 1})
    assert sum(each.memory_bytes for each in segment.arithmetic) == 2 * 8 * 4 + 4


RESHAPED = """HloModule reshaped

%shape (flat: f32[16]) -> f32[4,4] {
  %flat = f32[16]{0} parameter(0)
  ROOT %square = f32[4,4]{1,0} bitcast(%flat)
}

%outer (flat.1: f32[16], y: f32[4,4]) -> f32[4,4] {
  %flat.1 = f32[16]{0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %inner = f32[4,4]{1,0} fusion(%flat.1), kind=kLoop, calls=%shape
  ROOT %product = f32[4,4]{1,0} dot(%inner, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[16], z: f32[4,4]) -> f32[4,4] {
  %x = f32[16]{0} parameter(0)
  %z = f32[4,4]{1,0} parameter(1)
  ROOT %out = f32[4,4]{1,0} fusion(%x, %z), kind=kOutput, calls=%outer
}
"""


def test_an_array_that_a_fusion_within_a_fusion_gives_another_shape():
    """It is read for the product all the same: two matrices are read and one is written."""
    (segment,) = segments(parse(RESHAPED), {"data": 1})
    assert sum(each.memory_bytes for each in segment.arithmetic) == 3 * 16 * 4


IN_PLACE = """HloModule in_place

%begin (a: f32[8]) -> (f32[8], f32[16]) {
  %a = f32[8]{0} parameter(0)
  %gather.1 = f32[16]{0} all-gather(%a), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  ROOT %started = (f32[8]{0}, f32[16]{0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (b: f32[8], c: f32[16], m: f32[4,4]) -> (f32[4,4], f32[8], f32[16]) {
  %b = f32[8]{0} parameter(0)
  %c = f32[16]{0} parameter(1)
  %m = f32[4,4]{1,0} parameter(2)
  %gather.2 = f32[16]{0} all-gather(%b), channel_id=7, replica_groups={{0,1}}, dimensions={0}
  %product = f32[4,4]{1,0} dot(%m, %m), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %made = (f32[4,4]{1,0}, f32[8]{0}, f32[16]{0}) tuple(%product, %b, %c)
}

ENTRY %main (x: f32[8], y: f32[4,4]) -> (f32[4,4], f32[8], f32[16]) {
  %x = f32[8]{0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %start = (f32[8]{0}, f32[16]{0}) fusion(%x), kind=kCustom, calls=%begin
  %sent = f32[8]{0} get-tuple-element(%start), index=0
  %come = f32[16]{0} get-tuple-element(%start), index=1
  ROOT %out = (f32[4,4]{1,0}, f32[8]{0}, f32[16]{0}) fusion(%sent, %come, %y), kind=kOutput, ALIASING calls=%beside
}
"""
ALIASING = "output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})},"


@pytest.mark.parametrize(("aliasing", "handed_on"), [(ALIASING, 0), ("", 8 + 16)], ids=["in place", "copied"])
def test_what_an_exchange_moves_is_not_the_fusions(aliasing, handed_on):
    """Its arrays are handed on beside a product of 4 x 4 numbers, which alone is read and written.

    Where the results are not told to lie where the operands do, they are written.
    """
    (segment,) = segments(parse(IN_PLACE.replace("ALIASING", aliasing)), {"data": 2})
    assert sum(each.memory_bytes for each in segment.arithmetic) == 4 * (2 * 4 * 4 + handed_on)
    assert [each.kind for each in segment.exchanges] == ["all-gather"]


GIVEN_AWAY = """HloModule given_away

%elsewhere (a: f32[8], t: token[]) -> f32[8] {
  %t = token[] parameter(1)
  %a = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} all-reduce(%a), channel_id=3, replica_groups={{0,1}}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8], y: f32[4,4]) -> f32[4,4] {
  %x = f32[8]{0} parameter(0)
  %y = f32[4,4]{1,0} parameter(1)
  %ready = token[] custom-call(), custom_call_target="PrepareAsyncCallDone"
  %start = ((f32[8]{0}, token[]), f32[8]{0}) call-start(%x, %ready), to_apply=%elsewhere
  %one = f32[4,4]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %two = f32[4,4]{1,0} dot(%one, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = f32[8]{0} call-done(%start)
  ROOT %three = f32[4,4]{1,0} dot(%two, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


def test_an_exchange_given_to_sparse_cores():
    """Two of three products run beside it."""
    (segment,) = segments(parse(GIVEN_AWAY), {"data": 2})
    (exchange,) = segment.exchanges
    products = [each.flops for each in segment.arithmetic]
    assert (exchange.kind, exchange.axes, exchange.operand_bytes) == ("all-reduce", ("data",), 32)
    assert sum(products[exchange.start : exchange.end]) == 2 * 2 * 4**3 and sum(products) == 3 * 2 * 4**3


CUBLAS = """HloModule cublas

ENTRY %main (x: bf16[8,16], w: bf16[16,4]) -> bf16[8,4] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,4]{1,0} parameter(1)
  %made = (bf16[8,4]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"lhs_contracting_dimensions":["1"]}
  ROOT %y = bf16[8,4]{1,0} get-tuple-element(%made), index=0
}
"""  # noqa: E501


def test_room_that_cublas_may_work_in_is_not_written():
    (segment,) = segments(parse(CUBLAS), {"data": 1})
    (product,) = [each for each in segment.arithmetic if each.flops]
    assert product.flops == 2 * 8 * 16 * 4
    assert product.memory_bytes == 2 * (8 * 16 + 16 * 4 + 8 * 4)
