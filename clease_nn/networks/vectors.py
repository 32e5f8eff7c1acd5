"""Vector instructions for numba: sums of scattered rows that stay in registers.

A loop over channels inside a loop over neighbours makes LLVM guard every row against overlap and
keep the sums in memory; written as vectors of 16 or 32 channels they stay in registers. bfloat16
is handled as bits (uint16), rounded to nearest, ties away from zero.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["LANES", "sum_rows", "sum_rows_pair"]

LANES = 16
"""Channels in one vector; :func:`sum_rows_pair` does two."""

_INDEX = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)


def _constant(value: int):
    return ir.Constant(_INTS, [value] * LANES)


def _load(builder, data, position, half: bool):
    pointer = builder.gep(data, [position])
    if not half:
        out = builder.load(builder.bitcast(pointer, _FLOATS.as_pointer()))
        out.align = 4
        return out
    bits = builder.load(builder.bitcast(pointer, _SHORTS.as_pointer()))
    bits.align = 2
    return builder.bitcast(builder.shl(builder.zext(bits, _INTS), _constant(16)), _FLOATS)


def _store(builder, value, data, position, half: bool):
    pointer = builder.gep(data, [position])
    if not half:
        builder.store(value, builder.bitcast(pointer, _FLOATS.as_pointer())).align = 4
        return
    bits = builder.add(builder.bitcast(value, _INTS), _constant(0x8000))
    short = builder.trunc(builder.lshr(bits, _constant(16)), _SHORTS)
    builder.store(short, builder.bitcast(pointer, _SHORTS.as_pointer())).align = 2


def _emit(parts: int):
    def emit(context, builder, signature, args):
        start, stop, index_array, source_array, base, target_array, position = args
        index = context.make_array(signature.args[2])(context, builder, index_array).data
        source = context.make_array(signature.args[3])(context, builder, source_array).data
        target = context.make_array(signature.args[5])(context, builder, target_array).data
        in_half = signature.args[3].dtype == types.uint16
        out_half = signature.args[5].dtype == types.uint16
        before = builder.block
        head = builder.append_basic_block("rows")
        body = builder.append_basic_block("row")
        done = builder.append_basic_block("done")
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_INDEX)
        k.add_incoming(start, before)
        sums = [builder.phi(_FLOATS) for _ in range(parts)]
        for total in sums:
            total.add_incoming(ir.Constant(_FLOATS, [0.0] * LANES), before)
        builder.cbranch(builder.icmp_unsigned("<", k, stop), body, done)
        builder.position_at_end(body)
        row = builder.add(base, builder.load(builder.gep(index, [k])))
        for part, total in enumerate(sums):
            at = builder.add(row, ir.Constant(_INDEX, part * LANES))
            value = _load(builder, source, at, in_half)
            total.add_incoming(builder.fadd(total, value), body)
        k.add_incoming(builder.add(k, ir.Constant(_INDEX, 1)), body)
        builder.branch(head)
        builder.position_at_end(done)
        for part, total in enumerate(sums):
            at = builder.add(position, ir.Constant(_INDEX, part * LANES))
            _store(builder, total, target, at, out_half)
        return context.get_dummy_value()

    return emit


@intrinsic
def sum_rows(typingctx, start, stop, index, source, base, target, position):
    """``target[position:+16] = sum of source[base + index[k]:+16]`` over ``start <= k < stop``.

    All arrays flat; positions and indices uint64; float32 or the bits of bfloat16 (uint16).
    """
    return types.none(start, stop, index, source, base, target, position), _emit(1)


@intrinsic
def sum_rows_pair(typingctx, start, stop, index, source, base, target, position):
    """As :func:`sum_rows`, for 32 channels."""
    return types.none(start, stop, index, source, base, target, position), _emit(2)
