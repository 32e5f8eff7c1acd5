"""Which phase every state belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from clease_nn.thermodynamics import DensityOfStates

__all__ = ["UNDECIDED", "Phases"]

UNDECIDED = -1
"""Label of a state that belongs to no phase."""


@dataclass(frozen=True, eq=False)
class Phases:
    """Labels of the states of a density of states.

    Labels belong to configurations, not to conditions: a phase is a part of configuration space,
    and its grand potential follows from the weights of its states.

    Attributes
    ----------
    names : tuple of str
    labels : ndarray, shape (states,), int64
        Index into ``names``; -1 where undecided.
    composition : ndarray, shape (phases, species)
        Mean share of the active sites, over the conditions looked at; nan for a phase without
        states.
    degeneracy : ndarray, shape (phases,)
        How many phases of the infinite crystal a label stands for: the variants (domains) of an
        ordered structure. A phase's ln Z is that of one of them, the sum over its states over
        this number: the transition then lies where it does in the infinite crystal up to terms
        exponentially small in the size of the supercell, instead of ``kT ln(degeneracy)`` off
        (Borgs and Kotecky, J. Stat. Phys. 61, 79 (1990); Janke, Phys. Rev. B 47, 14757 (1993)).
    kinds : ndarray, shape (phases,)
        Kind of order; phases of one kind differ in composition only, so that the line on which
        they coexist can end in a critical point.
    order : ndarray, shape (states, structures)
        Long-range order of every state with respect to every structure; no column if none.
    structures : Mapping of str to ndarray, shape (sites,), int8
        The ordered structures.
    reasons : tuple of str
        How the phases were told apart, and what could not be.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> from clease_nn.lattice import Lattice
    >>> lattice = Lattice.square(3)
    >>> dos = DensityOfStates.exact(SemiGrandCanonical(ising_energy(lattice)).enumerate(lattice))
    >>> Phases.given(dos, dos.counts[:, 1] > 4, ["poor", "rich"]).composition.round(3)
    array([[0.637, 0.363],
           [0.363, 0.637]])
    """

    names: tuple[str, ...]
    labels: np.ndarray
    composition: np.ndarray
    degeneracy: np.ndarray
    kinds: np.ndarray
    order: np.ndarray
    structures: Mapping[str, np.ndarray] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    def __post_init__(self):
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(f"phases need distinct names, got {self.names}")
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or (
            labels.dtype != bool and not np.issubdtype(labels.dtype, np.integer)
        ):
            raise ValueError(
                "labels must be one whole number a state, got shape "
                f"{labels.shape} of {labels.dtype}"
            )
        labels = labels.astype(np.int64)
        if len(labels) and not (UNDECIDED <= labels.min() and labels.max() < len(self.names)):
            raise ValueError(
                f"labels must lie between -1 (undecided) and {len(self.names) - 1} for "
                f"{len(self.names)} phases, got {labels.min()} to {labels.max()}"
            )
        g = np.asarray(self.degeneracy, dtype=float)
        if g.shape != (len(self.names),) or not (np.isfinite(g).all() and (g > 0).all()):
            raise ValueError(f"one positive degeneracy for each phase is needed, got {g.tolist()}")
        object.__setattr__(self, "degeneracy", g)
        if len(self.kinds) != len(self.names):
            raise ValueError(f"{len(self.kinds)} kinds of order for {len(self.names)} phases")
        if len(self.order) != len(labels):
            raise ValueError(f"{len(self.order)} rows of order parameters, {len(labels)} labels")
        object.__setattr__(self, "labels", labels)

    @classmethod
    def given(
        cls,
        dos: DensityOfStates,
        labels,
        names: Sequence[str],
        *,
        degeneracy: Sequence[float] | None = None,
        same_order: bool = False,
    ) -> Phases:
        """Labels that somebody else has found.

        Parameters
        ----------
        dos : DensityOfStates
        labels : array_like of int, shape (states,)
            Index into ``names``, -1 where undecided.
        names : sequence of str
        degeneracy : sequence of float, optional
            Variants each phase consists of. Default: one.
        same_order : bool
            Whether the phases differ in composition only.

        Raises
        ------
        ValueError
            If there is not one label a state, or a label has no name.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(dos),):
            raise ValueError(
                f"one label for each of the {len(dos)} states is needed, got shape {labels.shape}"
            )
        names = tuple(names)
        return cls(
            names=names,
            labels=labels,
            composition=mean_compositions(dos, labels, len(names), np.ones(len(dos))),
            degeneracy=np.ones(len(names)) if degeneracy is None else np.asarray(degeneracy),
            kinds=np.zeros(len(names)) if same_order else np.arange(len(names)),
            order=np.zeros((len(dos), 0)),
            reasons=("labels were given",),
        )

    def index(self, name: str) -> int:
        """Position of a phase.

        Raises
        ------
        ValueError
            If there is no such phase.
        """
        if name not in self.names:
            raise ValueError(f"there is no phase {name!r}; there are {', '.join(self.names)}")
        return self.names.index(name)

    def mask(self, name: str) -> np.ndarray:
        """(states,) bool: the states of one phase."""
        return self.labels == self.index(name)

    def restricted(self, dos: DensityOfStates, name: str) -> DensityOfStates:
        """The density of states of one phase.

        Raises
        ------
        ValueError
            If there is no such phase, it was never sampled, or ``dos`` has other states.
        """
        return dos.restricted(self.mask(name))

    def __str__(self) -> str:
        lines = []
        for k, name in enumerate(self.names):
            x = ", ".join(f"{v:.3f}" for v in self.composition[k])
            lines.append(f"{name}: {int((self.labels == k).sum())} states, mean composition ({x})")
        return "\n".join([*lines, *self.reasons])


def mean_compositions(dos: DensityOfStates, labels, n_phases: int, weights) -> np.ndarray:
    """(phases, species) mean shares of the sites; nan for a phase without states."""
    out = np.full((n_phases, dos.lattice.n_species), np.nan)
    for k in range(n_phases):
        rows = np.flatnonzero(labels == k)
        if len(rows):
            w = weights[rows] if weights[rows].sum() > 0 else np.ones(len(rows))
            out[k] = w @ dos.counts[rows] / w.sum() / dos.lattice.n_sites
    return out
