"""In which pass each site is drawn: one by one, or far sites together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from clease_nn.compiled import njit
from clease_nn.distances import neighbour, surroundings
from clease_nn.lattice import Lattice
from clease_nn.named import named_class

__all__ = ["AbstractOrder", "BySize", "Coloured", "OneByOne", "order_from_config", "random_order"]

_FEW = 128  # unknown sites that are drawn one by one where nothing else is asked for
_MOST = torch.iinfo(torch.int16).max  # number of the last pass
_TOLERANCE = 5e-4  # angstrom: half the last digit of tabulated distances


def random_order(known: Tensor, rng: torch.Generator) -> Tensor:
    """A uniformly random order of the unknown sites, (batch, sites) int16, -1 where known.

    Raises
    ------
    ValueError
        If there are more sites than passes can be numbered.
    """
    if known.shape[1] > _MOST + 1:
        raise ValueError(
            f"passes are numbered up to {_MOST}, too few to draw {known.shape[1]} sites one by "
            "one; use Coloured()"
        )
    key = torch.rand(known.shape, generator=rng).to(known.device)
    rank = key.masked_fill(known, 2.0).argsort(1).argsort(1)
    return torch.where(known, -1, rank).to(torch.int16)


class AbstractOrder(ABC):
    """Chooses the passes of a draw from the known sites alone, never from their species.

    Whatever it chooses, the density of a model that draws in these passes is exact.
    """

    @abstractmethod
    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        """Pass in which each site is drawn, (batch, sites) int16, -1 where known.

        Parameters
        ----------
        known : Tensor, shape (batch, sites), bool
        lattice : Lattice
        rng : torch.Generator
            On the CPU; its state fixes the result.
        """

    @abstractmethod
    def config(self) -> dict:
        """JSON-ready description, with its ``class``."""


@dataclass(frozen=True)
class OneByOne(AbstractOrder):
    """Every site in a pass of its own, in a uniformly random order: as many passes as sites.

    Examples
    --------
    >>> known = torch.tensor([[False, True, False, False]])
    >>> OneByOne().steps(known, Lattice.square(2), torch.Generator().manual_seed(0))
    tensor([[ 2, -1,  0,  1]], dtype=torch.int16)
    """

    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        """Pass in which each site is drawn; see :meth:`AbstractOrder.steps`."""
        return random_order(known, rng)

    def config(self) -> dict:
        """JSON-ready description, with its ``class``."""
        return {"class": type(self).__name__}


@dataclass(frozen=True)
class Coloured(AbstractOrder):
    r"""Sites far from each other, for what is known around them, share a pass.

    Let :math:`r_i` be the distance from an unknown site to its ``neighbours``-th nearest known
    one (periodic images: the nearest). Sites i and j may share a pass only if

    .. math:: d_{ij} \ge \mathtt{distance} \cdot \max(r_i, r_j)

    A pass takes the unknown sites in a random order, each that is far enough from those already
    taken, until none is left that could be. While fewer than ``neighbours`` sites are known,
    they come one by one. What is known within :math:`r_i` screens a site from the others of its
    pass, at the beginning on the scale of the cell, at the end on that of the lattice: each pass
    draws about the same fraction of what is known, so that N unknown sites take some
    :math:`\ln N` passes in any dimension. Around known sites, as in a block that is drawn anew,
    it begins with the small distances.

    Parameters
    ----------
    distance : float
        Larger: less likelihood is lost, more passes (about as ``distance`` to the power of the
        dimension, in large cells).
    neighbours : int
        Known sites that screen a site from the rest.

    Raises
    ------
    ValueError
        If ``distance`` is negative or not finite, or ``neighbours`` is not positive.

    Examples
    --------
    >>> lattice = Lattice.square(20)
    >>> known = torch.zeros(1, 400, dtype=torch.bool)
    >>> steps = Coloured().steps(known, lattice, torch.Generator().manual_seed(0))
    >>> int(steps.max()) + 1 < 80  # passes
    True
    """

    distance: float = 2.0
    neighbours: int = 5

    def __post_init__(self):
        if not 0 <= self.distance < float("inf"):
            raise ValueError(f"distance must be a number of 0 or more, got {self.distance}")
        if self.neighbours < 1 or self.neighbours != int(self.neighbours):
            raise ValueError(f"neighbours must be a positive integer, got {self.neighbours}")

    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        """Pass in which each site is drawn; see :meth:`AbstractOrder.steps`."""
        seed = torch.randint(2**62, (len(known),), generator=rng).numpy().astype(np.uint64)
        out = np.full(tuple(known.shape), -1, dtype=np.int32)
        _coloured(
            surroundings(lattice),
            known.cpu().numpy(),
            float(self.distance),
            int(self.neighbours),
            seed,
            out,
        )
        if out.max(initial=0) > _MOST:
            raise ValueError(
                f"{out.max() + 1} passes, more than can be numbered ({_MOST + 1}); take a smaller "
                f"distance than {self.distance}"
            )
        return torch.from_numpy(out.astype(np.int16)).to(known.device)

    def config(self) -> dict:
        """JSON-ready description, with its ``class``."""
        return {"class": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class BySize(AbstractOrder):
    """One by one where few sites are unknown, otherwise far sites together: the default.

    Parameters
    ----------
    few : int
        Rows with at most so many unknown sites are drawn one by one.
    many : AbstractOrder
        How the others are.

    Raises
    ------
    ValueError
        If ``few`` is negative.

    Examples
    --------
    >>> known = torch.zeros(1, 400, dtype=torch.bool)
    >>> rng = torch.Generator().manual_seed(0)
    >>> [int(BySize(few).steps(known, Lattice.square(20), rng).max()) < 80 for few in (399, 400)]
    [True, False]
    """

    few: int = _FEW
    many: AbstractOrder = Coloured()

    def __post_init__(self):
        if self.few < 0:
            raise ValueError(f"few must be a number of sites, 0 or more, got {self.few}")

    def steps(self, known: Tensor, lattice: Lattice, rng: torch.Generator) -> Tensor:
        """Pass in which each site is drawn; see :meth:`AbstractOrder.steps`."""
        many = (~known).sum(1) > self.few
        if not bool(many.any()):
            return random_order(known, rng)
        out = torch.empty(known.shape, dtype=torch.int16, device=known.device)
        out[many] = self.many.steps(known[many], lattice, rng)
        if not bool(many.all()):
            out[~many] = random_order(known[~many], rng)
        return out

    def config(self) -> dict:
        """JSON-ready description, with its ``class``."""
        return {"class": type(self).__name__, "few": self.few, "many": self.many.config()}


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFT = (np.uint64(30), np.uint64(27), np.uint64(31))


@njit
def _random_below(state, n):  # pragma: no cover
    """A random integer below ``n`` (SplitMix64; Steele, Lea, Flood, OOPSLA 2014)."""
    state[0] += _GOLDEN
    z = state[0]
    z = (z ^ (z >> _SHIFT[0])) * _MIX[0]
    z = (z ^ (z >> _SHIFT[1])) * _MIX[1]
    return (z ^ (z >> _SHIFT[2])) % np.uint64(n)


@njit
def _coloured(around, known, distance, neighbours, seeds, out):  # pragma: no cover
    """Passes of unknown sites into ``out``; known ones keep what is there."""
    batch, n = known.shape
    left = np.empty(n, dtype=np.int64)  # unknown sites in random order
    near = np.empty(n, dtype=np.int64)  # sites too near to one, and itself
    drawn = np.empty(n, dtype=np.int64)  # first pass after which a site is known
    barred = np.empty(n, dtype=np.int64)  # last pass that has a site, or one too near to it
    state = np.empty(1, dtype=np.uint64)
    never = n + 1
    for b in range(batch):
        state[0] = seeds[b]
        m = 0
        for i in range(n):
            barred[i] = -1
            drawn[i] = 0
            if not known[b, i]:
                drawn[i] = never
                place = np.int64(_random_below(state, m + 1))
                left[m] = left[place]
                left[place] = i
                m += 1
        step = 0
        while m > 0:
            alone = n - m < neighbours
            kept = 0
            taken = 0
            for at in range(m):
                i = left[at]
                if (alone and taken > 0) or barred[i] == step:
                    left[kept] = i
                    kept += 1
                    continue
                kind = around.kind[i]
                limit, closest, reach = np.inf, np.inf, 0
                if not alone:
                    seen = 0
                    while reach < n and around.distance[kind, reach] < limit:
                        j = neighbour(around, i, reach)
                        if drawn[j] <= step:
                            seen += 1
                            if seen == neighbours:
                                limit = distance * around.distance[kind, reach] - _TOLERANCE
                        elif drawn[j] == step + 1 and closest == np.inf:
                            closest = around.distance[kind, reach]
                            if distance > 1.0:  # r is no less: too near already
                                break
                        near[reach] = j
                        reach += 1
                free = closest >= limit or closest == np.inf
                if free:
                    drawn[i] = step + 1
                    out[b, i] = step
                    taken += 1
                    for k in range(reach):
                        if around.distance[kind, k] >= limit:
                            break
                        barred[near[k]] = step
                else:
                    left[kept] = i
                    kept += 1
            m = kept
            step += 1


_ORDERS = (BySize, Coloured, OneByOne)


def order_from_config(config: dict) -> AbstractOrder:
    """Rebuild an order from its ``config()``.

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    cls, arguments = named_class(config, _ORDERS, "order")
    if "many" in arguments:
        arguments["many"] = order_from_config(arguments["many"])
    return cls(**arguments)
