"""Laws of projections onto compositions: enumeration is met, errors are right, gaps are named."""

import json
import warnings
from math import comb

import numpy as np
import pytest
import torch
from ase.units import kB
from toys import random_expansion, two_sublattices
from weighted_states import assert_standard, drawn, even, mixture

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.hosts.clease import energy, lattice
from clease_nn.hosts.clease.examples import cuau_emt_atoms
from clease_nn.lattice import Lattice
from clease_nn.thermodynamics import DensityOfStates, canonical, density_of_states
from clease_nn.warnings import LowESSWarning

pytestmark = pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")

T = np.array([450.0, 700.0, 1500.0])


def enumerated(name):
    """Every configuration of a small alloy."""
    if name == "ising":
        cell = Lattice.square(4)
        return SemiGrandCanonical(ising_energy(cell, 0.02)).enumerate(cell)
    if name == "ternary":
        cell = Lattice.square(3, species=("Cu", "Au", "Ag"))
        return SemiGrandCanonical(random_expansion(cell, 4)).enumerate(cell)
    if name == "two sublattices":
        cell, ensemble, _ = two_sublattices()
        return ensemble.enumerate(cell)
    atoms = cuau_emt_atoms((2, 2, 4))
    return SemiGrandCanonical(energy(atoms)).enumerate(lattice(atoms))


NAMES = ("ising", "cuau", "ternary", "two sublattices")


@pytest.fixture(scope="module", params=NAMES)
def states(request):
    """All small alloys in turn."""
    return enumerated(request.param)


@pytest.fixture(scope="module")
def ising():
    """16 sites that unmix below 527 K."""
    return enumerated("ising")


def each(conditions):
    """One condition at a time."""
    return (conditions[k] for k in range(len(conditions)))


def direct(e, temperature):
    """F, <E>, S and C straight from the energies of all configurations of one composition."""
    kT = kB * temperature
    w = np.exp(-(e - e.min()) / kT)
    p = w / w.sum()
    mean = p @ e
    entropy = -kB * (p * np.log(np.maximum(p, 1e-300))).sum()
    f = e.min() - kT * np.log(w.sum())
    return f, mean, entropy, p @ (e - mean) ** 2 / (kB * temperature**2)


def test_projection_of_all_states_is_the_direct_sum(states):
    """F, <E>, S and C at every temperature and composition to 1e-10."""
    dos = DensityOfStates.exact(states)
    found = canonical(dos, T)
    assert found.reasons == () and found.determined.all()
    columns = [found.free_energy, found.energy, found.entropy, found.heat_capacity]
    for m in range(0, len(found), 4):
        e = dos.energy[(dos.counts == found.counts[m]).all(1)]
        for t, temperature in enumerate(T):
            reference = direct(e, temperature)
            values = [float(c.value[t, m]) for c in columns]
            np.testing.assert_allclose(values, reference, rtol=1e-9, atol=1e-10)
    assert all((c.error == 0).all() for c in columns)


def test_compositions_add_up_to_the_partition_function(states):
    """``sum_N Z_N exp(mu.N / kT)`` is Z at any chemical potentials."""
    dos = DensityOfStates.exact(states)
    found = canonical(dos, T)
    mu = np.random.default_rng(0).normal(scale=0.05, size=dos.lattice.n_species)
    total = np.logaddexp.reduce(found.log_z + (found.counts @ mu) / (kB * T[:, None]), axis=1)
    at = Conditions.grid(T, mu[None])
    np.testing.assert_allclose(total, dos.log_z(at).value, rtol=1e-11)


def test_entropy_without_interactions_counts_configurations():
    """At zero energy S is kB times the logarithm of the number of configurations."""
    cell = Lattice.square(3)
    free = SemiGrandCanonical(ising_energy(cell, 0.0)).enumerate(cell)
    found = canonical(DensityOfStates.exact(free), [300.0])
    ways = [comb(9, k) for k in range(10)]
    np.testing.assert_allclose(found.entropy.value[0], kB * np.log(ways), atol=1e-15)
    assert (found.counts[:, 0] + found.counts[:, 1] == 9).all()


def test_errors_of_samples_are_calibrated(ising):
    """F, <E>, S, C and the chemical potential lie within their own errors of the exact ones."""
    exact = canonical(DensityOfStates.exact(ising), T)
    rng = np.random.default_rng(1)
    scores = {k: [] for k in ("free_energy", "energy", "entropy", "heat_capacity", "mu", "mixing")}
    for _ in range(20):
        found = canonical(drawn(ising, even(ising, T), 6000, rng), T)
        well = (found.ess > 250) & np.isfinite(found.ess)
        assert well.sum() > 20
        for name in list(scores)[:4]:
            z = getattr(found, name).z(getattr(exact, name).value)
            # one energy only, as next to a pure corner, has no error
            moving = well & (exact.heat_capacity.value > 1e-7)
            scores[name].append(z[moving])
        both = (well[:, 1:] & well[:, :-1])[:, ::-1]
        mu = found.chemical_potential("Au", "Cu").mu
        scores["mu"].append(mu.z(exact.chemical_potential("Au", "Cu").mu.value)[both])
        mixing = found.free_energy_of_mixing()
        scores["mixing"].append(mixing.z(exact.free_energy_of_mixing().value)[well])
    for z in scores.values():
        assert_standard(z)


