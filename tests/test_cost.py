"""What results cost: parts add up, routes compare at equal error."""

import json
import random
from math import inf

import numpy as np
import pytest
import torch
from sampler_helpers import FieldModel, binary_atoms
from toys import SYSTEMS, binary

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost, Route, cost_table, merge_provenance
from clease_nn.hosts.clease.recorder import ConfigurationRecorder
from clease_nn.io import TrainedModel
from clease_nn.montecarlo import Chains, ParallelTempering
from clease_nn.sampler import ModelService, System
from clease_nn.sampling import complete, sample
from clease_nn.thermodynamics import DensityOfStates, averages

NAMES = ("energy_evaluations", "network_passes", "attempts_per_site", "seconds")


def drawn(n=12, seed=0):
    """Draws of an imperfect model: lattice, ensemble, configurations."""
    lattice, ensemble, box = binary()
    rng = torch.Generator().manual_seed(seed)
    return lattice, ensemble, sample(FieldModel(), ensemble, lattice, box.grid(1, 1).repeat(n), rng)


# ------------------------------------------------------------------ sums
def test_sums_do_not_depend_on_order_or_grouping():
    """Sampling adds up; trainings of several models are told apart, each paid once."""
    rng = np.random.default_rng(0)
    models = [(0.0, 0.0), (60.0, 1e6), (90.0, 2e6)]
    costs = [Cost(*rng.integers(1, 99, 4), *models[k % 3]) for k in range(9)]
    total = Cost.sum(costs)
    assert total == Cost.sum(costs[::-1])
    assert total.training_seconds == 150 and total.training_energy_evaluations == 3e6
    for name in NAMES:
        assert getattr(total, name) == sum(getattr(c, name) for c in costs)
    assert Cost.sum([]) == Cost() == Cost() + Cost()
    one = costs[1]
    assert (one + one + one).training_seconds == 60 and (one + one).seconds == 2 * one.seconds


def test_provenance_states_a_cost_and_nothing_else_changes():
    """What is written is read back, over whatever stood there; the rest stays."""
    cost = Cost(3.0, 2.0, 1.0, 0.5, 60.0, 7.0)
    noted = cost.noted_in({"seed": 4, "seconds": 9.0, "network_passes": 1})
    assert Cost.from_provenance(noted) == cost and noted["seed"] == 4
    assert Cost(seconds=1.0).noted_in({"network_passes": 1}) == {"seconds": 1.0}
    assert Cost(**json.loads(json.dumps(cost.to_dict()))) == cost


def test_putting_together_adds_costs_and_keeps_what_agrees():
    """cat of two runs costs both; entries that differ, or that one lacks, are dropped."""
    _, _, a = drawn(12, 0)
    _, _, b = drawn(5, 1)
    both = Configurations.cat([a, b])
    for name in NAMES:
        parts = getattr(a.cost, name) + getattr(b.cost, name)
        assert getattr(both.cost, name) == pytest.approx(parts)
    assert both.cost.energy_evaluations == 17
    merged = merge_provenance([{"m": 1, "s": 2, "t": 3}, {"m": 1, "s": 3, "seconds": 2.0}])
    assert merged == {"m": 1, "seconds": 2.0}


def test_slices_of_one_run_cost_it_once():
    """A slice keeps the cost of the whole run; its slices put together cost no more."""
    _, _, c = drawn(12)
    assert c[3:5].cost == c.cost
    again = Configurations.cat([c[:4], c[4:], c[2:3]])
    assert len(again) == 13 and again.cost == c.cost


# ------------------------------------------------------------------ results know
def test_draws_count_energies_passes_and_drawn_sites():
    """One energy a draw, one attempt a drawn site, none for given ones."""
    lattice, ensemble, c = drawn(12)
    assert c.cost.energy_evaluations == 12 and c.cost.attempts_per_site == 12
    assert c.cost.network_passes == lattice.n_sites and c.cost.seconds > 0
    partial = Configurations(lattice, c.conditions, c.occupations.clone())
    partial.occupations[:, ::2] = -1
    half = complete(FieldModel(), ensemble, partial, torch.Generator())
    assert half.cost.attempts_per_site == 6 and half.cost.energy_evaluations == 12


