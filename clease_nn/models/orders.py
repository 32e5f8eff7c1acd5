"""In which pass each site is drawn: one by one, or far sites together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from clease_nn.compiled import njit
from clease_nn.lattice import Lattice

__all__ = ["AbstractOrder", "Coloured", "OneByOne", "order_from_config", "random_order"]


def random_order(known: Tensor, rng: torch.Generator) -> Tensor:
    """A uniformly random order of the unknown sites, (batch, sites) int16, -1 where known."""
    key = torch.rand(known.shape, generator=rng).to(known.device)
    rank = key.masked_fill(known, 2.0).argsort(1).argsort(1)
    return torch.where(known, -1, rank).to(torch.int16)


class AbstractOrder(ABC):
    """Chooses the passes of a draw from the known sites alone, never from their species.

    Whatever it chooses, the density of a model that draws in these passes is exact.
    """

    @abstractmethod
    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        """Pass in which each site is drawn, (batch, sites) int16, -1 where known."""

    def config(self) -> dict:
        """JSON-ready description, with its ``class``."""
        return {"class": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class OneByOne(AbstractOrder):
    """Every site in a pass of its own, in a uniformly random order: as many passes as sites."""

    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        return random_order(known, rng)


@dataclass(frozen=True)
class Coloured(AbstractOrder):
    """Sites far from each other share a pass; passes grow with the number of sites known.

    The first ``first`` sites come one by one. With ``n`` sites known a pass draws up to
    ``growth * (n - first)`` more, no two of them closer than ``distance * (V / k)^(1/d)`` where
    ``k`` is their number and ``V`` the volume: about ``ln(N) / ln(1 + growth)`` passes for ``N`` sites.
    """

    growth: float = 0.2
    distance: float = 0.75
    first: int = 5

    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**31, (1,), generator=rng))
        delta = lattice.template.get_all_distances(mic=True)
        delta = delta[np.ix_(lattice.site_indices, lattice.site_indices)].astype(np.float32)
        out = _coloured(delta, known.cpu().numpy(), self.growth, self.distance, self.first, seed)
        return torch.from_numpy(out).to(known.device)


@njit
def _coloured(distances, known, growth, spacing, first, seed):  # pragma: no cover
    np.random.seed(seed)  # noqa: NPY002
    batch, n = known.shape
    out = np.full((batch, n), -1, dtype=np.int16)
    chosen = np.empty(n, dtype=np.int64)
    for b in range(batch):
        order = np.random.permutation(n)  # noqa: NPY002
        done = known[b].copy()
        count, step = done.sum(), 0
        while count < n:
            k = max(1, int(growth * (count - first)))
            limit = spacing * np.sqrt(n / k)
            m = 0
            for i in order:
                if done[i]:
                    continue
                fits = True
                for j in range(m):
                    if distances[i, chosen[j]] < limit:
                        fits = False
                        break
                if fits:
                    chosen[m] = i
                    m += 1
                    if m == k:
                        break
            for j in range(m):
                done[chosen[j]] = True
                out[b, chosen[j]] = step
            count += m
            step += 1
    return out


_ORDERS = {c.__name__: c for c in (OneByOne, Coloured)}


def order_from_config(config: dict) -> AbstractOrder:
    """Rebuild an order from its ``config()``.

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    config = dict(config)
    name = config.pop("class", None)
    if name not in _ORDERS:
        raise ValueError(
            f"order {name!r} is not known to this version of clease_nn (known: {sorted(_ORDERS)}); "
            "update clease_nn"
        )
    return _ORDERS[name](**config)
