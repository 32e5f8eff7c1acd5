"""Laws of neural moves whose random numbers are made from a seed and the number of the move."""

import numpy as np
import pytest
from sampler_helpers import FieldModel
from scipy.stats import chisquare
from toys import random_expansion

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.sampler.keyed import KeyedMoves

LATTICE = Lattice.square(3, 2)
ENSEMBLE = SemiGrandCanonical(random_expansion(LATTICE, seed=2, scale=0.03))
AT = Conditions.from_kT([0.05], [[0.0, 0.02]])


def moves(seed=1, **options):
    return KeyedMoves(FieldModel(), ENSEMBLE, LATTICE, AT, seed, **options)


def go(m, x, numbers):
    """Configurations after the moves with these numbers."""
    out = []
    for number in numbers:
        _, x, _ = m.move(number, x, -m.energy(x) / AT.kT.item())
        out.append(x.tolist())
    return out


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("first", [1, 2, 6, 33, 45])
def test_a_chain_goes_on_from_any_number(block_size, first):
    """Moves made by a new object from the middle of a chain are those of the whole chain."""
    x = np.zeros(6, np.int8)
    whole = go(moves(block_size=block_size), x, range(1, 50))
    if first > 1:
        x = np.array(whole[first - 2], np.int8)
    assert go(moves(block_size=block_size), x, range(first, 50)) == whole[first - 1 :]


def test_seeds_make_different_moves():
    """Another seed, another chain."""
    x = np.zeros(6, np.int8)
    assert go(moves(1), x, range(1, 20)) != go(moves(2), x, range(1, 20))


@pytest.mark.parametrize("block_size", [None, 4])
def test_the_distribution_is_exact(block_size):
    """Configurations of the chain have their Boltzmann probabilities (chi-square)."""
    states = ENSEMBLE.enumerate(LATTICE)
    p = states.probabilities(AT).reshape(-1).numpy()
    index = {tuple(x): k for k, x in enumerate(states.occupations.tolist())}
    seen = go(moves(5, block_size=block_size), np.zeros(6, np.int8), range(1, 1601))[::4]
    counts = np.bincount([index[tuple(x)] for x in seen], minlength=len(p))
    order = np.argsort(p)
    pooled = np.array_split(order, 8)
    expected = np.array([p[k].sum() for k in pooled]) * len(seen)
    keep = expected > 5
    observed = np.array([counts[k].sum() for k in pooled])
    if not keep.all():
        observed = np.append(observed[keep], observed[~keep].sum())
        expected = np.append(expected[keep], expected[~keep].sum())
    assert chisquare(observed, expected).pvalue > 1e-3
