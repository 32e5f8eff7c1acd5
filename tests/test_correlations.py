"""Laws of correlations and histograms: exact values lie within the errors, sums are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import Chains
from clease_nn.thermodynamics import (
    averages,
    composition_histogram,
    correlations,
    energy_histogram,
    histogram,
)

pytestmark = pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")

LATTICE = Lattice.square(3)
ENSEMBLE = SemiGrandCanonical(ising_energy(LATTICE, 0.02))
EXACT = ENSEMBLE.enumerate(LATTICE)
CONDITIONS = Conditions.grid([600.0, 900.0, 1500.0], [[0.0, x] for x in (-0.05, 0.0, 0.04)])


def exact_connected(exact, conditions, shells, members):
    """(conditions, shells, species, species) by enumeration; ``members`` (shells, sites, sites)."""
    lattice = exact.lattice
    one = torch.nn.functional.one_hot(exact.occupations.long(), lattice.n_species).double().numpy()
    out = []
    for k in range(len(conditions)):
        p = exact.probabilities(conditions[k]).numpy()
        site = np.einsum("n,nia->ia", p, one)
        pair = np.einsum("n,nia,njb->iajb", p, one, one)
        rows = []
        for s, (a, b, _) in enumerate(shells):
            m = members[s]
            left = site[lattice.sublattices == a].mean(0)
            right = site[lattice.sublattices == b].mean(0)
            rows.append(
                np.einsum("ij,iajb->ab", m, pair) / m.sum() - left[:, None] * right[None, :]
            )
        out.append(rows)
    return np.array(out)


def members_of(lattice, shells):
    """Which ordered pairs have a shell's distance between nearest images."""
    d = lattice.template[lattice.site_indices].get_all_distances(mic=True)
    sub = lattice.sublattices
    return np.array(
        [(abs(d - r) < 2e-3) & (sub[:, None] == a) & (sub == b) for a, b, r in shells], dtype=float
    )


def draw(exact, ensemble, conditions, n, generator, hotter=1.3):
    """Weighted draws of the ensemble at a wrong temperature, with their likelihood."""
    parts = []
    for k in range(len(conditions)):
        at = conditions[k]
        log_q = exact.log_target(Conditions(at.temperature * hotter, at.mu)).log_softmax(0)
        index = torch.multinomial(log_q.exp(), n, replacement=True, generator=generator)
        x = exact.occupations[index]
        parts.append(Configurations(exact.lattice, at.repeat(n), x, log_prob=log_q[index]))
    return ensemble.score(Configurations.cat(parts))


def assert_standard(z):
    """Pooled z-scores: no bias, right spread, no wild outlier."""
    z = np.concatenate([np.ravel(v) for v in z])
    assert len(z) >= 200
    assert abs(z.mean()) < 0.25, z.mean()
    assert 0.8 < z.std() < 1.2, z.std()
    assert np.abs(z).max() < 5.5


def test_weighted_correlations_are_calibrated():
    """Draws of a wrong but known q give the exact correlations within their own errors."""
    generator = torch.Generator().manual_seed(3)
    scores = []
    for _ in range(20):
        found = correlations(draw(EXACT, ENSEMBLE, CONDITIONS, 2000, generator))
        reference = exact_connected(
            EXACT, CONDITIONS, found.shells, members_of(LATTICE, found.shells)
        )
        # the site itself at half filling is exact to second order: nothing linear to test there
        scores.append(found.connected.z(reference)[:, 1:, 1, 1])
        np.testing.assert_allclose(found.spin.value, 4 * found.connected.value[..., 0, 0])
    assert_standard(scores)


def test_correlations_of_chains_are_calibrated():
    """Chains, correlated in time, give the exact correlations within their own errors."""
    scores = []
    at = CONDITIONS[torch.tensor([1, 3, 5, 8])]
    for seed in range(25):
        chains = Chains(ENSEMBLE, LATTICE, at.repeat(8), seed=seed)
        chains.sweep(20)
        parts = []
        for _ in range(150):
            chains.sweep(1)
            parts.append(chains.configurations(torch.arange(len(chains))))
        c = Configurations.cat(parts)
        found = correlations(c)
        reference = exact_connected(EXACT, at, found.shells, members_of(LATTICE, found.shells))
        scores.append(found.connected.z(reference)[:, 1:, 1, 1])
    assert_standard(scores)