def test_free_energies_of_copper_gold_are_close_everywhere():
    """Cu-Au: F(x, T) within its errors at 300 K and above, these below 0.5 meV a site."""
    states = enumerated("cuau")
    temperatures = [300.0, 400.0, 650.0, 1000.0]
    exact = canonical(DensityOfStates.exact(states), temperatures)
    q, z = even(states, [350.0, 1000.0]), []
    for seed in range(20):
        found = canonical(drawn(states, q, 6000, np.random.default_rng(seed), 60), temperatures)
        assert found.determined.all() and (found.per_site("free_energy").error < 5e-4).all()
        z.append(found.free_energy.z(exact.free_energy.value)[:, 1:-1])
    assert_standard(z)


def test_errors_of_differences_know_what_is_common(ising):
    """The fluctuation that all compositions share drops out of chemical potentials.

    One more factor on all weights of a replica changes every F and no difference.
    """
    rng = np.random.default_rng(2)
    dos = drawn(ising, even(ising, T), 4000, rng)
    common = rng.uniform(0.5, 2.0, dos.replicas.shape[1]).astype(np.float32)
    shaken = DensityOfStates(
        dos.lattice, dos.energy, dos.counts, dos.log_g, replicas=dos.replicas * common
    )
    plain, other = (canonical(d, T) for d in (dos, shaken))
    inner = slice(2, -2)  # away from the pure corners, which are exact
    assert (other.free_energy.error[:, inner] > 2 * plain.free_energy.error[:, inner]).all()
    mu, same = (c.chemical_potential("Au", "Cu").mu.error[:, inner] for c in (plain, other))
    np.testing.assert_allclose(same, mu, rtol=1e-3)


def test_chemical_potential_is_the_slope_of_the_free_energy(states):
    """mu at every midpoint is F(N + 1, N' - 1) - F(N, N')."""
    found = canonical(DensityOfStates.exact(states), T)
    a, b = (found.species[k] for k in (1, 0))
    if len(found.species) == 4:
        a, b = "Au", "Cu"
    curve = found.chemical_potential(a, b)
    assert len(curve.share) > 3 and curve.mu.value.shape == (3, len(curve.share))
    i, j = found.species.index(a), found.species.index(b)
    f = {tuple(n): found.free_energy.value[:, m] for m, n in enumerate(found.counts.tolist())}
    for k, x in enumerate(curve.composition):
        n = x * found.n_sites
        before, after = n.copy(), n.copy()
        before[[i, j]] += [-0.5, 0.5]
        after[[i, j]] += [0.5, -0.5]
        key = [tuple(np.rint(v).astype(int).tolist()) for v in (before, after)]
        np.testing.assert_allclose(curve.mu.value[:, k], f[key[1]] - f[key[0]], atol=1e-12)
    back = found.chemical_potential(b, a).mu.value
    np.testing.assert_allclose(np.sort(-back, 1), np.sort(curve.mu.value, 1), atol=1e-12)


def test_pure_corners_are_exact_once_seen(ising):
    """One configuration: F = E, S = C = 0 without error, however rarely it was sampled."""
    dos = drawn(ising, even(ising, T), 3000, np.random.default_rng(3))
    pure = np.flatnonzero(dos.counts[:, 0] == 16)
    keep = np.ones(len(dos), dtype=bool)
    keep[pure[1:]] = False
    found = canonical(dos.restricted(keep), T).at_composition({"Cu": 1.0})
    assert found.free_energy.value[:, 0] == pytest.approx([-0.64] * 3)
    for e in (found.free_energy, found.energy, found.entropy, found.heat_capacity):
        assert (e.error == 0).all()
    assert (found.entropy.value == 0).all() and np.isinf(found.ess).all()


def test_single_configurations_of_sublattices_are_exact():
    """Where every sublattice carries one species there is one configuration, too."""
    states = enumerated("two sublattices")
    rows = np.random.default_rng(0).integers(len(states.energy), size=4000)
    exact = DensityOfStates.exact(states)
    dos = DensityOfStates(
        exact.lattice,
        exact.energy[rows],
        exact.counts[rows],
        np.full(4000, np.log(256 / 4000)),
        occupations=states.occupations[rows],
        replicas=np.ones((4000, 5), dtype=np.float32),
    )
    found = canonical(dos, T)
    single = np.isinf(found.ess[0])
    assert single.sum() == 4
    assert all(set(n) <= {0, 4} for n in found.counts[single].tolist())


