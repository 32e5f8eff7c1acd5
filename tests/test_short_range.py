"""Laws of short-range order: sums over species, exact limits, errors that are right."""

import numpy as np
import pytest
import torch
from toys import SYSTEMS, random_expansion
from weighted_states import assert_standard, drawn, mixture

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.thermodynamics import (
    DensityOfStates,
    correlations,
    pair_densities,
    short_range_order,
)

LATTICE = Lattice.square(3)
ENSEMBLE = SemiGrandCanonical(ising_energy(LATTICE, 0.02))
STATES = ENSEMBLE.enumerate(LATTICE)
GRID = Conditions.grid([700.0, 1000.0, 1600.0], [[0.0, x] for x in (-0.03, 0.0, 0.02)])


def exact_pairs(states, conditions, n_shells):
    """P_ab of every shell by loops over sites and states."""
    cell = states.lattice
    keys = cell.pair_shells(n_shells)
    one = torch.nn.functional.one_hot(states.occupations.long(), cell.n_species).double().numpy()
    out = np.zeros((len(conditions), len(keys), cell.n_species, cell.n_species))
    for s, matrix in enumerate(cell.relation_matrices(keys)):
        for c in range(len(conditions)):
            p = states.probabilities(conditions[c]).numpy()
            for i, j in np.argwhere(matrix):
                out[c, s] += matrix[i, j] * np.einsum("n,na,nb->ab", p, one[:, i], one[:, j])
        out[:, s] /= matrix.sum()
    return out


def as_draws(states, ensemble, at, n, rng, hotter=1.3):
    """Weighted configurations of the ensemble at a wrong temperature."""
    parts = []
    for k in range(len(at)):
        log_q = states.log_target(Conditions(at[k].temperature * hotter, at[k].mu)).log_softmax(0)
        q = log_q.exp().numpy()
        rows = rng.choice(len(q), size=n, p=q / q.sum())
        x = states.occupations[rows]
        parts.append(Configurations(states.lattice, at[k].repeat(n), x, log_prob=log_q[rows]))
    return ensemble.score(Configurations.cat(parts))


@pytest.mark.parametrize("name", SYSTEMS)
def test_probabilities_of_all_states_are_exact(name):
    """Pair probabilities, connected parts and alpha on one and two sublattices, 2 to 4 species."""
    cell, ensemble, box = SYSTEMS[name]()
    states = ensemble.enumerate(cell)
    at = box.at(np.random.default_rng(0).uniform(size=(2, 1 + box.n_axes)))
    found = short_range_order(DensityOfStates.exact(states), at, n_shells=2)
    p = exact_pairs(states, at, 2)
    np.testing.assert_allclose(found.probability.value, p, atol=1e-6)
    x = p.sum(3)[..., :, None] * p.sum(2)[..., None, :]
    np.testing.assert_allclose(found.connected.value, p - x, atol=1e-6)
    np.testing.assert_allclose(
        found.alpha.value[x > 0], (1 - p / np.where(x, x, 1))[x > 0], atol=1e-5
    )
    assert np.isnan(found.alpha.value[x == 0]).all() and found.reasons == ()
    assert len(found.shells) == len(found.distances) == len(found.coordination)


@pytest.mark.parametrize("name", SYSTEMS)
def test_sums_over_neighbours_are_kept(name):
    """``sum_b x_b alpha_ab = 0``: whatever is missing of one species is there of the others."""
    cell, ensemble, box = SYSTEMS[name]()
    states = ensemble.enumerate(cell)
    at = box.at(np.random.default_rng(1).uniform(size=(2, 1 + box.n_axes)))
    dos = drawn(states, mixture(states, at), 2000, np.random.default_rng(2))
    found = short_range_order(dos, at, n_shells=2)
    p = found.probability.value
    np.testing.assert_allclose(p.sum((2, 3)), 1, atol=1e-12)
    np.testing.assert_allclose(found.connected.value.sum(3), 0, atol=1e-12)
    lost = (p.sum(2)[..., None, :] * np.nan_to_num(found.alpha.value)).sum(3)
    complete = ~(np.isnan(found.alpha.value) & (p > 0)).any(3)
    assert complete.any()
    np.testing.assert_allclose(lost[complete], 0, atol=1e-12)


def test_shares_are_those_of_the_supercell():
    """On one sublattice the margins of P are the composition, in every shell."""
    cell = Lattice.square(3, species=("Cu", "Au", "Ag"))
    states = SemiGrandCanonical(random_expansion(cell, 4)).enumerate(cell)
    at = Conditions([800.0], [[0.0, 0.02, -0.01]])
    dos = DensityOfStates.exact(states)
    found = short_range_order(dos, at)
    x = dos.averages(at)[0].composition.value
    np.testing.assert_allclose(found.probability.value.sum(3)[0], np.tile(x, (3, 1)), atol=1e-9)


def test_errors_of_states_are_calibrated():
    """P, its connected part and alpha lie within the errors of the replicas."""
    exact = short_range_order(DensityOfStates.exact(STATES), GRID, n_shells=2)
    q = mixture(STATES, GRID)
    rng = np.random.default_rng(3)
    scores = {"probability": [], "connected": [], "alpha": []}
    for _ in range(22):
        found = short_range_order(drawn(STATES, q, 4000, rng), GRID, n_shells=2)
        for name, z in scores.items():
            z.append(getattr(found, name).z(getattr(exact, name).value)[:, :, 0])
    for z in scores.values():
        assert_standard(z)


