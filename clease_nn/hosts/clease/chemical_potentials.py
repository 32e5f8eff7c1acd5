r"""Chemical potentials of CLEASE, in both of its forms, as chemical potentials of species.

CLEASE lowers the ECI of a singlet: with ``chem_pot={"c1_d": x_d}`` it reports

.. math:: E' = E - \frac{N}{N_c} \sum_{i} \sum_d x_d \phi_d(s_i)

where N counts all atoms and i runs over the N_c counted ones: the sites that are not background,
or all atoms where the settings include background atoms. Thus every active site that carries
species a contributes :math:`\mu_a = (N/N_c) \sum_d x_d \phi_d(a)` plus an equal share of what
counted background atoms contribute, and ``E - sum_i mu[s_i]`` is E' exactly, offset included.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from ase import Atoms

from clease_nn.hosts.clease.checks import potential_value
from clease_nn.lattice import Lattice

__all__ = ["axes", "chem_pot_from_mu", "mu_from_chem_pot"]

_SINGLET = re.compile(r"c1_(\d+)")


def mu_from_chem_pot(atoms_or_settings, lattice: Lattice, chem_pot: Mapping[str, float]):
    """Chemical potential of every species from a chemical potential as CLEASE takes it.

    Parameters
    ----------
    atoms_or_settings : ase.Atoms or ClusterExpansionSettings
        Atoms with a Clease calculator, or its settings.
    lattice : Lattice
        Lattice of the supercell, from :func:`clease_nn.hosts.clease.lattice`.
    chem_pot : mapping of str to float
        Either singlets, ``{"c1_0": 0.03}``, or elements, ``{"Au": 0.1, "Cu": 0.0}``, in eV.
        With elements E' = E - sum mu_a N_a; elements left out have 0, N counts active sites.

    Returns
    -------
    ndarray, shape (species,)
        eV, such that E - sum_i mu[s_i] over active sites equals E'.

    Raises
    ------
    TypeError
        If a value is not a number.
    ValueError
        If a name is neither a singlet of the settings nor a species of the lattice, the two
        forms are mixed, or a value is not finite.

    Examples
    --------
    In the polynomial basis Au is +1 and Cu -1, so the difference is twice the ``c1_0`` of CLEASE:

    >>> from clease_nn.hosts.clease import examples, extraction
    >>> atoms = examples.cuau_emt_atoms((2, 2, 2))
    >>> lattice = extraction.lattice(atoms)
    >>> mu_from_chem_pot(atoms, lattice, {"c1_0": 0.03}).round(6).tolist()
    [0.03, -0.03]
    >>> mu_from_chem_pot(atoms, lattice, {"Au": 0.06}).tolist()
    [0.06, 0.0]
    """
    scaled = _scaled_singlets(atoms_or_settings, lattice)
    singlets = [name for name in chem_pot if _SINGLET.fullmatch(name)]
    if singlets and len(singlets) < len(chem_pot):
        raise ValueError(
            f"chemical potentials {sorted(chem_pot)} mix singlets and elements; give either "
            "{'c1_0': x} or {'Au': mu}"
        )
    mu = np.zeros(lattice.n_species)
    for name, value in chem_pot.items():
        mu += potential_value(name, value) * _axis(name, scaled, lattice)
    return mu


def chem_pot_from_mu(atoms_or_settings, lattice: Lattice, mu) -> dict[str, float]:
    """CLEASE's singlet form of chemical potentials of species, eV.

    The inverse of :func:`mu_from_chem_pot` up to a constant: the result gives the same
    differences between species. Where some elements of the settings are on no active site, the
    smallest solution is returned.

    Parameters
    ----------
    mu : array_like, shape (species,)
        eV.

    Raises
    ------
    ValueError
        If the shape is wrong or a value is not finite.
    """
    mu = np.asarray(mu, dtype=float)
    if mu.shape != (lattice.n_species,) or not np.isfinite(mu).all():
        raise ValueError(
            f"mu must be {lattice.n_species} finite numbers, one for each of {lattice.species}, "
            f"got {mu}"
        )
    scaled = _scaled_singlets(atoms_or_settings, lattice)
    relative = scaled - scaled.mean(1, keepdims=True)
    x = np.linalg.lstsq(relative.T, mu - mu.mean(), rcond=None)[0]
    return {f"c1_{d}": float(value) for d, value in enumerate(x)}


def axes(atoms_or_settings, lattice: Lattice, names: Iterable[str]) -> np.ndarray:
    """Chemical potentials of all species for 1 eV of each name, shape (names, species).

    For :class:`~clease_nn.conditions.ConditionRange`.

    Raises
    ------
    ValueError
        As :func:`mu_from_chem_pot`.
    """
    names = list(names)
    if not names:
        raise ValueError("give at least one chemical potential, e.g. 'c1_0'")
    mu_from_chem_pot(atoms_or_settings, lattice, dict.fromkeys(names, 0.0))
    scaled = _scaled_singlets(atoms_or_settings, lattice)
    return np.array([_axis(name, scaled, lattice) for name in names])


def _axis(name: str, scaled: np.ndarray, lattice: Lattice) -> np.ndarray:
    """(species,) chemical potentials for a unit step along one name."""
    match = _SINGLET.fullmatch(name)
    if match and int(match[1]) < len(scaled):
        return scaled[int(match[1])]
    if name in lattice.species:
        return np.eye(lattice.n_species)[lattice.species.index(name)]
    singlets = [f"c1_{d}" for d in range(len(scaled))]
    raise ValueError(
        f"unknown chemical potential {name!r}; use singlets {singlets} or species "
        f"{list(lattice.species)}"
    )


def _scaled_singlets(atoms_or_settings, lattice: Lattice) -> np.ndarray:
    """(functions, species) site functions times N / N_c, with the share of the background."""
    settings = atoms_or_settings
    if isinstance(settings, Atoms):
        settings = getattr(settings.calc, "settings", None)
    functions = getattr(settings, "basis_functions", None)
    if functions is None:
        raise TypeError(
            "expected Atoms with a Clease calculator or CLEASE settings, got "
            f"{type(atoms_or_settings).__name__}"
        )
    table = np.array([[f.get(s, 0.0) for s in lattice.species] for f in functions])
    n_atoms = len(lattice.template)
    if not settings.include_background_atoms:
        return table * (n_atoms / lattice.n_sites)
    symbols = np.array(lattice.template.get_chemical_symbols())
    background = np.delete(symbols, lattice.site_indices)
    offset = np.array([math.fsum(f[s] for s in background) for f in functions])
    return table + offset[:, None] / lattice.n_sites