def test_single_levels_do_not_fluctuate(ising):
    """One atom of the other kind: 16 configurations of one energy, known without error."""
    found = canonical(drawn(ising, even(ising, T), 3000, np.random.default_rng(6)), T)
    one = found.at_composition({"Au": 1 / 16})
    assert (one.energy.value == -0.64 + 8 * 0.02).all() and (one.energy.error == 0).all()
    assert (one.heat_capacity.value == 0).all() and (one.heat_capacity.error == 0).all()
    assert (one.free_energy.error > 0).all()
    exact = canonical(DensityOfStates.exact(ising), T).at_composition({"Au": 1 / 16})
    assert (one.energy.z(exact.energy.value) == 0).all()


def test_mixing_is_relative_to_the_pure_ends(states):
    """Zero at the corners; given energies of the pure supercells change nothing."""
    found = canonical(DensityOfStates.exact(states), T)
    if len(found.species) == 4:
        with pytest.raises(NotDeterminedError, match="pure Ag"):
            found.free_energy_of_mixing()
        return
    mixing = found.free_energy_of_mixing()
    corners = (found.counts == found.n_sites).any(1)
    assert corners.sum() == len(found.species)
    np.testing.assert_allclose(mixing.value[:, corners], 0, atol=1e-12)
    pure = {
        s: float(found.energy.value[0, found.counts[:, a] == found.n_sites][0]) / found.n_sites
        for a, s in enumerate(found.species)
    }
    given = found.free_energy_of_mixing(pure)
    np.testing.assert_allclose(given.value, mixing.value, atol=1e-12)
    np.testing.assert_allclose(
        found.per_site("free_energy").value * found.n_sites, found.free_energy.value, atol=1e-14
    )


def test_what_was_not_sampled_is_said(ising):
    """Never sampled or too few states: nan and a reason, for this composition alone."""
    narrow = Conditions.grid([600.0], [[0.0, x] for x in (0.04, 0.08)])
    found = canonical(
        drawn(ising, mixture(ising, narrow), 3000, np.random.default_rng(4)), [300.0, 600.0]
    )
    assert len(found) == 17
    assert any("Cu16 Au0: never sampled" in r for r in found.reasons)
    assert any("effective states" in r for r in found.reasons)
    assert found.determined.any() and not found.determined.all()
    for e in (found.free_energy, found.energy, found.entropy, found.heat_capacity):
        assert (np.isnan(e.value) == ~found.determined).all()
        assert (np.isnan(e.error) == ~found.determined).all()
    with pytest.raises(NotDeterminedError, match="pure Cu"):
        found.free_energy_of_mixing()
    given = found.free_energy_of_mixing({"Cu": -0.04})
    assert np.isfinite(given.value[found.determined]).all()
    [reason] = found.at_composition([1.0, 0.0]).reasons
    assert "never sampled" in reason


def test_few_effective_states_are_announced_once(ising):
    """Between 50 and 200 effective states: one warning for all, naming the worst."""
    rng = np.random.default_rng(4)
    dos = drawn(ising, even(ising, T), 2500, rng)
    with pytest.warns(LowESSWarning, match=r"at \d+ of 51 temp.*worst: Cu\d+ Au\d+ at") as record:
        found = canonical(dos, T)
    assert len(record) == 1
    few = (found.ess >= 50) & (found.ess < 200)
    text = str(record[0].message)
    assert text.startswith(f"at {few.sum()} of 51 ") and f"with {found.ess[few].min():.0f}." in text
    with warnings.catch_warnings():
        warnings.simplefilter("error", LowESSWarning)
        canonical(DensityOfStates.exact(ising), T)


def test_data_without_reference_know_differences_only(ising):
    """Without an absolute Z there is no F and no S, but mixing and chemical potentials."""
    exact = DensityOfStates.exact(ising)
    shifted = DensityOfStates(
        exact.lattice, exact.energy, exact.counts, exact.log_g + 7.0, absolute=False
    )
    found, reference = canonical(shifted, T), canonical(exact, T)
    for name in ("free_energy", "entropy"):
        with pytest.raises(NotDeterminedError, match="up to a constant"):
            getattr(found, name)
    with pytest.raises(NotDeterminedError, match="up to a constant"):
        found.free_energy_of_mixing({"Cu": 0.0})
    np.testing.assert_allclose(
        found.free_energy_of_mixing().value, reference.free_energy_of_mixing().value, atol=1e-10
    )
    np.testing.assert_allclose(
        found.chemical_potential("Au", "Cu").mu.value,
        reference.chemical_potential("Au", "Cu").mu.value,
        atol=1e-10,
    )
    row = found.to_rows()[0]
    assert row["free_energy"] is None and row["energy"] is not None


