"""Vector instructions for numba: 64 chains as single operations on float32 or float64.

A *row* is 64 consecutive numbers of a flat array, one for each chain. As one LLVM vector its sums
stay in registers, which a loop cannot promise as its arrays might overlap.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["LANES", "add_branch", "add_product", "open_sum"]

LANES = 64
"""Chains side by side: numbers in a row."""

_INDEX = ir.IntType(64)
_CONTRACT = ("contract",)


class _Vectors:
    """Loads, stores and sums of rows for one call site."""

    def __init__(self, context, builder, signature, args):
        self.context, self.builder, self.types, self.args = context, builder, signature.args, args

    def data(self, k):
        array = self.context.make_array(self.types[k])
        return array(self.context, self.builder, self.args[k]).data

    def _row(self, k, position):
        element = self.context.get_data_type(self.types[k].dtype)
        vector = ir.VectorType(element, LANES)
        pointer = self.builder.gep(self.data(k), [position])
        return self.builder.bitcast(pointer, vector.as_pointer()), self.types[k].dtype.bitwidth // 8

    def load(self, k, position):
        pointer, align = self._row(k, position)
        value = self.builder.load(pointer)
        value.align = align
        return value

    def store(self, value, k, position):
        pointer, align = self._row(k, position)
        self.builder.store(value, pointer).align = align

    def multiply_add(self, a, b, c):
        b_ = self.builder
        return b_.fadd(b_.fmul(a, b, flags=_CONTRACT), c, flags=_CONTRACT)

    def splat(self, scalar):
        b = self.builder
        undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
        first = b.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return b.shuffle_vector(first, undefined, lanes)

    def weighted_sum(self, constant, start, stop, offset, weight, v):
        """constant + sum of weight[e] * v[offset[e]:] over start <= e < stop, in registers."""
        b = self.builder
        initial = self.splat(constant)
        offsets, weights = self.data(offset), self.data(weight)
        before = b.block
        head = b.append_basic_block("entries")
        body = b.append_basic_block("entry")
        done = b.append_basic_block("done")
        b.branch(head)
        b.position_at_end(head)
        e = b.phi(_INDEX)
        e.add_incoming(start, before)
        total = b.phi(initial.type)
        total.add_incoming(initial, before)
        b.cbranch(b.icmp_unsigned("<", e, stop), body, done)
        b.position_at_end(body)
        row = self.load(v, b.load(b.gep(offsets, [e])))
        c = self.splat(b.load(b.gep(weights, [e])))
        total.add_incoming(self.multiply_add(c, row, total), body)
        e.add_incoming(b.add(e, ir.Constant(_INDEX, 1)), body)
        b.branch(head)
        b.position_at_end(done)
        return total


@intrinsic
def open_sum(typingctx, out, i, constant, start, stop, offset, weight, v):
    """``out[i:] = constant + sum of weight[e] v[offset[e]:]`` over ``start <= e < stop``."""

    def emit(context, builder, signature, args):
        rows = _Vectors(context, builder, signature, args)
        total = rows.weighted_sum(args[2], args[3], args[4], 5, 6, 7)
        rows.store(total, 0, args[1])
        return context.get_dummy_value()

    return types.none(out, i, constant, start, stop, offset, weight, v), emit


@intrinsic
def add_branch(typingctx, out, i, x, constant, start, stop, offset, weight, v):
    """``out[i:] += v[x:] * (constant + sum of weight[e] v[offset[e]:])``."""

    def emit(context, builder, signature, args):
        rows = _Vectors(context, builder, signature, args)
        total = rows.weighted_sum(args[3], args[4], args[5], 6, 7, 8)
        total = rows.multiply_add(rows.load(8, args[2]), total, rows.load(0, args[1]))
        rows.store(total, 0, args[1])
        return context.get_dummy_value()

    return types.none(out, i, x, constant, start, stop, offset, weight, v), emit


@intrinsic
def add_product(typingctx, out, i, a, j, b, k):
    """``out[i:] += a[j:] * b[k:]``."""

    def emit(context, builder, signature, args):
        rows = _Vectors(context, builder, signature, args)
        total = rows.multiply_add(
            rows.load(2, args[3]), rows.load(4, args[5]), rows.load(0, args[1])
        )
        rows.store(total, 0, args[1])
        return context.get_dummy_value()

    return types.none(out, i, a, j, b, k), emit
