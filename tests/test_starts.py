"""Laws of where chains begin: small cells, ordered phases, both sides of a coexistence."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from ase.build import bulk
from toys import SYSTEMS, random_expansion

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.ising import ising_energy
from clease_nn.energies.tables import ClusterTables
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import (
    ParallelTempering,
    ground_state_bound,
    growth_stages,
    ordered_phases,
)
from clease_nn.montecarlo.anchors import GroundStates
from clease_nn.montecarlo.cells import PeriodicCells, hermite, reduced
from clease_nn.montecarlo.log_z import anchored
from clease_nn.montecarlo.ordered import MOST_VARIANTS, OrderedPhases, _lowest_phases
from clease_nn.montecarlo.starts import ordered_start, small_cells
from clease_nn.warnings import ChainWarning


def fcc(shape=(2, 2, 2), cubic=True):
    return Lattice.uniform(bulk("Au", a=4.0, cubic=cubic) * shape, ["Au", "Cu"])


def ordering(lattice, second=-0.01):
    """Unlike nearest neighbours (+0.03 eV) and like second ones: CuAu (L1_0), Cu3Au (L1_2)."""
    near, next_near = lattice.relation_matrices(lattice.pair_shells(2))
    terms = [
        (0.5 * j * m[a, b], [(int(a), 0), (int(b), 0)])
        for j, m in ((0.03, near), (second, next_near))
        for a, b in zip(*np.nonzero(m), strict=True)
    ]
    tables = ClusterTables.from_terms(lattice.n_sites, [[-1.0, 1.0]], terms)
    return SemiGrandCanonical(ClusterExpansionEnergy(tables))


LATTICES = {
    "fcc": fcc(),
    "skew": fcc((4, 4, 2), cubic=False),
    "square": Lattice.square(4, 6),
    "rocksalt": SYSTEMS["two_sublattices"]()[0],
    "slab": Lattice.uniform(bulk("Au", a=4.0, cubic=True) * (2, 2, 1), ["Au", "Cu"]),
}
LATTICES["slab"].template.pbc[2] = False


@pytest.mark.parametrize("name", LATTICES)
def test_small_cells_tile_the_supercell(name):
    """Every site has as many copies; translated, a replicated configuration is one of its kind."""
    lattice = LATTICES[name]
    cells = PeriodicCells.of(lattice)
    assert cells.n_primitive == len(lattice.translations)
    rng = np.random.default_rng(0)
    for size in range(1, 9):
        for cell in cells.of_size(size):
            labels = cells.labels(cell)
            copies = np.bincount(labels)
            assert len(copies) * cells.n_primitive == size * lattice.n_sites
            assert (copies == cells.n_primitive // size).all()
            assert (lattice.sublattices == lattice.sublattices[_first(labels)][labels]).all()
            x = rng.integers(0, 1000, len(copies))[labels]
            for shift in lattice.random_translations(3, rng):
                assert (x[shift] == x[shift][_first(labels)][labels]).all()


def _first(labels):
    return np.unique(labels, return_index=True)[1]


def test_the_number_of_small_cells_is_that_of_sublattices():
    """In three dimensions as many as the sum of d * sigma(d) over divisors: 7, 13, 35, 155 of 8."""
    cells = PeriodicCells.of(fcc((8, 8, 8), cubic=False))
    assert [len(list(cells.of_size(n))) for n in (1, 2, 4, 8)] == [1, 7, 35, 155]
    nine = PeriodicCells.of(fcc((3, 3, 3), cubic=False))
    assert len(list(nine.of_size(3))) == 13


def test_hermite_normal_forms_span_the_same_lattice():
    """Every vector reduces to zero modulo the form of the lattice it spans; volumes agree."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        vectors = rng.integers(-6, 7, (3, 3))
        if abs(np.linalg.det(vectors)) < 0.5:
            continue
        form = hermite(vectors)
        assert not reduced(vectors, form).any()
        assert (np.tril(form, -1) == 0).all() and (np.diag(form) > 0).all()
        assert np.prod(np.diag(form)) == round(abs(np.linalg.det(vectors)))


