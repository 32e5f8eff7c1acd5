"""Sums over neighbours: the linear map that every lattice network shares.

``out[b, i, s] = sum_j A_s[i, j] u[b, j]``: on a CPU a compiled gather that keeps one configuration
in the first-level cache (a matrix product with the mostly empty ``A_s`` costs 5-20 times the
arithmetic), elsewhere a matrix product, with a sparse ``A_s`` where the full one would be large.
Under bfloat16 autocast the sums are formed in float32
and handed on in bfloat16, which halves their memory and feeds the faster matrix products.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from clease_nn.compiled import njit
from clease_nn.networks import vectors

__all__ = ["Neighbours"]

_LANES = np.uint64(vectors.LANES)
_DENSE = 2**24  # entries of the matrix up to which devices other than a CPU use the full one
_FLAGS = 64  # rows of flags summed side by side


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
    counts : array_like, shape (shells, sites, sites), or csr_array, shape (shells * sites, sites)
        How often site j is a neighbour of site i in each shell (``Lattice.relation_lists``).

    Examples
    --------
    >>> ring = Neighbours(np.array([[[0, 1, 1], [1, 0, 1], [1, 1, 0]]]))
    >>> ring(torch.tensor([[[1.0], [2.0], [4.0]]]))[0, :, 0, 0]
    tensor([6., 5., 3.])
    """

    def __init__(self, counts):
        if not isinstance(counts, csr_array):
            counts = np.asarray(counts)
            counts = csr_array(counts.reshape(-1, counts.shape[-1]))
        self.n_sites = counts.shape[1]
        self.n_shells = counts.shape[0] // self.n_sites
        by_site = np.arange(counts.shape[0]).reshape(self.n_shells, self.n_sites).T.ravel()
        self._rows = counts.astype(np.int64)[by_site]
        self._lists = {True: _lists(self._rows), False: _lists(csr_array(self._rows.T))}
        self._scaled: dict[tuple[bool, int], np.ndarray] = {}
        self._matrices: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, u: Tensor) -> Tensor:
        """Sums over neighbours of ``u`` (batch, sites, channels): (batch, sites, shells, channels).

        Differentiable; on a CPU float32, or bfloat16 under bfloat16 autocast.
        """
        if u.device.type == "cpu":
            half = torch.is_autocast_enabled("cpu")
            channels = u.shape[2]
            u = torch.nn.functional.pad(u, (0, -channels % vectors.LANES))
            out = _NeighbourSum.apply(u, self, half)
            return out.view(len(u), self.n_sites, self.n_shells, u.shape[2])[..., :channels]
        matrix = self._matrix(u.device, u.dtype)
        if matrix.layout == torch.strided:
            out = torch.matmul(matrix, u)
        else:
            columns = u.transpose(0, 1).reshape(self.n_sites, -1)
            out = (matrix @ columns).view(-1, len(u), u.shape[2]).transpose(0, 1)
        return out.reshape(len(u), self.n_sites, self.n_shells, u.shape[2])

    @property
    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Row ``site * shells + shell`` has neighbours ``index[pointer[row]:pointer[row + 1]]``."""
        return self._lists[True]

    def of_flags(self, flags: Tensor) -> Tensor:
        """How many neighbours carry a flag, (batch, sites, shells) float32; not differentiable.

        Parameters
        ----------
        flags : Tensor, shape (batch, sites)
            0 or 1, of any type.

        Examples
        --------
        >>> ring = Neighbours(np.array([[[0, 1, 1], [1, 0, 1], [1, 1, 0]]]))
        >>> ring.of_flags(torch.tensor([[True, True, False]]))[0, :, 0]
        tensor([1., 1., 2.])
        """
        batch, sites = flags.shape
        width = _FLAGS if batch > vectors.LANES else vectors.LANES
        u = torch.nn.functional.pad(flags.to(torch.float32), (0, 0, 0, -batch % width))
        u = u.view(-1, width, sites).transpose(1, 2)
        with torch.no_grad(), torch.autocast(flags.device.type, enabled=False):
            out = self(u).view(-1, sites, self.n_shells, width)
        return out.permute(0, 3, 1, 2).reshape(-1, sites, self.n_shells)[:batch]

    def _matrix(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The map as one matrix (sites * shells, sites), compressed where it is large."""
        key = (device, dtype)
        if key not in self._matrices:
            rows = self._rows
            if rows.shape[0] * rows.shape[1] <= _DENSE:
                matrix = torch.as_tensor(rows.toarray(), dtype=dtype)
            else:
                rows = rows.tocoo()
                place = torch.as_tensor(np.stack(rows.coords), dtype=torch.int64)
                values = torch.as_tensor(rows.data, dtype=dtype)
                matrix = torch.sparse_coo_tensor(
                    place, values, rows.shape, is_coalesced=True, check_invariants=False
                )
            self._matrices[key] = matrix.to(device)
        return self._matrices[key]

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


def _lists(rows: csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Compressed lists of the column indices of each row, ascending, repeated by their count."""
    rows.sort_indices()
    total = np.concatenate([[0], np.cumsum(rows.data)])
    return total[rows.indptr].astype(np.uint64), np.repeat(rows.indices, rows.data).astype(
        np.uint64
    )
