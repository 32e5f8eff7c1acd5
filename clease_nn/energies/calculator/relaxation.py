"""Relaxation of a structure that must stay on its lattice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import get_distances
from ase.optimize import BFGS

__all__ = ["Relaxation", "collapse"]


@dataclass(frozen=True)
class Relaxation:
    """How structures are relaxed before their energy is taken.

    Parameters
    ----------
    optimizer : callable
        ASE optimizer class, or a ``functools.partial`` of one; called with ``logfile=None``.
    filter : callable, optional
        For relaxed cells: ``ase.filters.FrechetCellFilter`` or a partial of a filter. Default:
        positions alone.
    fmax : float
        Largest force on an atom (and the filter's for the cell), eV/angstrom.
    max_steps : int
        Optimizer steps after which a relaxation counts as not converged.
    max_strain : float
        Largest change of the cell's shape: norm of the logarithmic strain without its isotropic
        part. Half of the way from fcc to bcc (or back) is 0.14; the tetragonal distortion of CuAu
        is 0.06.

    Raises
    ------
    ValueError
        If a number is not positive.

    Examples
    --------
    >>> from ase.filters import FrechetCellFilter
    >>> Relaxation(filter=FrechetCellFilter, fmax=0.01).max_steps
    200
    """

    optimizer: Callable = BFGS
    filter: Callable | None = None
    fmax: float = 0.02
    max_steps: int = 200
    max_strain: float = 0.14

    def __post_init__(self):
        for name in ("fmax", "max_steps", "max_strain"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def run(self, atoms: Atoms) -> tuple[bool, int]:
        """Relax in place; whether the forces converged, and the number of steps."""
        target = atoms if self.filter is None else self.filter(atoms)
        optimizer = self.optimizer(target, logfile=None)
        converged = optimizer.run(fmax=self.fmax, steps=self.max_steps)
        return bool(converged), int(optimizer.nsteps)


def collapse(
    template: Atoms, occupied: np.ndarray, relaxed: Atoms, max_strain: float
) -> str | None:
    """In words, why a relaxed structure no longer belongs to its sites; None if it does.

    The strain of the cell and the rigid shift of all atoms (the median displacement, which a
    single runaway does not drag along) are taken out. Then every atom must be nearer to its own
    site than to any other, vacant ones included.

    Parameters
    ----------
    template : Atoms
        All sites at their ideal positions.
    occupied : ndarray of int
        Index in ``template`` of every atom of ``relaxed``.
    relaxed : Atoms
    max_strain : float
    """
    cell, new = np.array(template.cell.complete()), np.array(relaxed.cell.complete())
    gradient = np.linalg.solve(cell, new)
    stretch = 0.5 * np.log(np.linalg.eigvalsh(gradient @ gradient.T))
    strain = float(np.linalg.norm(stretch - stretch.mean()))
    if strain > max_strain:
        return (
            f"the cell changed its shape by a strain of {strain:.2f} (limit {max_strain:g}); the "
            "structure has left its lattice"
        )
    ideal = template.positions
    back = relaxed.positions @ np.linalg.inv(gradient)
    back = back - np.median(back - ideal[occupied], axis=0)
    _, distances = get_distances(back, ideal, cell=cell, pbc=template.pbc)
    own = distances[np.arange(len(back)), occupied]
    gap = own - distances.min(1)
    k = int(gap.argmax())
    if gap[k] <= 1e-6:
        return None
    return (
        f"{relaxed.symbols[k]} of site {int(occupied[k])} ended {own[k]:.2f} angstrom from there "
        f"and {distances[k].min():.2f} from site {int(distances[k].argmin())}; the energy would "
        "belong to another configuration"
    )
