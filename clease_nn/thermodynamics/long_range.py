"""Long-range order: how much of a given ordered structure a configuration shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.lattice import Lattice
from clease_nn.symmetry import structure_variants

__all__ = ["OrderParameter", "long_range_order", "order_parameter"]

_CHUNK = 4096  # rows compared with the variants together


@dataclass(frozen=True, eq=False)
class OrderParameter:
    """Order of every configuration, and which variant of the structure it is closest to.

    Attributes
    ----------
    value : ndarray, shape (rows,)
        1 for the perfect structure in any variant.
    variant : ndarray, shape (rows,), int64
        Index into ``variants``: the domain a configuration belongs to.
    variants : ndarray, shape (variants, sites), int8
        All structures that symmetry makes of the given one; the given one is first.
    """

    value: np.ndarray
    variant: np.ndarray
    variants: np.ndarray


def order_parameter(occupations, lattice: Lattice, structure) -> OrderParameter:
    """Overlap of configurations with an ordered structure, the best over its variants.

    With ``d(x)_ia = [x_i = a] - (share of a on the sublattice of i)``,
    ``eta = max_v <d(x), d(s_v)> / <d(s), d(s)>`` over the images s_v of the structure s under
    translations, rotations and reflections of the crystal, also those that the shape of the
    supercell lacks (:func:`~clease_nn.symmetry.structure_variants`). It is 1 for the perfect
    structure, of the order of ``sites**-0.5`` in a disordered solution (the maximum makes it
    positive), and 0 for a uniform configuration. For CuAu (L1_0) it is the order parameter of
    Bragg and Williams.

    Parameters
    ----------
    occupations : array_like, shape (rows, sites)
    lattice : Lattice
    structure : array_like, shape (sites,)
        Occupations of the ordered structure in the same supercell; ``lattice.occupations(atoms)``
        makes them from an Atoms object.

    Raises
    ------
    ValueError
        If shapes do not fit, a site is unknown or carries a species it may not carry, or the
        structure has no order (every sublattice carries one species).

    References
    ----------
    W. L. Bragg and E. J. Williams, Proc. R. Soc. A 145, 699 (1934).

    Examples
    --------
    >>> lattice = Lattice.square(4)
    >>> checkerboard = np.indices((4, 4)).sum(0).ravel() % 2
    >>> found = order_parameter([checkerboard, 1 - checkerboard, [1] * 16], lattice, checkerboard)
    >>> found.value.tolist(), found.variant.tolist(), len(found.variants)
    ([1.0, 1.0, 0.0], [0, 1, 0], 2)
    """
    structure = checked(np.asarray(structure)[None], lattice, "the structure")[0]
    rows = occupations.cpu().numpy() if torch.is_tensor(occupations) else np.asarray(occupations)
    rows = checked(rows, lattice, "occupations")
    variants = structure_variants(lattice, structure)
    deviations = contrast(variants, lattice)
    norm = float((deviations[0] ** 2).sum())
    if norm < 1e-12:
        raise ValueError(
            "the structure has no order: every sublattice carries one species only, like the pure "
            "phases; tell such phases by their composition"
        )
    # <d(x), d(s)> = <[x_i = a], d(s)>: the rows of d(s) sum to zero on every sublattice
    flat = torch.as_tensor(deviations.reshape(len(variants), -1) / norm)
    value, variant = np.empty(len(rows)), np.empty(len(rows), dtype=np.int64)
    species = torch.arange(lattice.n_species)
    for k in range(0, len(rows), _CHUNK):
        x = torch.as_tensor(rows[k : k + _CHUNK])
        one = (x[:, :, None] == species).to(torch.float64).reshape(len(x), -1)
        best, which = (one @ flat.T).round(decimals=12).max(1)
        value[k : k + _CHUNK], variant[k : k + _CHUNK] = best, which
    return OrderParameter(value + 0.0, variant, variants)


def long_range_order(occupations, lattice: Lattice, structure) -> np.ndarray:
    """Long-range-order parameter of every configuration, shape (rows,).

    The ``value`` of :func:`order_parameter`. Its averages are read like those of any observable:
    ``dos.mean(values, conditions)`` or ``thermodynamics.mean(c, values)``.

    Parameters
    ----------
    occupations : array_like, shape (rows, sites)
    lattice : Lattice
    structure : array_like, shape (sites,)

    Raises
    ------
    ValueError
        As :func:`order_parameter`.
    """
    return order_parameter(occupations, lattice, structure).value


def contrast(x: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Indicator of every species minus its share on the sublattice, (rows, sites, species)."""
    one = (x[:, :, None] == np.arange(lattice.n_species)).astype(float)
    for s in np.unique(lattice.sublattices):
        inside = lattice.sublattices == s
        one[:, inside] -= one[:, inside].mean(1, keepdims=True)
    return one


def checked(x: np.ndarray, lattice: Lattice, what: str) -> np.ndarray:
    """int8 rows (rows, sites) that the lattice allows; otherwise ValueError names ``what``."""
    if x.ndim != 2 or x.shape[1] != lattice.n_sites:
        raise ValueError(
            f"{what} must have {lattice.n_sites} sites a row, got shape {x.shape[-2:]}"
        )
    if not np.issubdtype(x.dtype, np.integer):
        raise ValueError(f"{what} must be integers (indices into {lattice.species}), got {x.dtype}")
    if len(x) == 0:
        raise ValueError(f"{what}: there are no configurations")
    inside = (x >= 0) & (x < lattice.n_species)
    fits = inside & lattice.allowed[np.arange(lattice.n_sites), np.where(inside, x, 0)]
    if not fits.all():
        row, site = np.argwhere(~fits)[0]
        may = [s for s, ok in zip(lattice.species, lattice.allowed[site], strict=True) if ok]
        raise ValueError(
            f"{what}: site {site} of row {row} carries {int(x[row, site])}, but may carry only "
            f"{may} (indices into {lattice.species}; -1 is unknown)"
        )
    return x.astype(np.int8)
