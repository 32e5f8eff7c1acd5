"""Small icet systems with known answers for tests of the mchammer host."""

import functools

import numpy as np
import torch
from ase.build import bulk
from icet import ClusterExpansion, ClusterSpace
from mchammer.calculators import ClusterExpansionCalculator
from sampler_helpers import FieldModel

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.mchammer import energy, lattice, parent_fingerprint
from clease_nn.io import TrainedModel

SYSTEMS = {
    "binary": (bulk("Au", "fcc", a=4.0), [4.1], ["Ag", "Au"], (2, 2, 2)),
    "ternary": (bulk("Au", "fcc", a=4.0), [3.0], ["Ag", "Au", "Pd"], (2, 2, 2)),
    "vacancies": (bulk("Au", "fcc", a=4.0), [4.1], ["Ag", "Au", "X"], (2, 2, 1)),
    "salt": (bulk("MgO", "rocksalt", a=4.2), [3.2], [["Mg", "Zn"], ["O", "S"]], (2, 2, 1)),
    "inactive": (bulk("MgO", "rocksalt", a=4.2), [3.2], [["Mg", "Zn"], ["O"]], (2, 2, 2)),
}


@functools.cache
def _expansion(name, seed, scale):
    primitive, cutoffs, symbols, _ = SYSTEMS[name]
    space = ClusterSpace(primitive, cutoffs, symbols)
    rng = np.random.default_rng(seed)
    return ClusterExpansion(space, rng.normal(0, scale, len(space)))


def system(name="binary", seed=0, scale=0.02, size=None):
    """Supercell with the first species everywhere, and a calculator of random parameters."""
    expansion = _expansion(name, seed, scale)
    atoms = expansion.primitive_structure.repeat(size or SYSTEMS[name][3])
    calculator = ClusterExpansionCalculator(atoms, expansion)
    numbers = atoms.numbers.copy()
    for sublattice in calculator.sublattices:
        numbers[sublattice.indices] = sorted(sublattice.atomic_numbers)[-1]
    if name == "vacancies":
        numbers[:] = 0
    atoms.numbers = numbers
    return atoms, calculator


def exact(atoms, calculator, temperature, mu, keep=None):
    """(lattice, occupations, probabilities, energies) of all configurations, by enumeration.

    ``keep`` says of occupations (states, sites) which of them are possible.
    """
    host = lattice(atoms, calculator)
    states = SemiGrandCanonical(energy(atoms, calculator)).enumerate(host)
    at = Conditions([temperature], [[mu.get(s, 0.0) for s in host.species]])
    x = states.occupations.numpy()
    p = states.probabilities(at).reshape(-1).numpy()
    if keep is not None:
        p = p * keep(x)
    e = energy(atoms, calculator)(host, torch.as_tensor(x)).numpy()
    return host, x, p / p.sum(), e


def trained(atoms, calculator, name="Au", softness=0.6, temps=(300.0, 3000.0)):
    """An imperfect model as if it had been trained on this expansion."""
    host = lattice(atoms, calculator)
    names = [name] if isinstance(name, str) else list(name)
    axes = np.eye(host.n_species)[[host.species.index(s) for s in names]]
    box = ConditionRange(temps, [-0.5] * len(names), [0.5] * len(names), axes)
    meta = {"parent_fingerprint": parent_fingerprint(calculator), "species": list(host.species)}
    return TrainedModel(FieldModel(softness), box, meta)


def rows(ensemble):
    """Rows of the data container, as they are."""
    return [dict(row) for row in ensemble.data_container._data_list]


def z_of(container, tag, reference, start=0):
    """z of a mean by the error estimate (95 %) of ``analyze_data``."""
    out = container.analyze_data(tag, start=start)
    return (out["mean"] - reference) / (out["error_estimate"] / 1.96)