@pytest.mark.parametrize("kind", ["weighted", "chains"])
def test_errors_of_configurations_are_calibrated(kind):
    """The same from configurations at their own conditions, weighted or unweighted."""
    exact = short_range_order(DensityOfStates.exact(STATES), GRID, n_shells=2)
    rng = np.random.default_rng(4)
    scores = {"probability": [], "connected": [], "alpha": []}
    for _ in range(22):
        c = as_draws(STATES, ENSEMBLE, GRID, 1200, rng, 1.2 if kind == "weighted" else 1.0)
        if kind == "chains":
            # independent rows, in few chains
            c = Configurations(LATTICE, c.conditions, c.occupations, chain=torch.arange(len(c)) % 8)
        found = short_range_order(c, n_shells=2)
        assert torch.equal(found.conditions.mu, GRID.mu)
        for name, z in scores.items():
            z.append(getattr(found, name).z(getattr(exact, name).value)[:, :, 0])
    for z in scores.values():
        assert_standard(z)


def test_independent_species_have_no_short_range_order():
    """alpha is zero within its error in an ideal solution, exactly in all its states."""
    cell = Lattice.square(3, species=("Cu", "Au", "Ag"))
    free = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x))).enumerate(cell)
    at = Conditions([600.0], [[0.0, 0.05, -0.03]])
    found = short_range_order(DensityOfStates.exact(free), at, n_shells=1)
    np.testing.assert_allclose(found.alpha.value, 0, atol=1e-6)
    rng = np.random.default_rng(5)
    q = mixture(free, at)
    z = [short_range_order(drawn(free, q, 2000, rng), at, n_shells=1).alpha.z(0) for _ in range(40)]
    assert_standard(z)


def test_checkerboard_has_unlike_neighbours_only():
    """-1 in the first shell at half filling, +1 in the second; like pairs the other way round."""
    cell = Lattice.square(4)
    board = torch.as_tensor(np.indices((4, 4)).sum(0).ravel() % 2)
    x = torch.stack([board, 1 - board]).repeat(120, 1)
    at = Conditions([300.0], [[0.0, 0.0]]).repeat(240)
    found = short_range_order(Configurations(cell, at, x, chain=torch.arange(240)), n_shells=2)
    assert found.pair("Cu", "Au").value.tolist() == [[-1.0, 1.0]]
    assert found.pair("Cu", "Cu").value.tolist() == [[1.0, -1.0]]
    assert found.coordination.tolist() == [4, 4]


def test_connected_part_is_that_of_the_correlations():
    """Both functions read the same two-point function off chains."""
    c = as_draws(STATES, ENSEMBLE, GRID[:2], 4000, np.random.default_rng(6), 1.0)
    c = Configurations(LATTICE, c.conditions, c.occupations, chain=torch.arange(len(c)))
    found, other = short_range_order(c, n_shells=2), correlations(c, n_shells=2)
    np.testing.assert_allclose(found.distances, other.distances[1:])
    # correlations() removes the bias of products of means
    np.testing.assert_allclose(found.connected.value, other.connected.value[:, 1:], atol=2e-4)


def test_rare_species_are_not_determined():
    """Too few expected pairs: nan and a reason; what is frequent stays."""
    at = Conditions([700.0, 700.0], [[0.0, -0.30], [0.0, 0.0]])
    found = short_range_order(
        drawn(STATES, mixture(STATES, at), 1000, np.random.default_rng(7)), at
    )
    assert np.isnan(found.alpha.value[0, :, 1, 1]).all()
    assert np.isfinite(found.alpha.value[1]).all() and np.isfinite(found.probability.value).all()
    [reason] = found.reasons
    assert "mu = (0, -0.3)" in reason and "pairs are expected at 1 angstrom" in reason


def test_pair_densities_average_to_probabilities():
    """Any condition: dos.mean of the observable is the probability of the result."""
    dos = drawn(STATES, mixture(STATES, GRID), 3000, np.random.default_rng(8))
    values = pair_densities(dos.occupations, LATTICE, 2)
    np.testing.assert_allclose(values.sum((2, 3)), 1)
    mean = dos.mean(values, GRID)
    found = short_range_order(dos, GRID, n_shells=2).probability
    np.testing.assert_allclose(mean.value, found.value)
    np.testing.assert_allclose(mean.error, found.error)


def test_bad_requests_are_refused():
    """Conditions missing or too many, states without configurations, unknown species."""
    dos = drawn(STATES, mixture(STATES, GRID), 500, np.random.default_rng(9))
    with pytest.raises(ValueError, match="pass conditions"):
        short_range_order(dos)
    c = as_draws(STATES, ENSEMBLE, GRID[:1], 300, np.random.default_rng(9))
    with pytest.raises(ValueError, match="density_of_states"):
        short_range_order(c, GRID)
    levels = DensityOfStates(LATTICE, dos.energy, dos.counts, dos.log_g)
    with pytest.raises(ValueError, match="without configurations"):
        short_range_order(levels, GRID)
    with pytest.raises(ValueError, match="n_shells"):
        short_range_order(dos, GRID, n_shells=0)
    with pytest.raises(ValueError, match="none of"):
        short_range_order(dos, GRID[4:5], n_shells=1).pair("Cu", "Ag")
    with pytest.raises(NotDeterminedError, match="T = 100 K"):
        few = drawn(
            STATES,
            mixture(STATES, Conditions([900.0], [[0.0, 0.3]])),
            200,
            np.random.default_rng(0),
        )
        short_range_order(few, Conditions([100.0], [[0.0, -0.3]]))
    with pytest.raises(ValueError, match="shape"):
        pair_densities([[0, 1]], LATTICE)
