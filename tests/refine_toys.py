"""Tiny systems and spoilt models that the tests of block moves and refinement share."""

import numpy as np
import torch
from ase.build import bulk
from toys import random_expansion

from clease_nn.conditions import ConditionRange
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM, Coloured
from clease_nn.networks import LatticeConvolution


def six_binary():
    """6 sites on a square lattice, two species: 64 states."""
    lattice = Lattice.square(3, 2)
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    return lattice, SemiGrandCanonical(random_expansion(lattice)), box


def four_ternary():
    """4 sites on a square lattice, three species: 81 states."""
    lattice = Lattice.square(2, 2, species=("Au", "Cu", "Ag"))
    box = ConditionRange((600, 2400), [-0.1, -0.1], [0.1, 0.1], [[1, 0, 0], [0, 1, 0]])
    return lattice, SemiGrandCanonical(random_expansion(lattice, 1)), box


def mixed_sublattices():
    """6 sites of rocksalt: Au/Cu on three, Ag/X on two, and one that only carries Ag: 32 states."""
    atoms = bulk("NaCl", "rocksalt", a=4.2) * (3, 1, 1)
    first = np.array(atoms.symbols) == "Na"
    allowed = np.where(first[:, None], [[0, 1, 1, 0]], [[1, 0, 0, 1]]).astype(bool)
    allowed[np.flatnonzero(~first)[-1], 3] = False
    lattice = Lattice(
        atoms,
        np.arange(len(atoms)),
        ("Ag", "Au", "Cu", "X"),
        allowed,
        sublattices=first.astype(int),
    )
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[0.0, 1.0, 0.0, 0.5]])
    return lattice, SemiGrandCanonical(random_expansion(lattice, 2)), box


TINY = {"binary": six_binary, "ternary": four_ternary, "sublattices": mixed_sublattices}


def spoilt(lattice, box, *, seed=0, strength=0.5, order=None):
    """A model with random weights in its head: normalised, and rather wrong."""
    torch.manual_seed(seed)
    net = LatticeConvolution(lattice, box, channels=4, blocks=1)
    torch.nn.init.normal_(net.head.weight, std=strength)
    return AnyOrderARM(net, order=order)


def coloured(lattice, box, **kwargs):
    """The same, sites sharing passes."""
    return spoilt(lattice, box, order=Coloured(distance=0.5, neighbours=1), **kwargs)


def state_numbers(states, occupations):
    """Number of each configuration in the order of an enumeration."""
    base = int(states.max()) + 1
    power = base ** torch.arange(states.shape[1])
    keys, order = (states.long() * power).sum(1).sort()
    return order[torch.searchsorted(keys, (occupations.long() * power).sum(1))]