@pytest.mark.parametrize("name", SYSTEMS)
def test_sum_over_shells_is_the_covariance_of_the_counts(name):
    """Every ordered pair of sites lies in one shell, on one or several sublattices."""
    lattice, ensemble, box = SYSTEMS[name]()
    exact = ensemble.enumerate(lattice)
    at = box.at(np.full((1, 1 + box.n_axes), 0.4))
    c = draw(exact, ensemble, at, 1000, torch.Generator().manual_seed(0))
    found = correlations(c)
    assert found.pairs.sum() == lattice.n_sites**2
    total = np.einsum("s,csab->cab", found.pairs, found.connected.value)
    [average] = averages(c)
    np.testing.assert_allclose(total[0], average.count_covariance.value, atol=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_correlations_of_all_states_are_exact(name):
    """The states themselves with their probabilities as weights: no bias in any species pair."""
    lattice, ensemble, box = SYSTEMS[name]()
    exact = ensemble.enumerate(lattice)
    at = box.at(np.full((1, 1 + box.n_axes), 0.4))
    n = len(exact.occupations)
    flat = torch.full((n,), -np.log(n), dtype=torch.float64)
    c = Configurations(lattice, at.repeat(n), exact.occupations, log_prob=flat)
    found = correlations(ensemble.score(c))
    reference = exact_connected(exact, at, found.shells, members_of(lattice, found.shells))
    # what is left is the correction for a finite number of samples
    np.testing.assert_allclose(found.connected.value, reference, atol=0.03)
    few = correlations(ensemble.score(c), n_shells=1)
    assert len(few.shells) < len(found.shells)
    np.testing.assert_allclose(
        few.connected.value, found.connected.value[:, : len(few.shells)], atol=1e-12
    )


def test_histograms_are_calibrated_and_sum_to_one():
    """Probabilities of energies and compositions lie within their errors of the exact ones."""
    generator = torch.Generator().manual_seed(5)
    levels = np.unique(np.round(EXACT.energy.numpy() / 9, 9))
    edges = np.concatenate([levels - 1e-6, [levels[-1] + 1e-6]])
    share = (EXACT.occupations == 1).double().mean(1).numpy()
    scores = []
    for _ in range(20):
        c = draw(EXACT, ENSEMBLE, CONDITIONS, 2000, generator)
        energy, composition = energy_histogram(c, edges), composition_histogram(c, "Au")
        for h, values in ((energy, EXACT.energy.numpy() / 9), (composition, share)):
            np.testing.assert_allclose(h.probability.value.sum(1), 1)
            for k in range(len(CONDITIONS)):
                p = EXACT.probabilities(CONDITIONS[k]).numpy()
                exact = np.histogram(values, h.edges, weights=p)[0]
                often = (exact > 0.02) & (exact < 0.98)
                scores.append(h.probability[k].z(exact)[often])
    assert_standard(scores)


def test_histogram_counts_edges_once_and_leaves_out_what_lies_outside():
    """A border belongs to the bin above it, the last one to the last bin."""
    at = Conditions([300.0], [[0.0, 0.0]]).repeat(10)
    c = Configurations(LATTICE, at, torch.zeros(10, 9), chain=torch.arange(10))
    h = histogram(c, [0.0, 1, 1, 2, 2, 2, 3, 3, 4, -1], [0, 1, 2, 3])
    np.testing.assert_allclose(h.probability.value[0], [0.1, 0.2, 0.5])
    np.testing.assert_allclose(h.density.value, h.probability.value)
    np.testing.assert_array_equal(h.centres, [0.5, 1.5, 2.5])
    assert h.outside.value[0] == pytest.approx(0.2) and h.outside.error[0] > 0


def test_evenly_spaced_levels_are_not_torn_by_rounding():
    """Every level of a spectrum that meets the default borders lies in one bin."""
    at = Conditions([300.0], [[0.0, 0.0]]).repeat(900)
    levels = torch.arange(-4, 5).double().repeat(100) * 0.1
    noise = 1e-15 * torch.randn(900, generator=torch.Generator().manual_seed(0)).double()
    for scale in (1.0, 1e-3, 0.0):
        energy = scale * levels + noise + 3.0
        c = Configurations(LATTICE, at, torch.zeros(900, 9), energy=energy, chain=torch.arange(900))
        for bins in (2, 4, 8):
            p = energy_histogram(c, bins).probability.value[0]
            expected = np.bincount(np.arange(8) // (8 // bins), minlength=bins) / 9
            expected[-1] += 1 / 9  # the last level joins the bin below it
            expected = np.eye(bins)[0] if scale == 0 else expected
            np.testing.assert_allclose(p, expected)


def test_empty_bins_do_not_lower_the_effective_samples_of_chains():
    """Independent rows in ten chains: bins that nothing visits are no sign of slow chains."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(2, (4000, 9), generator=rng)
    at = Conditions([300.0], [[0.0, 0.0]]).repeat(4000)
    c = Configurations(LATTICE, at, x, chain=torch.arange(4000) % 10)
    h = composition_histogram(c, "Au", np.linspace(0.0, 9.0, 50))
    assert h.probability.ness[0] > 0.8
    frozen = replace(c, occupations=torch.zeros_like(c.occupations))
    assert composition_histogram(frozen, "Au").probability.ness[0] == pytest.approx(1 / 400)


def test_error_of_a_site_with_itself_holds_at_half_filling():
    """``1 - m^2`` has no linear error there; that of the square is given."""
    rng = torch.Generator().manual_seed(0)
    at = Conditions([300.0], [[0.0, 0.0]]).repeat(100)
    off, error = [], []
    for _ in range(100):
        x = torch.randint(2, (100, 9), generator=rng)
        c = Configurations(LATTICE, at, x, chain=torch.arange(100) // 20)
        e = correlations(c, n_shells=1).spin[0, 0]
        off.append(e.value - 1.0)
        error.append(e.error)
    off, error = np.array(off), np.array(error)
    assert np.abs(off / error).max() < 3
    assert 0.4 < np.sqrt(np.mean(off**2) / np.mean(error**2)) < 1.1
    assert abs(off.mean()) < 4 * off.std() / 10


def test_cells_without_images_and_tiny_ones():
    """Distances end where the cell does, if it is not periodic; a tiny cell has few of them."""
    for pbc, farthest in (((True, True, False), 2**0.5), (False, 8**0.5)):
        atoms = LATTICE.template.copy()
        atoms.pbc = pbc
        lattice = Lattice.uniform(atoms, LATTICE.species)
        x = torch.randint(2, (50, 9), generator=torch.Generator().manual_seed(0))
        at = Conditions([300.0], [[0.0, 0.0]]).repeat(50)
        found = correlations(Configurations(lattice, at, x, chain=torch.arange(50)))
        assert found.distances[-1] == pytest.approx(farthest, abs=2e-3)
        assert found.pairs.sum() == 81 and found.pairs[0] == 9
    one = Lattice.square(1)
    c = Configurations(one, at, x[:, :1], chain=torch.arange(50))
    assert correlations(c).shells == ((0, 0, 0.0),)


def test_bad_input_is_named():
    """Errors say what was given."""
    c = draw(EXACT, ENSEMBLE, CONDITIONS[:1], 20, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="n_shells must be at least 1, got 0"):
        correlations(c, 0)
    with pytest.raises(ValueError, match="neither log_prob"):
        correlations(replace(c, log_prob=None))
    with pytest.raises(ValueError, match="'Pd' is none of"):
        composition_histogram(c, "Pd")
    with pytest.raises(ValueError, match="carry no energy"):
        energy_histogram(replace(c, energy=None))
    for bins in (0, 2.5):
        with pytest.raises(ValueError, match=f"at least 1, or the edges; got {bins}"):
            energy_histogram(c, bins)
    with pytest.raises(ValueError, match=r"1 of 20 values are NaN \(first in row 3\)"):
        histogram(c, np.where(np.arange(20) == 3, np.nan, 0.5), [0.0, 1.0])
    with pytest.raises(ValueError, match="ascending"):
        histogram(c, c.energy, [1.0, 0.0])
    with pytest.raises(ValueError, match=r"\(3,\), but there are 20"):
        histogram(c, [1.0, 2.0, 3.0], [0.0, 1.0])
    lattice, _, box = SYSTEMS["ternary"]()
    x = torch.randint(3, (20, 6), generator=torch.Generator().manual_seed(0))
    three = Configurations(lattice, box.grid(1, 1).repeat(20), x, chain=torch.arange(20))
    with pytest.raises(ValueError, match="spins stand for two species"):
        _ = correlations(three).spin
