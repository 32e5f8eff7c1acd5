"""Small systems that the tests share."""

import numpy as np
from ase.build import bulk

from clease_nn.conditions import ConditionRange
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice


def random_expansion(lattice, seed=0, scale=0.015, n_shells=2):
    """A translation-invariant pair and triplet expansion with random couplings in eV."""
    rng = np.random.default_rng(seed)
    k = lattice.n_species
    functions = rng.normal(size=(k - 1, k))
    keys = lattice.pair_shells(n_shells)
    shells = lattice.relation_matrices(keys)
    terms = []
    for f in range(k - 1):
        point = scale * rng.normal()
        terms += [(point, [(i, f)]) for i in range(lattice.n_sites)]
    for matrix in shells:
        for f in range(k - 1):
            for g in range(f, k - 1):
                j = scale * rng.normal()
                i, n = np.nonzero(matrix)
                terms += [
                    (j * matrix[a, b], [(int(a), f), (int(b), g)])
                    for a, b in zip(i, n, strict=True)
                ]
    j = scale * rng.normal()
    i, n = np.nonzero(shells[0])
    for a, b in zip(i, n, strict=True):
        for c in np.nonzero(shells[0][b])[0]:
            terms.append((0.1 * j, [(int(a), 0), (int(b), 0), (int(c), 0)]))
    return ClusterExpansionEnergy(ClusterTables.from_terms(lattice.n_sites, functions, terms, 0.1))


def binary():
    """8 fcc sites, two species: lattice, ensemble, range."""
    lattice = Lattice.uniform(bulk("Au", a=3.8) * (2, 2, 2), ["Au", "Cu"])
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    return lattice, SemiGrandCanonical(random_expansion(lattice)), box


def ternary():
    """6 sites on a square lattice, three species."""
    lattice = Lattice.square(3, 2, species=("Au", "Cu", "Ag"))
    box = ConditionRange((600, 2400), [-0.1, -0.1], [0.1, 0.1], [[1, 0, 0], [0, 1, 0]])
    return lattice, SemiGrandCanonical(random_expansion(lattice, 1)), box


def two_sublattices():
    """8 sites of rocksalt: Au/Cu on one half, Ag/X on the other."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (2, 2, 1)
    first = np.array(atoms.symbols) == "Na"
    species = ("Ag", "Au", "Cu", "X")
    allowed = np.where(first[:, None], [[0, 1, 1, 0]], [[1, 0, 0, 1]]).astype(bool)
    lattice = Lattice(atoms, np.arange(len(atoms)), species, allowed)
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[0.0, 1.0, 0.0, 0.5]])
    return lattice, SemiGrandCanonical(random_expansion(lattice, 2)), box


SYSTEMS = {"binary": binary, "ternary": ternary, "two_sublattices": two_sublattices}
