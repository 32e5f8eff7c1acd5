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
from clease_nn.networks import vectors

__all__ = ["Neighbours"]

_LANES = np.uint64(vectors.LANES)


@njit
def _gather(source, sources, pointer, index, target, rows, channels):  # pragma: no cover
    """target[b, r, :] = sum of source[b, index[k], :] over pointer[r] <= k < pointer[r + 1].

    Flat arrays, float32 or the bits of bfloat16; ``channels`` a multiple of LANES; ``index``
    already multiplied by ``channels``.
    """
    batch = np.uint64(len(source)) // (sources * channels)
    for b in range(batch):
        base = b * sources * channels
        for r in range(rows):
            position = (b * rows + r) * channels
            start, stop = pointer[r], pointer[r + np.uint64(1)]
            c = np.uint64(0)
            while c + _LANES + _LANES <= channels:
                vectors.sum_rows_pair(start, stop, index, source, base + c, target, position + c)
                c += _LANES + _LANES
            while c < channels:
                vectors.sum_rows(start, stop, index, source, base + c, target, position + c)
                c += _LANES


@njit
def _gather_at(source, sources, pointer, index, site, shells, target, channels):  # pragma: no cover
    """target[b, s, :] = the sums of shell s at site[b] alone."""
    for b in range(np.uint64(len(site))):
        base = b * sources * channels
        for s in range(shells):
            r = np.uint64(site[b]) * shells + s
            position = (b * shells + s) * channels
            c = np.uint64(0)
            while c < channels:
                vectors.sum_rows(
                    pointer[r], pointer[r + np.uint64(1)], index, source, base + c, target,
                    position + c,
                )  # fmt: skip
                c += _LANES


def _flat(x: Tensor) -> np.ndarray:
    """Flat numpy view of a contiguous tensor; bfloat16 as its bits."""
    if x.dtype == torch.bfloat16:
        x = x.view(torch.uint16)
    return x.view(-1).numpy()


class _NeighbourSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, lists: Neighbours, half: bool) -> Tensor:
        ctx.lists = lists
        u = u.detach().to(torch.float32).contiguous()
        shape = (u.shape[0], u.shape[1] * lists.n_shells, u.shape[2])
        out = torch.empty(shape, dtype=torch.bfloat16 if half else torch.float32)
        lists.gather(u, out, forward=True)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        out = torch.empty(grad.shape[0], ctx.lists.n_sites, grad.shape[2])
        ctx.lists.gather(grad.contiguous(), out, forward=False)
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
        self._lists = {True: _lists(rows), False: _lists(np.ascontiguousarray(rows.T))}
        self._scaled: dict[tuple[bool, int], np.ndarray] = {}
        self._dense = torch.as_tensor(rows.astype(np.float32))

    def __call__(self, u: Tensor) -> Tensor:
        """Sums over neighbours of ``u`` (batch, sites, channels): (batch, sites, shells, channels).

        Differentiable; on a CPU float32, or bfloat16 under bfloat16 autocast. Channels that are
        no multiple of 16 take the matrix product.
        """
        if u.device.type == "cpu" and u.shape[2] % vectors.LANES == 0:
            half = torch.is_autocast_enabled("cpu")
            out = _NeighbourSum.apply(u, self, half)
            return out.view(len(u), self.n_sites, self.n_shells, u.shape[2])
        if self._dense.device != u.device:
            self._dense = self._dense.to(u.device)
        out = torch.matmul(self._dense.to(u.dtype), u)
        return out.view(len(u), self.n_sites, self.n_shells, u.shape[2])

    def at(self, u: Tensor, site: Tensor) -> Tensor:
        """The sums at one site of each row, (batch, shells, channels); not differentiable."""
        if u.device.type != "cpu" or u.shape[2] % vectors.LANES:
            return self(u)[torch.arange(len(u), device=u.device), site]
        out = torch.empty(len(u), self.n_shells, u.shape[2])
        pointer, index = self._for(True, u.shape[2])
        shells, channels = np.uint64(self.n_shells), np.uint64(u.shape[2])
        source, sites = _flat(u.contiguous()), np.uint64(self.n_sites)
        _gather_at(source, sites, pointer, index, site.numpy(), shells, _flat(out), channels)
        return out

    def gather(self, source: Tensor, target: Tensor, *, forward: bool) -> None:
        """Compiled sums from ``source`` into ``target``, or those of the transposed map."""
        pointer, index = self._for(forward, source.shape[2])
        sources, rows, channels = (
            np.uint64(n) for n in (source.shape[1], target.shape[1], source.shape[2])
        )
        _gather(_flat(source), sources, pointer, index, _flat(target), rows, channels)

    def _for(self, forward: bool, channels: int) -> tuple[np.ndarray, np.ndarray]:
        pointer, index = self._lists[forward]
        if (forward, channels) not in self._scaled:
            self._scaled[forward, channels] = index * np.uint64(channels)
        return pointer, self._scaled[forward, channels]


def _lists(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compressed lists of the column indices of each row, repeated by their count."""
    pointer = np.concatenate([[0], np.cumsum(rows.sum(1))]).astype(np.uint64)
    i, j = rows.nonzero()
    return pointer, np.repeat(j, rows[i, j]).astype(np.uint64)
