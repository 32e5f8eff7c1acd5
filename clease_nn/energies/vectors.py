"""Vector instructions for numba: rows of 64 numbers as single operations.

A *row* is 64 consecutive float64 of a flat array, one for each configuration that is evaluated
side by side. Written as loops, LLVM has to guard every row against overlapping arrays at run
time and keeps sums in memory; written as vectors, sums stay in registers (measured: 1.8 times
as many energies a second). All functions take flat arrays and the uint64 position of a row.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["LANES", "add_product", "product", "weighted_sum", "weighted_sum_and_spread"]

LANES = 64
"""Configurations evaluated side by side: numbers in a row."""

_WIDTH = 4  # numbers in a vector register; LLVM splits or keeps it as the CPU wants
_PARTS = LANES // _WIDTH
_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.DoubleType(), _WIDTH)
_ZERO = ir.Constant(_VECTOR, [0.0] * _WIDTH)
_FAST = ("contract",)


class _Row:
    """A row of an array argument: loads and stores its parts."""

    def __init__(self, context, builder, array_type, array, position):
        self.builder = builder
        self.data = context.make_array(array_type)(context, builder, array).data
        self.position = position

    def _pointer(self, part):
        b = self.builder
        at = b.add(self.position, ir.Constant(_INDEX, part * _WIDTH))
        return b.bitcast(b.gep(self.data, [at]), _VECTOR.as_pointer())

    def load(self, part):
        value = self.builder.load(self._pointer(part))
        value.align = 8
        return value

    def store(self, value, part):
        self.builder.store(value, self._pointer(part)).align = 8


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)


def _rows(context, builder, signature, args):
    """Rows of the argument pairs (array, position, array, position, ...)."""
    return [
        _Row(context, builder, signature.args[k], args[k], args[k + 1])
        for k in range(0, len(args), 2)
    ]


@intrinsic
def product(typingctx, out, i, a, j, b, k):
    """``out[i:] = a[j:] * b[k:]``."""

    def emit(context, builder, signature, args):
        target, x, y = _rows(context, builder, signature, args)
        for part in range(_PARTS):
            target.store(builder.fmul(x.load(part), y.load(part), flags=_FAST), part)
        return context.get_dummy_value()

    return types.none(out, i, a, j, b, k), emit


@intrinsic
def add_product(typingctx, out, i, a, j, b, k):
    """``out[i:] += a[j:] * b[k:]``."""

    def emit(context, builder, signature, args):
        target, x, y = _rows(context, builder, signature, args)
        for part in range(_PARTS):
            total = _multiply_add(builder, x.load(part), y.load(part), target.load(part))
            target.store(total, part)
        return context.get_dummy_value()

    return types.none(out, i, a, j, b, k), emit


def _emit_weighted_sum(context, builder, signature, args, spread):
    """Loop over entries with one accumulator in registers for each part of the row."""
    start, stop = args[:2]
    entry, weight = (
        context.make_array(signature.args[k])(context, builder, args[k]).data for k in (2, 3)
    )
    target = _Row(context, builder, signature.args[5], args[5], args[6])
    if spread:
        source = _Row(context, builder, signature.args[8], args[8], args[9])
        factors = [source.load(part) for part in range(_PARTS)]
    before = builder.block
    head = builder.append_basic_block("entries")
    body = builder.append_basic_block("entry")
    done = builder.append_basic_block("done")
    builder.branch(head)
    builder.position_at_end(head)
    e = builder.phi(_INDEX)
    e.add_incoming(start, before)
    sums = [builder.phi(_VECTOR) for _ in range(_PARTS)]
    for total in sums:
        total.add_incoming(_ZERO, before)
    builder.cbranch(builder.icmp_unsigned("<", e, stop), body, done)
    builder.position_at_end(body)
    position = builder.mul(builder.load(builder.gep(entry, [e])), ir.Constant(_INDEX, LANES))
    scalar = builder.load(builder.gep(weight, [e]))
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), _WIDTH), [0] * _WIDTH)
    c = builder.shuffle_vector(first, undefined, lanes)
    row = _Row(context, builder, signature.args[4], args[4], position)
    if spread:
        slope = _Row(context, builder, signature.args[7], args[7], position)
    for part, total in enumerate(sums):
        total.add_incoming(_multiply_add(builder, c, row.load(part), total), body)
        if spread:
            slope.store(_multiply_add(builder, c, factors[part], slope.load(part)), part)
    e.add_incoming(builder.add(e, ir.Constant(_INDEX, 1)), body)
    builder.branch(head)
    builder.position_at_end(done)
    for part, total in enumerate(sums):
        target.store(total, part)
    return context.get_dummy_value()


@intrinsic
def weighted_sum(typingctx, start, stop, entry, weight, v, out, i):
    """``out[i:] = sum of weight[e] * v[entry[e]]`` over ``start <= e < stop``."""

    def emit(context, builder, signature, args):
        return _emit_weighted_sum(context, builder, signature, args, spread=False)

    return types.none(start, stop, entry, weight, v, out, i), emit


@intrinsic
def weighted_sum_and_spread(typingctx, start, stop, entry, weight, v, out, i, gradient, factor, j):
    """As :func:`weighted_sum`, and ``gradient[entry[e]] += weight[e] * factor[j:]``."""

    def emit(context, builder, signature, args):
        return _emit_weighted_sum(context, builder, signature, args, spread=True)

    signature = types.none(start, stop, entry, weight, v, out, i, gradient, factor, j)
    return signature, emit