def test_draws_of_a_service_know_their_training():
    """Weighted draws, chains of draws and both together cost one training."""
    lattice, ensemble, box = binary()
    metadata = {"training_seconds": 7.0, "energy_evaluations": 100}
    trained = TrainedModel(FieldModel(), box, metadata)
    system = System(lattice, ensemble, None)
    service = ModelService(system)
    service.own = trained
    parts = [
        service.sample(box.grid(1, 1), 50, np.random.SeedSequence(1), weighted=weighted)
        for weighted in (True, False)
    ]
    for c in parts:
        assert c.cost.training_seconds == 7.0 and c.cost.training_energy_evaluations == 100
    assert parts[0].cost.energy_evaluations == 50 < parts[1].cost.energy_evaluations
    assert (parts[0].cost + parts[1].cost).training_seconds == 7.0
    grid = service.sample_grid(box.grid(2, 2), 20, np.random.SeedSequence(1), progress=False)
    assert grid.cost.training_seconds == 7.0 and grid.cost.energy_evaluations == 80


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("method", ["heat_bath", "metropolis"])
def test_chains_count_attempts(name, method):
    """Every sweep attempts as many changes as there are sites, in every chain."""
    lattice, ensemble, box = SYSTEMS[name]()
    chains = Chains(ensemble, lattice, box.grid(2, 2) if box.n_axes == 1 else box.grid(4, 1))
    chains.sweep(5, method)
    free = (lattice.allowed.sum(1) > 1).sum()
    c = chains.configurations()
    assert c.cost.attempts_per_site * lattice.n_sites == chains.attempted
    assert chains.attempted <= 5 * len(chains) * lattice.n_sites
    assert chains.attempted >= 0.5 * 5 * len(chains) * free
    assert c.cost.energy_evaluations >= chains.attempted and c.cost.seconds > 0


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.ChainWarning")
def test_parallel_tempering_counts_everything():
    """Burn-in, ladder, measured steps; more steps cost more, and the result says so everywhere."""
    lattice, ensemble, box = binary()
    runs = [ParallelTempering(ensemble, lattice, box, (3, 2), seed=1).run(n) for n in (40, 80)]
    one, two = (r.cost for r in runs)
    assert two.attempts_per_site > 1.8 * one.attempts_per_site > 1.8 * 4 * 50 * 6
    assert one.energy_evaluations >= one.attempts_per_site * lattice.n_sites
    assert runs[0].energy_evaluations == one.energy_evaluations
    assert averages(runs[0].configurations).cost == one and one.seconds > 0
    json.dumps(dict(runs[0].configurations.provenance))


def test_growth_is_paid_for():
    """Starts that grow from smaller cells add to the cost of a run without steps."""
    lattice, ensemble, box = _grown()
    random_start = ParallelTempering(ensemble, lattice, box, (2, 2), start="random")
    grown = ParallelTempering(ensemble, lattice, box, (2, 2), grow_steps=10)
    assert random_start.cost.attempts_per_site == 0
    sites = [16, 32]
    attempts = sum(10 * 4 * 4 * n for n in sites) / lattice.n_sites
    assert grown.cost.attempts_per_site == attempts and grown.cost.seconds > 0


def _grown():
    from toys import random_expansion

    from clease_nn.conditions import ConditionRange
    from clease_nn.ensemble import SemiGrandCanonical
    from clease_nn.lattice import Lattice

    lattice = Lattice.square(8, species=("Au", "Cu"))
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    return lattice, SemiGrandCanonical(random_expansion(lattice)), box


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_averages_know_the_cost_of_their_data():
    """Averages of draws and of a density of states hand the cost on; parts of them are plain."""
    lattice, ensemble, c = drawn(400)
    assert averages(c).cost == c.cost
    exact = DensityOfStates.exact(ensemble.enumerate(lattice))
    found = exact.averages(Conditions([900.0], [[0.0, 0.1]]))
    assert found.cost == exact.cost and found.cost.energy_evaluations == 2**lattice.n_sites
    assert len(found) == 1 and found == tuple(found) and isinstance(found[:1], tuple)


