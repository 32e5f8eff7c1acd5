"""Sums over neighbours: the linear map that every lattice network shares.

``out[b, i, s] = sum_j A_s[i, j] u[b, j]``: on a CPU a compiled gather that keeps one configuration
in the first-level cache (a matrix product with the mostly empty ``A_s`` costs 5-20 times the
arithmetic), elsewhere a matrix product. Under bfloat16 autocast the sums are formed in float32
and handed on in bfloat16, which halves their memory and feeds the faster matrix products.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clease_nn.compiled import njit

__all__ = ["Neighbours"]

_HALF, _SHIFT = np.uint32(0x8000), np.uint32(16)


@njit
def _sum_rows(v, index, k, end, o):  # pragma: no cover - compiled
    """o[:] = sum of v[index[k:end], :], six rows at a time."""
    channels = len(o)
    if end - k >= 6:
        v0, v1, v2 = v[index[k]], v[index[k + 1]], v[index[k + 2]]
        v3, v4, v5 = v[index[k + 3]], v[index[k + 4]], v[index[k + 5]]
        for c in range(channels):
            o[c] = ((v0[c] + v1[c]) + (v2[c] + v3[c])) + (v4[c] + v5[c])
        k += 6
    elif end > k:
        v0 = v[index[k]]
        for c in range(channels):
            o[c] = v0[c]
        k += 1
    else:
        for c in range(channels):
            o[c] = 0.0
    while k + 6 <= end:
        v0, v1, v2 = v[index[k]], v[index[k + 1]], v[index[k + 2]]
        v3, v4, v5 = v[index[k + 3]], v[index[k + 4]], v[index[k + 5]]
        for c in range(channels):
            o[c] += ((v0[c] + v1[c]) + (v2[c] + v3[c])) + (v4[c] + v5[c])
        k += 6
    while k < end:
        v0 = v[index[k]]
        for c in range(channels):
            o[c] += v0[c]
        k += 1


@njit
def _gather(u, pointer, index, out):  # pragma: no cover - compiled
    """out[b, r, :] = sum of u[b, index[k], :] over pointer[r] <= k < pointer[r + 1]."""
    batch, rows, _ = out.shape
    for b in range(batch):
        for r in range(rows):
            _sum_rows(u[b], index, pointer[r], pointer[r + 1], out[b, r])


@njit
def _gather_to_bf16(u, pointer, index, out):  # pragma: no cover - compiled
    """As :func:`_gather`, float32 in, the bits of rounded bfloat16 out (uint16)."""
    batch, rows, channels = out.shape
    total = np.empty(channels, np.float32)
    bits = total.view(np.uint32)
    for b in range(batch):
        for r in range(rows):
            _sum_rows(u[b], index, pointer[r], pointer[r + 1], total)
            w = out[b, r]
            for c in range(channels):
                w[c] = np.uint16((bits[c] + _HALF) >> _SHIFT)


@njit
def _gather_from_bf16(u, pointer, index, out):  # pragma: no cover - compiled
    """As :func:`_gather`, the bits of bfloat16 in (uint16), float32 out."""
    batch, rows, channels = out.shape
    sources = u.shape[1]
    bits = np.empty((sources, channels), np.uint32)
    values = bits.view(np.float32)
    for b in range(batch):
        for i in range(sources):
            for c in range(channels):
                bits[i, c] = np.uint32(u[b, i, c]) << _SHIFT
        for r in range(rows):
            _sum_rows(values, index, pointer[r], pointer[r + 1], out[b, r])


@njit
def _gather_at(u, pointer, index, site, shells, out):  # pragma: no cover - compiled
    """out[b, s, :] = the sums of shell s at site[b] alone."""
    for b in range(len(u)):
        for s in range(shells):
            r = site[b] * shells + s
            _sum_rows(u[b], index, pointer[r], pointer[r + 1], out[b, s])


class _NeighbourSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, lists: Neighbours, half: bool) -> Tensor:
        ctx.lists = lists
        u = u.detach().to(torch.float32).contiguous()
        shape = (u.shape[0], u.shape[1] * lists.n_shells, u.shape[2])
        if half:
            out = torch.empty(shape, dtype=torch.bfloat16)
            target = out.view(torch.uint16).numpy()
            _gather_to_bf16(u.numpy(), lists.pointer, lists.index, target)
        else:
            out = torch.empty(shape)
            _gather(u.numpy(), lists.pointer, lists.index, out.numpy())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        lists = ctx.lists
        grad = grad.contiguous()
        out = torch.empty(grad.shape[0], lists.n_sites, grad.shape[2])
        if grad.dtype == torch.bfloat16:
            source = grad.view(torch.uint16).numpy()
            _gather_from_bf16(source, lists.back_pointer, lists.back_index, out.numpy())
        else:
            _gather(grad.numpy(), lists.back_pointer, lists.back_index, out.numpy())
        return out, None, None


class Neighbours:
    """Neighbour lists of one supercell, shells by shells.

    Parameters
    ----------
    counts : ndarray, shape (shells, sites, sites)
        How often site j is a neighbour of site i in each shell (``Lattice.relation_matrices``).

    Examples
    --------
    >>> ring = Neighbours(np.array([[[0, 1, 1], [1, 0, 1], [1, 1, 0]]]))
    >>> ring(torch.tensor([[[1.0], [2.0], [4.0]]]))[0, :, 0, 0]
    tensor([6., 5., 3.])
    """

    def __init__(self, counts: np.ndarray):
        counts = np.asarray(counts).astype(np.int64)
        self.n_shells, self.n_sites, _ = counts.shape
        rows = counts.transpose(1, 0, 2).reshape(-1, self.n_sites)
        self.pointer, self.index = _lists(rows)
        self.back_pointer, self.back_index = _lists(np.ascontiguousarray(rows.T))
        self._dense = torch.as_tensor(rows.astype(np.float32))

    def __call__(self, u: Tensor) -> Tensor:
        """Sums over neighbours of ``u`` (batch, sites, channels): (batch, sites, shells, channels).

        Differentiable; on a CPU float32, or bfloat16 under bfloat16 autocast.
        """
        if u.device.type == "cpu":
            half = torch.is_autocast_enabled("cpu")
            out = _NeighbourSum.apply(u, self, half)
            return out.view(len(u), self.n_sites, self.n_shells, u.shape[2])
        if self._dense.device != u.device:
            self._dense = self._dense.to(u.device)
        out = torch.matmul(self._dense.to(u.dtype), u)
        return out.view(len(u), self.n_sites, self.n_shells, u.shape[2])

    def at(self, u: Tensor, site: Tensor) -> Tensor:
        """The sums at one site of each row, (batch, shells, channels); not differentiable."""
        if u.device.type != "cpu":
            return self(u)[torch.arange(len(u), device=u.device), site]
        out = torch.empty(len(u), self.n_shells, u.shape[2])
        _gather_at(u.numpy(), self.pointer, self.index, site.numpy(), self.n_shells, out.numpy())
        return out


def _lists(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compressed lists of the column indices of each row, repeated by their count."""
    pointer = np.concatenate([[0], np.cumsum(rows.sum(1))]).astype(np.int64)
    i, j = rows.nonzero()
    return pointer, np.repeat(j, rows[i, j]).astype(np.int64)