def test_chains_alone_know_chemical_potentials(ising):
    """Unweighted samples of many conditions: no F, but mu(x) and mixing within their errors."""
    grid = Conditions.grid([1000.0, 1900.0], [[0.0, x] for x in np.linspace(-0.2, 0.2, 7)])
    exact = canonical(DensityOfStates.exact(ising), [1100.0, 1700.0])
    rng, q = np.random.default_rng(7), [ising.probabilities(at).numpy() for at in each(grid)]
    scores = {"mu": [], "mixing": []}
    for seed in range(20):
        rows = np.concatenate([rng.choice(len(p), size=400, p=p / p.sum()) for p in q])
        at = grid.repeat(400)
        c = Configurations(
            ising.lattice, at, ising.occupations[rows], chain=torch.arange(len(rows))
        )
        c = SemiGrandCanonical(ising_energy(ising.lattice, 0.02)).score(c)
        found = canonical(density_of_states(c, n_resamples=40, seed=seed), [1100.0, 1700.0])
        assert not found.absolute
        well = found.ess > 200
        both = (well[:, 1:] & well[:, :-1])[:, ::-1]
        mu, x = (c.chemical_potential("Au", "Cu").mu for c in (found, exact))
        scores["mu"].append(mu.z(x.value)[both])
        mixing = found.free_energy_of_mixing().z(exact.free_energy_of_mixing().value)
        scores["mixing"].append(mixing[:, 1:-1][well[:, 1:-1]])
    for z in scores.values():
        assert_standard(z)


def test_rows_are_json(ising):
    """One flat dictionary a temperature and composition, without nan."""
    found = canonical(drawn(ising, even(ising, T), 2000, np.random.default_rng(5)), T)
    rows = json.loads(json.dumps(found.to_rows(), allow_nan=False))
    assert len(rows) == 3 * 17
    assert rows[3]["n_Cu"] == 3 and rows[3]["x_Cu"] == 3 / 16 and rows[-1]["temperature"] == 1500
    assert rows[8]["free_energy"] == found.free_energy.value[0, 8]
    assert rows[8]["entropy_error"] == found.entropy.error[0, 8]


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ({"Au": 1.2}, "x_Au = 1.2 lies outside the simplex"),
        ([-0.25, 1.25], "x_Cu = -0.25 lies outside the simplex"),
        ([0.5, 0.25], "add up to 0.75"),
        ({"Au": 0.3}, "steps of 1/16; the nearest one is x_Cu = 0.6875"),
        ({"Ag": 0.3}, "species 'Ag' is none of"),
        ([0.2, 0.3, 0.5], "one share for each"),
    ],
)
def test_compositions_that_do_not_exist_are_refused(ising, x, text):
    """Messages name the value and the limit."""
    found = canonical(DensityOfStates.exact(ising), [500.0])
    with pytest.raises(ValueError, match=text):
        found.at_composition(x)


def test_bad_requests_are_refused(ising):
    """Temperatures, species and names that make no sense."""
    dos = DensityOfStates.exact(ising)
    with pytest.raises(TypeError, match="expected a DensityOfStates, got Enumeration; combine"):
        canonical(ising, T)
    for bad in ([], [0.0], [-5.0], [np.nan]):
        with pytest.raises(ValueError, match="temperature"):
            canonical(dos, bad)
    found = canonical(dos, 500.0)
    assert found.temperatures.tolist() == [500.0]
    with pytest.raises(ValueError, match="none of"):
        found.chemical_potential("Ag", "Cu")
    with pytest.raises(ValueError, match="two different"):
        found.chemical_potential("Cu", "Cu")
    with pytest.raises(ValueError, match="none of the quantities"):
        found.per_site("enthalpy")
    with pytest.raises(ValueError, match="none of"):
        found.free_energy_of_mixing({"Ag": 0.0})
    nothing = DensityOfStates(dos.lattice, dos.energy, dos.counts, np.full(len(dos), -np.inf))
    with pytest.raises(ValueError, match="no state"):
        canonical(nothing, 500.0)


def test_compositions_follow_what_sites_allow():
    """A binary with sites that carry one species only lists what the lattice can have."""
    cell = Lattice.square(2)
    allowed = np.array([[1, 1], [1, 1], [1, 0], [0, 1]], dtype=bool)
    cell = Lattice(cell.template, range(4), ("Cu", "Au"), allowed)
    zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x))).enumerate(cell)
    found = canonical(DensityOfStates.exact(zero), [500.0])
    assert sorted(found.counts.tolist()) == [[1, 3], [2, 2], [3, 1]]
    np.testing.assert_allclose(np.sort(np.exp(found.log_z[0])), [1, 1, 2])