def test_recorders_count_steps_of_the_host(tmp_path):
    """One energy a step; runs that follow one another add, a new run begins anew."""
    from clease.montecarlo import SGCMonteCarlo

    random.seed(0)
    atoms = binary_atoms(tmp_path)
    mc = SGCMonteCarlo(atoms, 900, ["Au", "Cu"])
    recorder = ConfigurationRecorder(mc)
    mc.attach(recorder, interval=8)
    mc.run(160, chem_pot={"c1_0": 0.02})
    cost = recorder.configurations().cost
    assert cost.energy_evaluations == 160 and cost.attempts_per_site == 160 / len(atoms)
    assert cost.seconds > 0
    for _ in mc.irun(80, call_observers=True):
        pass
    assert recorder.cost.energy_evaluations == 240
    mc.run(40, chem_pot={"c1_0": 0.02})
    assert recorder.cost.energy_evaluations == 40


def test_containers_of_mchammer_count_trial_steps():
    """The last trial step is what a run has cost; rows written from draws keep theirs."""
    icet = pytest.importorskip("icet")
    from ase.build import bulk
    from mchammer.calculators import ClusterExpansionCalculator
    from mchammer.ensembles import SemiGrandCanonicalEnsemble

    from clease_nn.hosts import mchammer as host
    from clease_nn.hosts.mchammer import containers

    primitive = bulk("Au")
    expansion = icet.ClusterExpansion(icet.ClusterSpace(primitive, [4.3], ["Ag", "Au"]), [0.0] * 4)
    structure = primitive.repeat(2)
    lattice = host.lattice(structure, expansion)
    mc = SemiGrandCanonicalEnsemble(
        structure,
        ClusterExpansionCalculator(structure, expansion),
        1500.0,
        {"Ag": 0.0, "Au": 0.05},
        trajectory_write_interval=8,
        random_seed=1,
    )
    mc.run(400)
    c = containers.from_data_container(mc.data_container, lattice, start=100)
    assert c.cost.energy_evaluations == 400 and c.cost.attempts_per_site == 50
    again = containers.from_data_container(containers.to_data_container(c), lattice)
    assert again.cost == c.cost


# ------------------------------------------------------------------ routes side by side
def random_route(rng, name, trained):
    training = (rng.uniform(10, 500), rng.uniform(1e5, 1e8)) if trained else (0.0, 0.0)
    cost = Cost(rng.uniform(1e3, 1e7), 0.0, rng.uniform(1, 1e4), rng.uniform(1, 100), *training)
    return Route(name, cost, int(rng.integers(1, 50)), rng.uniform(1e-4, 1e-2))


def seconds(route, error, n, dearer=0.0):
    """Written out: training once, sampling by conditions and squared error."""
    c = route.cost
    share = n / route.n_conditions * (route.error / error) ** 2
    energies = c.training_energy_evaluations + share * c.energy_evaluations
    return c.training_seconds + share * c.seconds + dearer * energies


@pytest.mark.parametrize("trained", [(True, False), (False, True), (True, True), (False, False)])
def test_break_even_is_where_the_cheaper_route_changes(trained):
    """Within the windows the first route takes less time than the other, outside more."""
    rng = np.random.default_rng(3)
    kinds = set()
    for _ in range(200):
        a, b = random_route(rng, "a", trained[0]), random_route(rng, "b", trained[1])
        table = cost_table([a, b])
        row = table["b"]
        assert row.seconds == pytest.approx(seconds(b, a.error, a.n_conditions))
        assert row.ratio == pytest.approx(row.seconds / seconds(a, a.error, a.n_conditions))
        for window, at in (
            (row.pays_conditions, lambda r, n: seconds(r, a.error, n)),  # noqa: B023
            (row.pays_energy, lambda r, c: seconds(r, a.error, a.n_conditions, c)),  # noqa: B023
        ):
            low, high = window
            kinds.add((low == 0, low == inf, high == inf))
            for x in (low, high):
                if x in (0, inf):
                    continue
                assert at(a, x) == pytest.approx(at(b, x), rel=1e-6)
            for x in (1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6, 0.999 * low, 1.001 * low):
                if not np.isfinite(x) or x <= 0 or np.isclose(x, [low, high], rtol=1e-6).any():
                    continue
                assert (at(a, x) < at(b, x)) == (low < x < high)
    assert len(kinds) >= 2


