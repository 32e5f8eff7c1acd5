"""Sums over neighbours: the linear map that every lattice network shares.

``out[b, i, s] = sum_j A_s[i, j] u[b, j]``: on a CPU a compiled gather that keeps one configuration
in the first-level cache (a matrix product with the mostly empty ``A_s`` costs 5-20 times the
arithmetic), elsewhere a matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clease_nn.compiled import njit

__all__ = ["Neighbours"]


@njit
def _gather(u, pointer, index, out):  # pragma: no cover - compiled
    """out[b, r, :] = sum of u[b, index[k], :] over pointer[r] <= k < pointer[r + 1]."""
    batch, rows, channels = out.shape
    for b in range(batch):
        v = u[b]
        for r in range(rows):
            o = out[b, r]
            k = pointer[r]
            end = pointer[r + 1]
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
def _gather_at(u, pointer, index, site, shells, out):  # pragma: no cover - compiled
    """out[b, s, :] = the sums of shell s at site[b] alone."""
    batch, _, channels = u.shape
    for b in range(batch):
        v = u[b]
        for s in range(shells):
            r = site[b] * shells + s
            o = out[b, s]
            for c in range(channels):
                o[c] = 0.0
            for k in range(pointer[r], pointer[r + 1]):
                v0 = v[index[k]]
                for c in range(channels):
                    o[c] += v0[c]


class _NeighbourSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, lists: Neighbours) -> Tensor:
        ctx.lists = lists
        u = u.detach().to(torch.float32).contiguous()
        out = torch.empty(u.shape[0], u.shape[1] * lists.n_shells, u.shape[2])
        _gather(u.numpy(), lists.pointer, lists.index, out.numpy())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        lists = ctx.lists
        grad = grad.to(torch.float32).contiguous()
        out = torch.empty(grad.shape[0], lists.n_sites, grad.shape[2])
        _gather(grad.numpy(), lists.back_pointer, lists.back_index, out.numpy())
        return out, None


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

        Differentiable; float32 on a CPU.
        """
        if u.device.type == "cpu":
            out = _NeighbourSum.apply(u, self)
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
