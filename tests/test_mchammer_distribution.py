"""Laws of what the mchammer drop-in samples: exact averages within their own errors."""

import numpy as np
import pytest

pytest.importorskip("icet")

from mchammer_helpers import exact, rows, system, trained, z_of
from scipy.stats import chi2

from clease_nn import NeuralSGCEnsemble
from clease_nn.hosts.mchammer import lattice

TEMPERATURES = (500.0, 800.0, 1200.0)
SHIFTS = (-0.1, -0.03, 0.02, 0.08)
CASES = {
    "binary": ("Ag", "Au"),
    "ternary": ("Ag", "Au", "Pd"),
    "vacancies": ("Ag", "Au", "X"),
    "salt": ("Mg", "Zn", "O", "S"),
    "inactive": ("Mg", "Zn"),
}
MODELLED = {"binary": ("Au",), "vacancies": ("Ag", "Au"), "salt": ("Zn", "S")}


def conditions(name):
    """(temperature, mu) of a grid."""
    species = CASES[name]
    for t in TEMPERATURES:
        for k, x in enumerate(SHIFTS):
            yield t, dict(zip(species, np.roll([x, 0.0, -x, 0.5 * x], k).tolist(), strict=False))


def ensemble(name, t, mu, seed, neural=None, **options):
    atoms, calculator = system(name)
    n = len(atoms)
    model = None if neural is None else trained(atoms, calculator, MODELLED[name])
    return NeuralSGCEnsemble(
        atoms, calculator, t, mu, random_seed=seed, model=model, neural_interval=neural,
        ensemble_data_write_interval=12 * n, trajectory_write_interval=10**9, **options,
    )  # fmt: skip


def assert_standard_normal(z):
    """z^2 of independent standard normal numbers sum to chi-square; a test at 1e-3."""
    z = np.array(z)
    low, high = chi2.ppf([5e-4, 1 - 5e-4], len(z))
    assert low < (z**2).sum() < high, z


@pytest.mark.parametrize("name", CASES)
def test_averages_agree_with_enumeration(name):
    """Averages of the container agree with exact values within analyze_data's errors."""
    z = []
    for seed, (t, mu) in enumerate(conditions(name)):
        mc = ensemble(name, t, mu, seed)
        n = len(mc.structure)
        mc.run(12 * n * 300)
        host, x, p, e = exact(mc.structure, mc.calculator, t, mu)
        container, start = mc.data_container, 36 * n
        z.append(z_of(container, "potential", p @ e, start))
        s = host.species[seed % host.n_species]
        reference = p @ (x == host.species.index(s)).sum(1)
        z.append(z_of(container, f"{s}_count", reference, start))
    assert_standard_normal(z[::2])
    assert_standard_normal(z[1::2])


@pytest.mark.parametrize("name", ["binary", "vacancies"])
def test_neural_moves_leave_the_distribution(name):
    """With the proposals of an imperfect model the averages stay exact."""
    z = []
    for seed, (t, mu) in enumerate(list(conditions(name))[2::4]):
        mc = ensemble(name, t, mu, seed, neural=4.0)
        n = len(mc.structure)
        mc.run(12 * n * 100)
        record = mc.data_container.metadata["chain"]
        assert record["neural_moves"] == 300 > record["neural_accepted"] > 20
        _, _, p, e = exact(mc.structure, mc.calculator, t, mu)
        z.append(z_of(mc.data_container, "potential", p @ e, 24 * n))
    assert_standard_normal(z)


AVOID = {0: [1], 1: [0, 2], 2: [1]}


def restricted(x):
    """The configurations of the system with vacancies (species 2) that AVOID allows."""
    full = x != 2
    return ~((full[:, 0] & full[:, 1]) | (full[:, 1] & full[:, 2]))