def test_errors_scale_with_the_square_root_of_sampling():
    """Four times the samples for half the error; training is not scaled."""
    route = Route("a", Cost(8.0, 4.0, 2.0, 10.0, 60.0, 5.0), 10, 0.2)
    assert route.scaled(0.1, 10) == Cost(32.0, 16.0, 8.0, 40.0, 60.0, 5.0)
    assert route.scaled(0.2, 30) == Cost(24.0, 12.0, 6.0, 30.0, 60.0, 5.0)


def test_the_scaling_is_that_of_a_mean():
    """The error of a Monte Carlo mean at the cost that the table gives is the one asked for."""
    rng = np.random.default_rng(0)
    n, wanted = 100, 0.025
    spread = np.std(rng.normal(size=(4000, n)).mean(1))
    cost = Route("mean", Cost(energy_evaluations=n), 1, float(spread)).scaled(wanted, 1)
    again = np.std(rng.normal(size=(4000, round(cost.energy_evaluations))).mean(1))
    assert again == pytest.approx(wanted, rel=0.08)  # 5 errors of both spreads


def test_a_table_says_who_wins():
    """Parallel tempering that is cheaper in everything: the neural route never pays."""
    neural = Route("neural", Cost(1e5, 1e4, 1e3, 20.0, 300.0, 1e9), 100, 1e-3)
    tempering = Route("tempering", Cost(1e5, 0, 1e3, 2.0), 100, 1e-3, "measured")
    single = Route("single", Cost(1e8, 0, 1e6, 2000.0), 100, 1e-3)
    table = cost_table([neural, tempering, single], unit="eV")
    assert table["tempering"].pays_conditions == (inf, inf) == table["tempering"].pays_energy
    assert table["single"].pays_conditions == pytest.approx((300 / 19.8, inf))
    text = str(table)
    assert "never" in text and "above" in text and "eV" in text and "measured" in text
    rows = table.to_rows()
    json.dumps(rows, allow_nan=False)
    assert [r["ratio"] for r in rows] == pytest.approx([1, 2 / 320, 2000 / 320])
    assert rows[1]["first_pays_conditions"] == "never"
    assert rows[0]["first_pays_conditions"] is None is rows[0]["first_pays_energy_seconds"]
    assert rows[1]["first_pays_conditions_from"] is None
    # with dear energies its fewer evaluations in sampling do not make up for those of training
    assert table["single"].pays_energy == pytest.approx((0.0, (2000 - 320) / (1.0001e9 - 1e8)))
    with pytest.raises(KeyError, match="tempering"):
        table["other"]


@pytest.mark.parametrize("error", [0.0, -1.0, np.nan, inf])
def test_a_route_needs_an_error(error):
    """Without a statistical error nothing can be scaled."""
    with pytest.raises(ValueError, match="error of 'a'"):
        Route("a", Cost(), 1, error)


def test_bad_tables():
    """No routes, two of one name, no conditions, a target that is not positive."""
    a = Route("a", Cost(), 1, 0.1)
    with pytest.raises(ValueError, match="at least one"):
        cost_table([])
    with pytest.raises(ValueError, match="name of its own"):
        cost_table([a, a])
    with pytest.raises(ValueError, match="must serve"):
        Route("b", Cost(), 0, 0.1)
    for options in (
        {"error": 0.0},
        {"error": inf},
        {"n_conditions": 0},
        {"n_conditions": 2.7},
        {"n_conditions": inf},
    ):
        with pytest.raises(ValueError, match="must be positive"):
            cost_table([a], **options)
