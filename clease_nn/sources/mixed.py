"""Batches of several cells in turn: small ones often, large ones rarely."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.objectives import CompleteBatch, MaskedBatch
from clease_nn.sources.abstract import AbstractSource
from clease_nn.sources.tempering import ParallelTemperingSource

__all__ = ["MixedSource"]


class MixedSource(AbstractSource):
    """Takes each batch from one of several sources, in turn, according to their shares.

    One set of weights then serves a family of supercells. Shares are of the batches, kept to
    within one batch at any time. The asked number of rows is that of the largest cell; a smaller
    one gives more, so that rows times sites, and with them the cost of a step, stay the same.

    The largest cell is the one that is validated: it gives :meth:`chain_configurations`, and is
    the ``lattice`` to hand to ``fit``.

    Parameters
    ----------
    parts : sequence of (AbstractSource, float)
        Sources with a ``lattice``, and the shares of the batches that they give.

    Attributes
    ----------
    sources : tuple of AbstractSource
    shares : ndarray
        Normalised to one.
    lattice : Lattice
        The largest; the last of them where several are.

    Raises
    ------
    TypeError
        If a source does not say which lattice it is of.
    ValueError
        If there are no parts, a share is not positive and finite, one source is given twice, or
        the cells have other species.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> small, large = Lattice.square(2), Lattice.square(4)
    >>> box = ConditionRange((20000, 60000), [-0.5], [0.5], [[-1.0, 1.0]])
    >>> systems = [(SemiGrandCanonical(ising_energy(cell)), cell) for cell in (small, large)]
    >>> source = MixedSource.tempering(systems, box, [3, 1], burn_in=1)
    >>> model = AnyOrderARM(LatticeConvolution(small, box, n_shells=1))
    >>> [tuple(source.batch(16, model).partial.occupations.shape) for _ in range(4)]
    [(64, 4), (64, 4), (16, 16), (64, 4)]
    """

    def __init__(self, parts: Sequence[tuple[AbstractSource, float]]):
        if not parts:
            raise ValueError("a mixed source needs at least one source, got none")
        self.sources = tuple(source for source, _ in parts)
        shares = [float(share) for _, share in parts]
        for source, share in zip(self.sources, shares, strict=True):
            if not isinstance(getattr(source, "lattice", None), Lattice):
                raise TypeError(
                    f"{type(source).__name__} has no `lattice`; a mixed source needs to know how "
                    "many sites its rows have"
                )
            if not 0 < share < math.inf:
                raise ValueError(
                    f"the share of a source must be positive and finite, got {share}; leave a "
                    "source out instead of giving it none"
                )
        if len({id(source) for source in self.sources}) < len(self.sources):
            raise ValueError("a source is given twice; give it once, with the sum of its shares")
        cells = [source.lattice for source in self.sources]
        for cell in cells[1:]:
            if cell.species != cells[0].species:
                raise ValueError(
                    f"cells of one model must have the same species in the same order, got "
                    f"{cells[0].species} and {cell.species}"
                )
        self.shares = np.array(shares) / sum(shares)
        self._sites = [cell.n_sites for cell in cells]
        self._validated = max(range(len(cells)), key=lambda k: (self._sites[k], k))
        self._taken = [0] * len(cells)

    @classmethod
    def tempering(
        cls,
        systems: Sequence[tuple[SemiGrandCanonical, Lattice]],
        box: ConditionRange,
        shares: Sequence[float],
        seed: int | np.random.SeedSequence = 0,
        **options,
    ) -> MixedSource:
        """A :class:`~clease_nn.sources.ParallelTemperingSource` of each cell.

        Parameters
        ----------
        systems : sequence of (SemiGrandCanonical, Lattice)
            Cells with their energies.
        box : ConditionRange
            The same for all.
        shares : sequence of float
            Of the batches, one a cell.
        seed : int or numpy.random.SeedSequence
            Each source gets one of its own from it.
        options
            Further arguments of every source, such as ``burn_in``.

        Raises
        ------
        ValueError
            If there are not as many shares as cells.
        """
        if len(shares) != len(systems):
            raise ValueError(f"{len(systems)} cells need as many shares, got {len(shares)}")
        sequence = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        return cls(
            [
                (ParallelTemperingSource(ensemble, lattice, box, seed=own, **options), share)
                for (ensemble, lattice), share, own in zip(
                    systems, shares, sequence.spawn(len(systems)), strict=True
                )
            ]
        )

    @property
    def lattice(self) -> Lattice:
        """The largest cell."""
        return self.sources[self._validated].lattice

    def rows(self, size: int) -> list[int]:
        """Rows of a batch of each source where the largest cell has ``size``."""
        return [max(1, round(size * max(self._sites) / sites)) for sites in self._sites]

    def batch(self, size: int, model: AbstractOccupationModel) -> MaskedBatch | CompleteBatch:
        """The next batch of the source that is furthest behind its share."""
        behind = self.shares * (sum(self._taken) + 1) - self._taken
        k = int(np.argmax(behind))
        batch = self.sources[k].batch(self.rows(size)[k], model)
        self._taken[k] += 1
        return batch

    def warm_up(
        self, size: int, model: AbstractOccupationModel
    ) -> Iterator[MaskedBatch | CompleteBatch]:
        """A batch of every source."""
        for source, rows in zip(self.sources, self.rows(size), strict=True):
            yield from source.warm_up(rows, model)

    def chain_configurations(self, n_conditions: int, n_each: int) -> Configurations | None:
        """Those of the largest cell."""
        return self.sources[self._validated].chain_configurations(n_conditions, n_each)

    def focus(self, conditions: Conditions, gap: np.ndarray) -> None:
        """Hand it on to every source: where one cell is hard to learn, the others are."""
        for source in self.sources:
            source.focus(conditions, gap)

    @property
    def energy_evaluations(self) -> int:
        """Energies evaluated by all of them."""
        return sum(source.energy_evaluations for source in self.sources)

    def state_dict(self) -> dict:
        """States of all sources, and how often each was taken."""
        return {
            "sources": [source.state_dict() for source in self.sources],
            "taken": list(self._taken),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where :meth:`state_dict` was taken.

        Raises
        ------
        ValueError
            If it is the state of another number of sources.
        """
        if len(state["sources"]) != len(self.sources):
            raise ValueError(
                f"the state is of {len(state['sources'])} sources, there are {len(self.sources)}"
            )
        for source, own in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(own)
        self._taken = [int(n) for n in state["taken"]]
