"""Exactly known densities of states with phases, and draws of them."""

import functools
from dataclasses import replace

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.phases import ChemicalPotentialLine
from clease_nn.thermodynamics import DensityOfStates, density_of_states

LATTICE = Lattice.square(4)
LINE = ChemicalPotentialLine.exchange(LATTICE, "Au", "Cu")
CHECKER = (np.indices((4, 4)).sum(0).ravel() % 2).astype(np.int8)


def asymmetric(lattice, occupations):
    """Ferromagnet with a term that favours three Au in a row."""
    x = (torch.as_tensor(occupations).reshape(-1, 4, 4) == 1).double()
    rows = sum((x * x.roll(1, a) * x.roll(2, a)).sum((1, 2)) for a in (1, 2))
    return ising_energy(lattice, 0.02)(lattice, occupations) - 0.006 * rows


ENERGIES = {
    "gap": ising_energy(LATTICE, 0.02),
    "order": ising_energy(LATTICE, -0.02),
    "asymmetric": asymmetric,
    "ideal": lambda lattice, occupations: torch.zeros(len(occupations)),
}


@functools.cache
def enumeration(name):
    """All 65536 states of a 4 x 4 lattice."""
    return SemiGrandCanonical(ENERGIES[name]).enumerate(LATTICE)


@functools.cache
def exact(name):
    """Their density of states."""
    return DensityOfStates.exact(enumeration(name))


@functools.cache
def _hot(name, temperature, t):
    """Log probabilities at one condition, and their running sum."""
    q = enumeration(name).probabilities(LINE.at(temperature, t)).numpy()
    return np.log(np.maximum(q, 1e-300)), np.cumsum(q)


def draws(name, temperatures, ts, n, seed, factor=1.15):
    """Weighted draws around every condition from a distribution that is too hot."""
    states, rng = enumeration(name), np.random.default_rng(seed)
    parts = []
    for temperature in temperatures:
        for t in ts:
            log_q, running = _hot(name, temperature * factor, t * factor)
            rows = np.searchsorted(running, rng.random(n) * running[-1])
            at = Conditions([temperature], LINE.mu(t)).repeat(n)
            energy = states.energy[rows]
            c = Configurations(LATTICE, at, states.occupations[rows])
            parts.append(
                replace(
                    c,
                    log_prob=torch.as_tensor(log_q[rows]),
                    energy=energy,
                    log_target=SemiGrandCanonical.log_weight(c, energy),
                )
            )
    return Configurations.cat(parts)


def sampled(name, temperatures, ts, n, seed, factor=1.15, **kwargs):
    """Their density of states."""
    drawn = draws(name, temperatures, ts, n, seed, factor)
    return density_of_states(drawn, seed=seed, **kwargs)
