"""Ising and Potts models on any lattice, with exact partition functions of the square lattice.

An Ising model of coupling J has energy ``-J sum_bonds s s'`` with s = -1 for species 0 and +1
for species 1. In the conditions of :func:`ising_conditions` its Boltzmann weight is
``exp[(J sum_bonds s s' + field * sum s) / kT]``.

References
----------
H. A. Kramers and G. H. Wannier, Phys. Rev. 60, 252 (1941): the transfer matrix.
B. Kaufman, Phys. Rev. 76, 1232 (1949): finite periodic lattices without a field.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array, triu

from clease_nn.conditions import Conditions
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.lattice import Lattice

__all__ = [
    "ising_conditions",
    "ising_energy",
    "ising_log_z",
    "kaufman_log_z",
    "potts_energy",
]

_MAX_WIDTH = 12  # the transfer matrix has 2**width rows


def ising_energy(lattice: Lattice, coupling: float = 1.0) -> ClusterExpansionEnergy:
    """Nearest-neighbour Ising model, E = -coupling * sum_bonds s s'.

    Every bond counts once; in a cell so small that a neighbour is met through several periodic
    images, each image is a bond (on the 2 x 2 square lattice every pair has two).

    Parameters
    ----------
    lattice : Lattice
        Two species; the bonds are the pairs of active sites at the smallest distance.
    coupling : float
        J in eV, positive for a ferromagnet.

    Raises
    ------
    ValueError
        If the lattice does not have two species or the coupling is not finite.

    Examples
    --------
    >>> lattice = Lattice.square(3)
    >>> float(ising_energy(lattice)(lattice, torch.zeros((1, 9), dtype=torch.int8)))
    -18.0
    """
    if lattice.n_species != 2:
        raise ValueError(
            f"an Ising model has 2 species, the lattice {lattice.n_species} {lattice.species}; "
            "use potts_energy"
        )
    _require_finite("coupling", coupling)
    terms = [(-coupling * n, [(i, 0), (j, 0)]) for n, i, j in _bonds(lattice)]
    return _energy(lattice, [[-1.0, 1.0]], terms, {"model": "ising", "coupling": float(coupling)})


def potts_energy(lattice: Lattice, coupling: float = 1.0) -> ClusterExpansionEnergy:
    """Nearest-neighbour Potts model, E = -coupling * (number of bonds between equal species).

    Parameters
    ----------
    lattice : Lattice
        Bonds as for :func:`ising_energy`.
    coupling : float
        J in eV.

    Raises
    ------
    ValueError
        If the coupling is not finite.

    Examples
    --------
    >>> lattice = Lattice.square(3, species=("Cu", "Au", "Ag"))
    >>> float(potts_energy(lattice)(lattice, torch.full((1, 9), 2, dtype=torch.int8)))
    -18.0
    """
    _require_finite("coupling", coupling)
    kinds = range(lattice.n_species)
    terms = [(-coupling * n, [(i, a), (j, a)]) for n, i, j in _bonds(lattice) for a in kinds]
    return _energy(
        lattice,
        np.eye(lattice.n_species),
        terms,
        {"model": "potts", "coupling": float(coupling)},
    )


def ising_conditions(kT, field) -> Conditions:
    """Conditions of Ising models: weight ``exp[(J sum_bonds s s' + field * sum s) / kT]``.

    Parameters
    ----------
    kT, field : float or array_like, shape (batch,)
        Thermal energy and field in eV; a single number serves the whole batch.

    Examples
    --------
    >>> ising_conditions([1.5, 2.0], 0.1).mu
    tensor([[-0.1000,  0.1000],
            [-0.1000,  0.1000]], dtype=torch.float64)
    """
    kT, field = np.broadcast_arrays(
        np.atleast_1d(np.asarray(kT, dtype=float)), np.atleast_1d(np.asarray(field, dtype=float))
    )
    return Conditions.from_kT(torch.tensor(kT), torch.tensor(np.stack([-field, field], 1)))


def ising_log_z(nx: int, ny: int, kT: float, field: float = 0.0, coupling: float = 1.0) -> float:
    """Exact ln Z of the periodic nx x ny square lattice in a field.

    ln sum_k lambda_k**n over the eigenvalues of the symmetric transfer matrix
    D^(1/2) V D^(1/2) of one row (D: bonds and field inside the row, V: bonds between rows).

    Parameters
    ----------
    nx, ny : int
        Sites along the two directions; the smaller one is at most 12.
    kT, field, coupling : float
        eV.

    Raises
    ------
    ValueError
        If kT is not positive, a number is not finite, or the lattice is too wide.

    Examples
    --------
    >>> round(ising_log_z(1, 1, kT=2.0, field=0.5), 6)  # two self-bonds, ln(2 cosh(h/kT)) + 2/kT
    1.724077
    """
    width, length = sorted((int(nx), int(ny)))
    _check_size(width, length, kT)
    _require_finite("field", field)
    _require_finite("coupling", coupling)
    if width > _MAX_WIDTH:
        raise ValueError(
            f"the transfer matrix handles widths up to {_MAX_WIDTH}, got {nx} x {ny}; without a "
            "field use kaufman_log_z"
        )
    states = np.arange(2**width)
    spins = 2.0 * ((states[:, None] >> np.arange(width)) & 1) - 1.0
    row = coupling * (spins * np.roll(spins, 1, axis=1)).sum(1) + field * spins.sum(1)
    between = coupling * spins @ spins.T
    exponent = (0.5 * (row[:, None] + row[None, :]) + between) / kT
    shift = exponent.max()
    eigenvalues = np.linalg.eigvalsh(np.exp(exponent - shift))
    largest = np.abs(eigenvalues).max()
    total = ((eigenvalues / largest) ** length).sum()
    return float(length * (shift + np.log(largest)) + np.log(total))


def kaufman_log_z(nx: int, ny: int, kT: float, coupling: float = 1.0) -> float:
    """Exact ln Z of the periodic nx x ny square lattice without a field (Kaufman 1949).

    Parameters
    ----------
    nx, ny : int
        Sites along the two directions, any size.
    kT, coupling : float
        eV, both positive.

    Raises
    ------
    ValueError
        If kT or the coupling is not positive and finite.

    Examples
    --------
    >>> abs(kaufman_log_z(4, 6, 2.2) - ising_log_z(4, 6, 2.2)) < 1e-10
    True
    """
    n, m = int(nx), int(ny)
    _check_size(n, m, kT)
    if not (np.isfinite(coupling) and coupling > 0):
        raise ValueError(f"Kaufman's formula needs a positive coupling, got {coupling} eV")
    k = coupling / kT
    levels = np.arange(2 * n)
    c = np.cosh(2 * k) / np.tanh(2 * k) - np.cos(np.pi * levels / n)
    gamma = np.arccosh(np.maximum(c, 1.0))
    gamma[0] = 2 * k + np.log(np.tanh(k))  # signed: negative above the critical temperature
    # ln of 2 cosh(m g / 2) and of |2 sinh(m g / 2)|, without overflow
    half = 0.5 * m * np.abs(gamma)
    log_cosh = half + np.log1p(np.exp(-2 * half))
    with np.errstate(divide="ignore"):
        log_sinh = half + np.log(-np.expm1(-2 * half))
    odd, even = levels % 2 == 1, levels % 2 == 0
    parts = [log_cosh[odd].sum(), log_sinh[odd].sum(), log_cosh[even].sum(), log_sinh[even].sum()]
    signs = np.array([1.0, 1.0, 1.0, np.sign(gamma[0])])
    top = max(parts)
    total = (signs * np.exp(np.array(parts) - top)).sum()
    return float(0.5 * n * m * np.log(2 * np.sinh(2 * k)) - np.log(2.0) + top + np.log(total))


def _bonds(lattice: Lattice) -> list[tuple[float, int, int]]:
    """(number of bonds, site, site) of all nearest-neighbour pairs, periodic images counted."""
    keys = lattice.pair_shells(1)
    if not keys:
        return []
    nearest = min(distance for _, _, distance in keys)
    keys = [key for key in keys if abs(key[2] - nearest) < 3e-3]
    count = lattice.relation_lists(keys).tocoo()
    n = lattice.n_sites
    pairs = coo_array((count.data, (count.row % n, count.col)), shape=(n, n)).tocsr()
    pairs = triu(pairs, format="coo")
    order = np.lexsort((pairs.col, pairs.row))
    # a site's own image appears twice among its neighbours, once for each end of the bond
    return [
        (float(c) / (2 if i == j else 1), int(i), int(j))
        for i, j, c in zip(pairs.row[order], pairs.col[order], pairs.data[order], strict=True)
    ]


def _energy(lattice: Lattice, functions, terms, metadata) -> ClusterExpansionEnergy:
    tables = ClusterTables.from_terms(lattice.n_sites, functions, terms)
    return ClusterExpansionEnergy(tables, metadata)


def _require_finite(name: str, value: float) -> None:
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value} eV")


def _check_size(n: int, m: int, kT: float) -> None:
    if n < 1 or m < 1:
        raise ValueError(f"the lattice must have at least 1 x 1 sites, got {n} x {m}")
    if not (np.isfinite(kT) and kT > 0):
        raise ValueError(f"kT must be positive and finite, got {kT} eV")
