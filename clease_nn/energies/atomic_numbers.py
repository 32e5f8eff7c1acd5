"""Occupations as atomic numbers: what calculators and learned energies are given."""

from __future__ import annotations

import numpy as np
import torch
from ase.data import atomic_numbers as number_of

from clease_nn.lattice import Lattice

__all__ = ["atomic_numbers", "complete_occupations", "from_atomic_numbers"]


def complete_occupations(lattice: Lattice, occupations) -> np.ndarray:
    """Occupations as int8 (batch, sites) in host memory, every site known and allowed.

    Raises
    ------
    ValueError
        If the shape is wrong, or a site is unknown, out of range or carries a species that it
        may not carry; the message names row, site and species.
    """
    x = torch.as_tensor(occupations).detach().cpu().numpy()
    if x.ndim != 2 or x.shape[1] != lattice.n_sites:
        raise ValueError(f"occupations must have shape (batch, {lattice.n_sites}), got {x.shape}")
    if x.dtype.kind not in "iu":
        raise ValueError(f"occupations must be integers, got {x.dtype}")
    inside = (x >= 0) & (x < lattice.n_species)
    good = inside & lattice.allowed[np.arange(lattice.n_sites), np.where(inside, x, 0)]
    if not good.all():
        row, site = np.argwhere(~good)[0]
        value = int(x[row, site])
        what = lattice.species[value] if 0 <= value < lattice.n_species else f"species {value}"
        may = [s for s, ok in zip(lattice.species, lattice.allowed[site], strict=True) if ok]
        raise ValueError(
            f"site {site} of configuration {row} carries {what}, but may carry only {may}; "
            "energies need complete configurations"
        )
    return np.ascontiguousarray(x, dtype=np.int8)


def atomic_numbers(lattice: Lattice, occupations: np.ndarray) -> np.ndarray:
    """Atomic numbers of all atoms of the template, (batch, atoms), int64; vacancies read 0.

    Raises
    ------
    ValueError
        If a species is no chemical symbol.

    Examples
    --------
    >>> lattice = Lattice.square(2, 1, species=("Cu", "X"))
    >>> atomic_numbers(lattice, np.array([[0, 1]]))
    array([[29,  0]])
    """
    unknown = [s for s in lattice.species if s not in number_of]
    if unknown:
        raise ValueError(f"{unknown} are no chemical symbols; calculators need elements or 'X'")
    of_species = np.array([number_of[s] for s in lattice.species], dtype=np.int64)
    out = np.tile(lattice.template.numbers.astype(np.int64), (len(occupations), 1))
    out[:, lattice.site_indices] = of_species[occupations]
    return out


def from_atomic_numbers(lattice: Lattice, numbers: np.ndarray) -> np.ndarray:
    """Occupations (batch, sites), int8, from their atomic numbers (batch, sites).

    Elements that are no species of the lattice read -1; what a site may carry is not looked at.

    Examples
    --------
    >>> lattice = Lattice.square(2, 1, species=("Cu", "X"))
    >>> from_atomic_numbers(lattice, np.array([[29, 0], [29, 79]]))
    array([[ 0,  1],
           [ 0, -1]], dtype=int8)
    """
    index = np.full(max(number_of.values()) + 1, -1, dtype=np.int8)
    index[[number_of[s] for s in lattice.species]] = np.arange(lattice.n_species)
    return index[np.asarray(numbers)]
