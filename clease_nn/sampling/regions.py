"""Sets of sites to redraw together, chosen without regard to the configuration."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from ase.geometry import minkowski_reduce
from torch import Tensor

from clease_nn.lattice import Lattice

__all__ = ["SHAPES", "Regions"]

SHAPES = ("ball", "random", "plane")
"""Shapes of regions: compact, scattered, a layer of a random lattice direction."""

_ENTRIES = 2**21  # distances to periodic images computed at once: 8 MB
_WITHIN = 0.1  # angstrom; within a layer, sites near its centre come first


class Regions:
    """Random regions of a lattice, one for every row of a batch, each of its own size and shape.

    * ``"ball"``: a random site and those nearest to it, periodic images considered;
    * ``"random"``: sites scattered over the cell;
    * ``"plane"``: the layer about a random site, normal to a random one of the planes spanned by
      the supercell's vectors and their diagonals, filled outwards from that site; more layers on
      both sides once it is full.

    The choice never depends on the configuration, so it cancels in an acceptance probability.
    Sites at equal distances are taken in random order. The cost is linear in the number of sites.

    Parameters
    ----------
    lattice : Lattice
    sites : Tensor of int, shape (n,), optional
        Active sites to choose from. Default: those that may carry more than one species.

    Examples
    --------
    >>> regions = Regions(Lattice.square(4))
    >>> mask = regions.draw(torch.tensor([5, 9]), torch.tensor([0, 2]), torch.Generator())
    >>> mask.shape, mask.sum(1).tolist()
    (torch.Size([2, 16]), [5, 9])
    """

    def __init__(self, lattice: Lattice, sites: Tensor | None = None):
        self.lattice = lattice
        if sites is None:
            sites = torch.as_tensor(np.flatnonzero(lattice.allowed.sum(1) > 1))
        self.sites = sites
        self.free = torch.zeros(lattice.n_sites, dtype=torch.bool)
        self.free[sites] = True
        template = lattice.template
        pbc = np.asarray(template.pbc)
        cell = np.array(minkowski_reduce(np.array(template.cell.complete()), pbc)[0])
        fractional = lattice.positions @ np.linalg.inv(cell)
        self._periodic = torch.as_tensor(pbc)
        self._cell = torch.as_tensor(cell, dtype=torch.float32)
        self._fractional = torch.as_tensor(fractional, dtype=torch.float32)
        # in a reduced cell the nearest image lies among the first neighbours of the wrapped one
        images = np.array(list(product(*[(-1, 0, 1) if p else (0,) for p in pbc])))
        self._images = torch.as_tensor(images @ cell, dtype=torch.float32)
        # layers either run through the boundary or do not meet it
        extended = pbc | (np.ptp(fractional, axis=0) > 1e-6)
        normals = np.array([h for h in product((-1, 0, 1), repeat=3) if h > (0, 0, 0)])
        used = normals != 0
        good = ~(used & ~extended).any(1) & ~((used & pbc).any(1) & (used & ~pbc).any(1))
        normals = normals[good] if good.any() else normals[:1]
        length = np.linalg.norm(normals @ np.linalg.inv(cell).T, axis=1)
        self._normals = torch.as_tensor(normals, dtype=torch.float32)
        self._spacing = torch.as_tensor(1.0 / length, dtype=torch.float32)
        self._wraps = torch.as_tensor(((normals != 0) & pbc).any(1))

    def draw(
        self, size: Tensor, shape: Tensor, rng: torch.Generator, free: Tensor | None = None
    ) -> Tensor:
        """One region a row.

        Parameters
        ----------
        size : Tensor of int, shape (rows,)
            Sites of each region; all that may be chosen where there are fewer.
        shape : Tensor of int, shape (rows,)
            Index into :data:`SHAPES`.
        rng : torch.Generator
            On the CPU.
        free : Tensor of bool, shape (rows, sites), optional
            Sites of each row to choose from. Default: :attr:`free`.

        Returns
        -------
        Tensor of bool, shape (rows, sites)
        """
        rows, n = len(size), self.lattice.n_sites
        free = self.free.expand(rows, n) if free is None else free
        key = torch.rand((rows, n), generator=rng)
        centre = key.masked_fill(~free, -1.0).argmax(1)
        direction = torch.randint(len(self._normals), (rows,), generator=rng)
        compact = (shape != 1).nonzero()[:, 0]
        for at in compact.split(max(1, _ENTRIES // (n * len(self._images)))):
            distance = self._distance(centre[at])
            plane = shape[at] == 2
            if bool(plane.any()):
                depth = self._depth(centre[at[plane]], direction[at[plane]])
                within = distance[plane] / distance[plane].amax(1, keepdim=True).clamp(min=1e-6)
                distance[plane] = depth + _WITHIN * within
            key[at] = (1e3 * distance).round() + key[at]  # random order within 1e-3 angstrom
        order = key.masked_fill(~free, torch.inf).argsort(1)
        chosen = torch.arange(n) < size[:, None]
        return torch.zeros_like(free).scatter_(1, order, chosen) & free

    def one(self, size: int, rng: torch.Generator) -> Tensor:
        """Sites of one region of ``size`` sites, a ball or scattered with equal probability."""
        shape = torch.randint(2, (1,), generator=rng)
        return self.draw(torch.tensor([size]), shape, rng)[0].nonzero()[:, 0]

    def _distance(self, centre: Tensor) -> Tensor:
        """Distances of all sites from some, nearest images, (rows, sites), angstrom."""
        delta = self._fractional - self._fractional[centre][:, None]
        delta = torch.where(self._periodic, delta - delta.round(), delta) @ self._cell
        squares = (delta**2).sum(-1, keepdim=True) + (self._images**2).sum(1)
        return (squares + 2 * delta @ self._images.T).amin(-1).clamp(min=0.0).sqrt()

    def _depth(self, centre: Tensor, direction: Tensor) -> Tensor:
        """Distances of all sites from planes through some, (rows, sites), angstrom."""
        phase = self._fractional @ self._normals[direction].T  # (sites, rows)
        delta = (phase - phase[centre, torch.arange(len(centre))]).T
        wraps = self._wraps[direction][:, None]
        delta = torch.where(wraps, delta - delta.round(), delta)
        return delta.abs() * self._spacing[direction][:, None]