@pytest.mark.parametrize("neural", [None, 4.0])
def test_avoided_neighbours_restrict_the_distribution(neural):
    """With sites to avoid the exactly restricted distribution is sampled."""
    t, mu, z = 900.0, {"Ag": 0.05, "Au": 0.02, "X": 0.0}, []
    _, x, p, _ = exact(*system("vacancies"), t, mu, restricted)
    free = exact(*system("vacancies"), t, mu)[2]
    vacancies = (x == 2).sum(1)
    assert abs((p - free) @ vacancies) > 0.2
    for seed in range(16 if neural is None else 6):
        mc = ensemble("vacancies", t, mu, seed, neural, neighbor_sites_to_avoid=AVOID)
        mc.run(48 * (300 if neural is None else 60))
        z.append(z_of(mc.data_container, "X_count", p @ vacancies, 144))
    if neural is not None:
        assert mc.data_container.metadata["chain"]["neural_accepted"] > 20
    assert_standard_normal(z)


def test_avoided_neighbours_are_never_occupied_together():
    """No row violates the constraint, neither by single moves nor by neural ones."""
    mu = {"Ag": 0.05, "Au": 0.02, "X": 0.0}
    atoms, calculator = system("vacancies")
    mc = NeuralSGCEnsemble(
        atoms, calculator, 900.0, mu, random_seed=1, neighbor_sites_to_avoid=AVOID,
        model=trained(atoms, calculator, MODELLED["vacancies"]), neural_interval=1.0,
    )  # fmt: skip
    mc.run(1200)
    x = np.array([row["occupations"] for row in rows(mc)])
    full = x != 0
    assert not (full[:, 0] & full[:, 1]).any() and not (full[:, 1] & full[:, 2]).any()
    assert full[:, 1].any() and (full[:, 0] & full[:, 2]).any()


@pytest.mark.parametrize("neural", [None, 6.0])
@pytest.mark.parametrize("probabilities", [[1.0, 0.0], [0.0, 1.0], [0.2, 0.8]])
def test_sublattice_probabilities(probabilities, neural):
    """Zero freezes a sublattice, other probabilities leave the distribution."""
    t, mu, z = 900.0, {"Mg": 0.0, "Zn": 0.03, "O": 0.0, "S": -0.04}, []
    atoms, calculator = system("salt")
    start = lattice(atoms, calculator).occupations(atoms)
    frozen = [
        site
        for sublattice, q in zip(calculator.sublattices, probabilities, strict=True)
        for site in sublattice.indices
        if q == 0
    ]

    def keep(x):
        return (x[:, frozen] == start[frozen]).all(1)

    _, _, p, e = exact(atoms, calculator, t, mu, keep)
    for seed in range(10 if neural is None else 4):
        mc = ensemble("salt", t, mu, seed, neural, sublattice_probabilities=probabilities)
        mc.run(96 * (300 if neural is None else 50))
        assert keep(mc.lattice.occupations(mc.structure)[None])[0]
        z.append(z_of(mc.data_container, "potential", p @ e, 288))
    if neural is not None:
        assert mc.data_container.metadata["chain"]["neural_accepted"] > 20
    assert_standard_normal(z)


def test_sites_next_to_occupied_inactive_sites_stay_empty():
    """A site that must not be occupied together with an inactive atom stays a vacancy."""
    from ase.build import bulk
    from icet import ClusterExpansion, ClusterSpace
    from mchammer.calculators import ClusterExpansionCalculator

    primitive = bulk("MgO", "rocksalt", a=4.2)
    space = ClusterSpace(primitive, [3.2], [["Mg", "X"], ["O"]])
    atoms = space.primitive_structure.repeat((2, 2, 1))
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    metal = np.flatnonzero(atoms.numbers != 8).tolist()
    atoms.numbers[metal] = 0
    calculator = ClusterExpansionCalculator(atoms, ClusterExpansion(space, [0.0] * len(space)))
    mc = NeuralSGCEnsemble(
        atoms, calculator, 900.0, {"Mg": 0.0, "X": 0.0}, random_seed=1, neural_interval=None,
        neighbor_sites_to_avoid={metal[0]: [oxygen], oxygen: [metal[0]]},
    )  # fmt: skip
    mc.run(800)
    x = np.array([row["occupations"] for row in rows(mc)])
    assert (x[:, metal[0]] == 0).all() and (x[:, metal[1:]] == 12).any(0).all()