def test_large_cells_grow_in_nested_stages():
    """A thousand sites: every stage is made of copies of the one before."""
    lattice = fcc((10, 10, 10), cubic=False)
    stages = growth_stages(lattice)
    assert [int(s.max()) + 1 for s in stages] == [25, 125, 250, 500]
    for small, large in itertools.pairwise(stages):
        pairs = set(zip(large.tolist(), small.tolist(), strict=True))
        assert len(pairs) == large.max() + 1


def test_stages_of_growth_have_the_energies_of_their_copies():
    """A configuration of a stage has the energy of its copy, a share of it."""
    lattice = fcc((4, 4, 4), cubic=False)
    ensemble = ordering(lattice)
    rng = np.random.default_rng(0)
    stages = small_cells(ensemble, lattice)
    maps = [onto for _, _, onto in stages]
    for k, (small_ensemble, small, _) in enumerate(stages):
        x = rng.integers(0, 2, (4, small.n_sites)).astype(np.int8)
        energy = small_ensemble.energy.tables.direct_energies(x)
        for onto in maps[k:]:
            x = x[:, onto]
        whole = ensemble.energy(lattice, torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(whole, energy * lattice.n_sites / small.n_sites, atol=1e-9)


def test_ordered_phases_are_the_ground_states_of_the_cell():
    """Where small cells reach up to the supercell, they are the minima over all states."""
    for name, make in SYSTEMS.items():
        lattice, ensemble, box = make()
        conditions = box.grid(1, 5)
        phases = ordered_phases(ensemble, lattice, conditions)
        exact = ensemble.enumerate(lattice)
        counts = torch.stack([(exact.occupations == a).sum(1) for a in range(lattice.n_species)], 1)
        grand = exact.energy[None] - conditions.mu @ counts.to(torch.float64).T
        found = phases.grand_energies(conditions)
        np.testing.assert_allclose(found.min(1), grand.min(1).values, atol=1e-9, err_msg=name)
        again = ensemble.score(phases.configurations)
        torch.testing.assert_close(again.energy, phases.configurations.energy)
        torch.testing.assert_close(again.log_target, phases.configurations.log_target)


def test_all_variants_of_ordered_alloys_are_found():
    """Six CuAu and four Cu3Au of known energy in a cubic cell of 32 sites; pure phases outside."""
    lattice = fcc()
    ensemble = ordering(lattice)
    mu = np.array([[-0.5, 0.5], [-0.2, 0.2], [0.0, 0.0], [0.2, -0.2], [0.5, -0.5]])
    conditions = Conditions(np.full(5, 300.0), mu)
    phases = ordered_phases(ensemble, lattice, conditions)
    lowest = phases.grand_energies(conditions).argmin(1)
    variants = np.bincount(phases.phase)[lowest]
    assert variants.tolist() == [1, 4, 6, 4, 1]
    rows = phases.configurations[torch.from_numpy(_first(phases.phase)[lowest])]
    assert rows.counts()[:, 0].tolist() == [0, 8, 16, 24, 32]
    # neighbours of a site: 12 near, 6 second; (like - unlike) / 2 of each, in eV a site
    expected = np.array([6, 0, -2, 0, 6]) * 0.03 - 3 * 0.01
    np.testing.assert_allclose(rows.energy / 32, expected, atol=1e-9)


def test_phases_of_many_species_are_told_apart():
    """Six species on 4096 sites have more compositions than 64 bits count; two rows are alike."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(4096, np.full(6, 1 / 6), size=20).astype(float)
    energy = rng.normal(size=20)
    counts[7], energy[7] = counts[3], energy[3]
    phase, wanted = _lowest_phases(energy, counts, np.zeros((2, 6)), 3)
    assert phase[7] == phase[3] and len(np.unique(phase)) == 19
    lowest = list(dict.fromkeys(phase[np.argsort(energy)].tolist()))[:3]
    assert set(wanted.tolist()) == set(lowest)


def test_variants_are_drawn_evenly():
    """Each of six variants as often as the others."""
    lattice = fcc()
    phases = ordered_phases(ordering(lattice), lattice, Conditions([300.0], [[0.0, 0.0]]))
    lowest = phases.grand_energies(Conditions([300.0], [[0.0, 0.0]]))[0].argmin()
    drawn = phases.draw(np.full(6000, lowest), np.random.default_rng(0))
    number = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(number) == 6
    assert np.abs((number - 1000) / np.sqrt(1000 * 5 / 6)).max() < 4.5


@pytest.mark.parametrize("name", SYSTEMS)
def test_starts_are_allowed_configurations(name):
    """Whatever the lattice, every chain begins with allowed species and the right energy."""
    lattice, ensemble, box = SYSTEMS[name]()
    shape = (4,) + (3,) * box.n_axes
    tempering = ParallelTempering(ensemble, lattice, box, shape, start="ordered", seed=2)
    x = tempering.occupations
    assert lattice.allowed[np.arange(lattice.n_sites), x].all()
    energy = ensemble.energy(lattice, torch.from_numpy(x.copy()))
    torch.testing.assert_close(tempering.configurations.energy, energy)
    assert tempering.energy_evaluations >= 0 and tempering.cost.energy_evaluations > 0


def test_cold_chains_begin_in_the_ground_state():
    """In a cell that grows, every cold chain between coexistences is in its ordered phase."""
    lattice = fcc((4, 4, 4), cubic=False)
    ensemble = ordering(lattice)
    mu = np.array([[-0.5, 0.5], [-0.2, 0.2], [0.0, 0.0], [0.2, -0.2], [0.5, -0.5]])
    grid = Conditions.grid([120.0, 140.0], mu)
    tempering = ParallelTempering(ensemble, lattice, grid, (2, 5), start="ordered", grow_steps=5)
    number = (tempering.occupations == 0).sum(1).reshape(2, 5)
    assert (number == [0, 16, 32, 48, 64]).all()
    bound = ground_state_bound(ensemble, tempering.phases.configurations, grid)
    lowest = torch.from_numpy(tempering.phases.grand_energies(grid).min(1))
    assert (bound > -lowest / grid.kT - 1e-6).all()


def test_coexistence_is_approached_from_both_sides():
    """Without a field neighbours begin in different phases, in a strong field in the same one."""
    lattice = Lattice.square(6)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    conditions = Conditions.from_kT(
        np.full(20, 0.8), np.repeat([[[0.0, 0.0], [-0.4, 0.4]]], 10, 1)[0]
    )
    rng = np.random.default_rng(0)
    occupations, phases, cost = ordered_start(ensemble, lattice, conditions, (20,), rng)
    mean = occupations.mean(1)
    assert ((mean[:10:2] > 0.5) != (mean[1:10:2] > 0.5)).all()
    assert (mean[10:] > 0.9).all()
    assert len(phases) >= 2 and cost.energy_evaluations > 0


def test_hot_chains_begin_disordered():
    """Far above all transitions the start with the lowest free energy is not an ordered one."""
    lattice = fcc()
    hot = Conditions(np.full(8, 20000.0), np.zeros((8, 2)))
    occupations, _, _ = ordered_start(
        ordering(lattice), lattice, hot, (8,), np.random.default_rng(0)
    )
    assert len(np.unique(occupations, axis=0)) == 8
    number = (occupations == 0).sum(1)
    assert number.std() > 0.5


def test_log_z_from_ordered_starts_agrees_with_enumeration():
    """On 16 sites the z-scores of ln Z over independent runs have unit size."""
    lattice = Lattice.uniform(bulk("Au", a=3.8) * (2, 2, 4), ["Au", "Cu"])
    ensemble = SemiGrandCanonical(random_expansion(lattice, 4))
    box = ConditionRange((150, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    exact = ensemble.enumerate(lattice)
    z = []
    for seed in range(6):
        run = ParallelTempering(ensemble, lattice, box, (7, 5), seed=seed, start="ordered")
        result = run.run(300, interval=100)
        reference = exact.log_z(result.conditions)
        z.append(result.log_z.z(reference))
        assert (result.lower_bound <= reference + 1e-9).all()
    z = np.array(z)
    # conditions of one run are correlated: as few as two independent ones a run are assumed
    assert 0.2 < np.mean(z**2) < 1 + 4 * np.sqrt(2 / (2 * len(z)))
    assert np.abs(z).max() < 5.5


def test_the_share_of_the_ground_state_gives_log_z():
    """Independent draws of the exact distribution: z-scores of unit size, not used when hot."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    conditions = ConditionRange((120, 600), [-0.1], [0.1], box.axes).grid(6, 8)
    ground = GroundStates(ordered_phases(ensemble, lattice, conditions), conditions)
    exact = ensemble.enumerate(lattice)
    reference = exact.log_z(conditions).numpy()
    rng = np.random.default_rng(0)
    n, z, used = 2000, [], set()
    for _ in range(12):
        visits = np.empty((n, len(conditions)), dtype=bool)
        p = [exact.probabilities(conditions[k]).numpy() for k in range(len(conditions))]
        picks = np.array([rng.choice(len(q), n, p=q / q.sum()) for q in p])
        for t in range(n):
            x, energy = exact.occupations.numpy()[picks[:, t]], exact.energy.numpy()[picks[:, t]]
            visits[t] = ground.visited(x, energy)
        at, log_z, influence, variance = ground.log_z(visits)
        used |= set(at.tolist())
        missed = (~visits[:, at]).sum(0)
        expected = n * (1 - np.exp(ground.log_weight - reference)[at])
        np.testing.assert_allclose(influence.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose((influence**2).mean(0) / n, variance, atol=1e-12)
        many = expected > 15  # events enough for a normal error
        z += ((log_z - reference[at]) / np.sqrt(np.maximum(variance, 1e-12)))[many].tolist()
        assert np.abs((log_z - reference[at])[missed == 0]).max(initial=0) < 12 / n
    assert 10 < len(used) < len(conditions)
    assert len(z) > 60 and np.abs(z).max() < 4.5 and 0.75 < np.std(z) < 1.25


def ladder(n, rng, at, own):
    """Differences along one ladder of three conditions, and an anchor at the last one."""
    influence = rng.normal(size=(n, 2))
    influence -= influence.mean(0)
    own_influence = 0.1 * rng.normal(size=(n, 1))
    variance = (influence**2).mean(0) / n
    anchor = np.array([2]), np.array([own]), own_influence - own_influence.mean(0)
    anchors = (*anchor, (anchor[2] ** 2).mean(0) / n)
    pairs = np.array([0, 1]), np.array([1, 2])
    known = np.array([True, False, False])
    return anchored(3, pairs, np.diff(at), influence, variance, known, at[0], anchors)


def test_ground_states_that_agree_make_ln_z_better():
    """An anchor within the error of the ladder lowers the error, and is no conflict."""
    n = 400
    log_z, error, conflict = ladder(n, np.random.default_rng(0), np.array([5.0, 6.0, 8.0]), 8.05)
    assert not conflict.any()
    assert error[2] < 0.3 * np.sqrt(2 / n) and abs(log_z[2] - 8.05) < 0.01
    assert log_z[0] == 5.0 and error[0] == 0


def test_ground_states_in_conflict_are_in_the_error():
    """A share that misses half of the variants is off by ln 2: the error says so."""
    short = 8.0 - np.log(2)
    log_z, error, conflict = ladder(400, np.random.default_rng(0), np.array([5.0, 6.0, 8.0]), short)
    assert abs(conflict[2] + np.log(2)) < 0.05
    assert error[2] + 1e-9 > abs(log_z[2] - 8.0) > 0.6 and error[0] == 0


def test_conflicts_are_warned_of():
    """The warning names the condition, and how far the two are apart."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    run = ParallelTempering(ensemble, lattice, box, (2,) + (2,) * box.n_axes, start="ordered")
    result = run.run(20)
    assert result.conflict.shape == (len(result.conditions),)
    off = np.zeros(len(result.conditions))
    off[1] = -0.7
    with pytest.warns(ChainWarning, match=r"differ by up to 0.70 at 1 of .*: chains did not reach"):
        dataclasses.replace(result, conflict=off).warn(20)


def test_phases_with_more_variants_than_kept_give_no_log_z():
    """Their share of the time is not known: chains may stay in variants that are not listed."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    cold = Conditions([2.0], [[0.03, -0.03]])
    phases = ordered_phases(ensemble, lattice, cold)
    ground = GroundStates(phases, cold)
    rows = torch.from_numpy(np.flatnonzero(phases.phase == ground.best[0]))
    c = phases.configurations[rows]
    x, energy = c.occupations.numpy()[:1], c.energy.numpy()[:1]
    assert ground.visited(x, energy).all()
    copies = rows.repeat(MOST_VARIANTS // len(rows) + 1)[:MOST_VARIANTS]
    keep = torch.cat([torch.from_numpy(np.flatnonzero(phases.phase != ground.best[0])), copies])
    full = OrderedPhases(phases.configurations[keep], phases.phase[keep.numpy()])
    assert not GroundStates(full, cold).visited(x, energy).any()


def test_only_variants_of_one_energy_are_counted():
    """A variant whose energy is off, as rounding allows, is neither counted nor visited."""
    lattice, ensemble, _ = SYSTEMS["binary"]()
    cold = Conditions([2.0], [[0.03, -0.03]])
    phases = ordered_phases(ensemble, lattice, cold)
    ground = GroundStates(phases, cold)
    row = int(np.flatnonzero(phases.phase == ground.best[0])[0])
    again = torch.tensor([*range(len(phases.configurations)), row])
    c = phases.configurations[again]
    energy = c.energy.clone()
    energy[-1] += 1e-5
    more = OrderedPhases(dataclasses.replace(c, energy=energy), phases.phase[again.numpy()])
    np.testing.assert_array_equal(GroundStates(more, cold).log_weight, ground.log_weight)


def test_given_structures_are_among_the_phases():
    """A structure that no small cell has is found when it is given, as Configurations or Atoms."""
    lattice = Lattice.square(6)
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2, 36)
    signs = 2.0 * target - 1
    pairs = [
        (-signs[i] * signs[j], [(i, 0), (j, 0)]) for i, j in itertools.combinations(range(36), 2)
    ]
    tables = ClusterTables.from_terms(36, [[-1.0, 1.0]], pairs)
    ensemble = SemiGrandCanonical(ClusterExpansionEnergy(tables))
    cold = Conditions(np.full(4, 300.0), np.zeros((4, 2)))
    given = Configurations(lattice, cold[:1], torch.as_tensor(target[None], dtype=torch.int8))
    for start in (given, [given.atoms(0)]):
        tempering = ParallelTempering(ensemble, lattice, cold, (4,), start=start, grow_steps=1)
        found = tempering.phases.grand_energies(cold).min(1)
        np.testing.assert_allclose(found, -36 * 35 / 2)


def test_energies_without_tables_begin_from_pure_and_given():
    """Any energy will do: there is no enumeration, and nothing fails."""
    lattice = Lattice.square(3, 2)
    energy = ising_energy(lattice)
    plain = SemiGrandCanonical(lambda lattice, occupations: energy(lattice, occupations))
    conditions = Conditions.from_kT([1.0, 1.0], np.zeros((2, 2)))
    tempering = ParallelTempering(plain, lattice, conditions, (2,), start="ordered")
    assert len(tempering.phases) == 2 and len(tempering.phases.configurations) == 2


def test_bad_starts_are_named():
    """Errors name what was given and what is possible."""
    lattice = Lattice.square(4)
    ensemble = SemiGrandCanonical(ising_energy(lattice))
    grid = Conditions([300.0, 400.0], np.zeros((2, 2)))

    def begin(start):
        return ParallelTempering(ensemble, lattice, grid, (2,), start=start)

    other = Lattice.square(3)
    with pytest.raises(ValueError, match="9 active sites"):
        begin(Configurations(other, grid, torch.zeros((2, 9), dtype=torch.int8)))
    with pytest.raises(ValueError, match="carries -1"):
        begin(Configurations.unknown(lattice, grid))
    with pytest.raises(ValueError, match="no configuration"):
        begin([])
    with pytest.raises(TypeError, match="'ordered'"):
        begin(3)
    with pytest.raises(ValueError, match="'ordred'"):
        begin("ordred")
    with pytest.raises(ValueError, match="per_condition must be at least 1"):
        ordered_phases(ensemble, lattice, grid, per_condition=0)
