"""Laws of single Metropolis chains: the distribution of restricted and weighted trial moves."""

import numpy as np
import pytest
import torch
from toys import random_expansion

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.single_chain import EnergyChain, FlipGroups, SingleChain

LATTICE = Lattice.square(3, 2, species=("Cu", "X"))
ENERGY = random_expansion(LATTICE, seed=1, scale=0.03)
KT, MU = 0.05, [0.02, 0.0]
AVOID = {0: [1], 1: [0, 3], 3: [1]}
SITES = np.arange(6)


def chain_of(kind, groups):
    chain = SingleChain(ENERGY.tables) if kind == "compiled" else EnergyChain(ENERGY, LATTICE)
    chain.set(KT, MU, groups)
    chain.load(np.ones(6, np.int8), 0.0 if kind == "compiled" else _energy(np.ones(6)))
    chain.seed(np.random.SeedSequence(3))
    return chain


def _energy(x):
    x = torch.as_tensor(np.asarray(x, np.int8))[None]
    return float(ENERGY(LATTICE, x)) - sum(MU[a] for a in x[0])


def exact(allowed):
    """Number of vacancies, exactly, over the configurations for which ``allowed`` holds."""
    states = SemiGrandCanonical(ENERGY).enumerate(LATTICE)
    p = states.probabilities(Conditions.from_kT([KT], [MU])).flatten().numpy()
    x = states.occupations.numpy()
    p = p * allowed(x)
    return (p @ x.sum(1)) / p.sum()


def pooled_z(chain, reference, blocks, steps):
    chain.run(steps)
    means = []
    for _ in range(blocks):
        total = 0.0
        for _ in range(40):
            chain.run(steps // 40)
            total += chain.occupations.sum()
        means.append(total / 40)
    means = np.array(means)
    return (means.mean() - reference) / (means.std(ddof=1) / np.sqrt(blocks))


@pytest.mark.parametrize(("kind", "blocks", "steps"), [("compiled", 200, 4000), ("any", 30, 400)])
def test_avoided_neighbours_restrict_the_distribution(kind, blocks, steps):
    """With sites to avoid the chain samples the Boltzmann distribution of what is left."""
    groups = FlipGroups([(SITES, [0, 1])], LATTICE.allowed, avoid=AVOID, vacancy=1)
    reference = exact(lambda x: ~groups.forbidden(x))
    assert abs(reference - exact(lambda x: np.ones(len(x)))) > 0.3
    assert abs(pooled_z(chain_of(kind, groups), reference, blocks, steps)) < 3.5


@pytest.mark.parametrize(("kind", "blocks", "steps"), [("compiled", 200, 4000), ("any", 30, 400)])
def test_weights_of_groups_leave_the_distribution(kind, blocks, steps):
    """Groups chosen more or less often sample the same distribution."""
    parts = [(SITES[:2], [0, 1]), (SITES[2:], [0, 1])]
    groups = FlipGroups(parts, LATTICE.allowed, weights=[3.0, 1.0])
    reference = exact(lambda x: np.ones(len(x)))
    assert abs(pooled_z(chain_of(kind, groups), reference, blocks, steps)) < 3.5


def test_groups_are_chosen_by_weight():
    """The share of trial moves in a group is its weight."""
    parts = [(SITES[:2], [0, 1]), (SITES[2:], [0, 1])]
    chain = chain_of("compiled", FlipGroups(parts, LATTICE.allowed, weights=[3.0, 1.0]))
    n = 20_000
    share = np.mean(chain.run_logged(n).moves[:, 0] < 2)
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / n)


def test_random_state_goes_on():
    """A chain given the random state of another makes its moves."""
    groups = FlipGroups([(SITES, [0, 1])], LATTICE.allowed)
    a, b = chain_of("compiled", groups), chain_of("compiled", groups)
    a.run(1000)
    state, x = a.random_state, a.occupations.copy()
    a.run(500)
    b.load(x, 0.0)
    b.random_state = state
    b.run(500)
    assert np.array_equal(a.occupations, b.occupations) and a.random_state == b.random_state


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, np.nan], [-1.0, 2.0]])
def test_wrong_weights_are_refused(weights):
    """Weights that are not one positive number a group are refused."""
    parts = [(SITES[:2], [0, 1]), (SITES[2:], [0, 1])]
    with pytest.raises(ValueError, match="2 positive numbers"):
        FlipGroups(parts, LATTICE.allowed, weights=weights)


@pytest.mark.parametrize("avoid", [{0: [1]}, {0: [0]}, {0: [9], 9: [0]}])
def test_wrong_neighbours_are_refused(avoid):
    """Pairs to avoid must be symmetric, different and exist."""
    with pytest.raises(ValueError, match="both directions"):
        FlipGroups([(SITES, [0, 1])], LATTICE.allowed, avoid=avoid, vacancy=1)
