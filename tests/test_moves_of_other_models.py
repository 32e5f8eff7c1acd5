"""Host moves with the published models: served, or refused before a run starts."""

import warnings

import numpy as np
import pytest
import torch
from clease.montecarlo.constraints import FixedIndices
from mchammer.ensembles import SemiGrandCanonicalEnsemble
from mchammer_helpers import system as mchammer_system
from mchammer_helpers import trained as mchammer_trained
from sampler_helpers import binary_atoms, trained
from toys import binary

from clease_nn.conditions import Conditions
from clease_nn.hosts.clease import lattice as clease_lattice
from clease_nn.hosts.clease.moves import NeuralBlockSwap, NeuralGlobalMove
from clease_nn.hosts.clease.sampler import NeuralSGCSampler
from clease_nn.hosts.mchammer import NeuralSGCEnsemble
from clease_nn.hosts.mchammer.extraction import lattice as mchammer_lattice
from clease_nn.hosts.mchammer.moves import NeuralCanonicalEnsemble, NeuralTrialSteps
from clease_nn.io import TrainedModel
from clease_nn.models import AnyOrderARM, FixedOrderARM, MarginalizationModel
from clease_nn.networks import MLP, LatticeConvolution, LatticeTransformer, MaskedMLP
from clease_nn.sampler import CanonicalBlockMoves, NeuralMoves, find_model, match_composition
from clease_nn.sampler import schedule as scheduling
from clease_nn.sampler.keyed import KeyedMoves
from clease_nn.sampler.schedule import plan_schedule
from clease_nn.single_chain import FlipGroups, SingleChain
from clease_nn.warnings import NoModelWarning

T = 900
CHEM_POT = {"c1_0": 0.02}


def fixed(lattice, box):
    """An untrained model with one order."""
    torch.manual_seed(0)
    return FixedOrderARM(MaskedMLP(lattice, box, width=16, layers=2))


def parts(model=fixed, seed=0):
    """What moves take, on the binary toy system at one condition."""
    lattice, ensemble, box = binary()
    rng = torch.Generator().manual_seed(seed)
    return model(lattice, box), ensemble, lattice, box.at([[0.9, 0.4]]), rng


def marginalization(lattice, box):
    torch.manual_seed(0)
    networks = [MLP(lattice, box, width=16, layers=2, needs_fields=k == 1) for k in range(2)]
    for network in networks:
        torch.nn.init.normal_(network.head.weight, std=0.1)
    return MarginalizationModel(*networks)


# ------------------------------------------------------------------ one order of drawing
def test_blocks_of_a_fixed_order_are_refused_when_moves_are_made():
    """A block is no prefix: said at once, with the size and what to use instead."""
    for make in (NeuralMoves, lambda *a, **k: KeyedMoves(*a[:-1], 0, **k)):
        with pytest.raises(ValueError, match=r"block of 3 sites .*FixedOrderARM.*AnyOrderARM"):
            make(*parts(), block_size=3)


def test_held_sites_must_come_first_in_a_fixed_order():
    """Sites that the chain cannot change may be the first of the order and no others."""
    lattice = binary()[0]
    for held, allowed in (([0, 1], True), ([7], False), ([], True)):
        reachable = lattice.allowed.copy()
        reachable[held, 1] = False
        if allowed:
            moves = NeuralMoves(*parts(), reachable=reachable)
            y, log_ratio = moves.propose(np.zeros(8, np.int8))
            assert (y[held] == 0).all() and np.isfinite(log_ratio)
        else:
            with pytest.raises(ValueError, match="held cannot come last: site 7"):
                NeuralMoves(*parts(), reachable=reachable)


def test_fixed_composition_needs_any_order():
    """Both the moves and the search for a chemical potential say so."""
    model, ensemble, lattice, at, rng = parts()
    with pytest.raises(ValueError, match="fixed composition need .*FixedOrderARM has one order"):
        CanonicalBlockMoves(model, ensemble, lattice, at, rng)
    trained = TrainedModel(model, binary()[2])
    with pytest.raises(ValueError, match="FixedOrderARM has one order"):
        match_composition(trained, lattice, np.zeros(8, np.int8), 900.0, rng)


def test_a_schedule_never_plans_blocks_for_a_fixed_order(monkeypatch):
    """However few global moves are accepted, blocks are not tried."""
    monkeypatch.setattr(scheduling, "_LOW_ACCEPTANCE", 1.1)
    monkeypatch.setattr(scheduling, "_remembers", lambda *a: True)
    monkeypatch.setattr(scheduling, "_HOST_STEP", 1.0)
    sizes = []
    monkeypatch.setattr(scheduling, "_block_acceptance", lambda *a: sizes.append(a[2]) or 0.0)
    for model, blocks in ((fixed, False), (marginalization, True)):
        model, ensemble, lattice, at, rng = parts(model)
        groups = FlipGroups([(range(8), range(2))], lattice.allowed)
        chain = SingleChain(ensemble.energy.tables, np.eye(2))
        chain.set(at.kT.item(), at.mu[0].numpy(), groups)
        moves = NeuralMoves(model, ensemble, lattice, at, rng)
        x = np.zeros(8, np.int8)
        chain.load(x, moves.energy(x))
        sizes.clear()
        assert plan_schedule(chain, moves, 8).block_size is None
        assert bool(sizes) == blocks


def test_neural_moves_are_as_frequent_as_their_network_is_cheap():
    """A perceptron uses each weight once, not once a site; its moves are planned accordingly."""
    lattice, ensemble, box = binary()
    at = box.at([[0.9, 0.4]])
    groups = FlipGroups([(range(8), range(2))], lattice.allowed)
    intervals = []
    for network in (
        MLP(lattice, box, width=256, layers=4),
        LatticeTransformer(lattice, box, width=64, blocks=4, heads=2),
    ):
        chain = SingleChain(ensemble.energy.tables, np.eye(2))
        chain.set(at.kT.item(), at.mu[0].numpy(), groups)
        moves = NeuralMoves(AnyOrderARM(network), ensemble, lattice, at, torch.Generator())
        x = np.zeros(8, np.int8)
        chain.load(x, moves.energy(x))
        intervals.append((plan_schedule(chain, moves, 8).interval, network.n_weights))
    (perceptron, many), (shared, few) = intervals
    assert 0.7 < many / few < 1.4 and perceptron < shared / 3


@pytest.mark.parametrize("model", [fixed, marginalization])
def test_moves_sample_the_boltzmann_distribution(model):
    """Chains of global proposals of either model have the exact distribution."""
    model, ensemble, lattice, at, rng = parts(model)
    states = ensemble.enumerate(lattice)
    p = states.probabilities(at).reshape(-1).numpy()
    energies = states.energy.numpy()
    moves = NeuralMoves(model, ensemble, lattice, at, rng)
    moves.expected = 10000
    means = []
    for k in range(24):
        x = states.occupations[k].numpy()
        log_target = -moves.energy(x) / at.kT.item()
        seen = []
        for n in range(120):
            _, x, log_target = moves.step(x, log_target)
            if n >= 40:
                seen.append(energies[int(x @ 2 ** np.arange(8))])
        means.append(np.mean(seen))
    z = (np.mean(means) - p @ energies) / (np.std(means, ddof=1) / np.sqrt(len(means)))
    assert abs(z) < 4


def test_clease_moves_are_refused_when_made(tmp_path):
    """A generator that a fixed order cannot serve is never made."""
    atoms = binary_atoms(tmp_path)
    host = clease_lattice(atoms)
    own = trained(atoms)
    model = TrainedModel(fixed(host, own.range), own.range, own.metadata)
    with pytest.raises(ValueError, match="block of 4 sites"):
        NeuralGlobalMove(model, atoms, block_size=4)
    with pytest.raises(ValueError, match="held cannot come last"):
        NeuralGlobalMove(model, atoms, indices=list(host.site_indices[:-1]))
    with pytest.raises(ValueError, match="fixed composition"):
        NeuralBlockSwap(model, atoms)
    NeuralGlobalMove(model, atoms)


def test_the_clease_drop_in_goes_on_without_neural_moves(tmp_path):
    """A constraint that a fixed order cannot honour costs the neural moves, not the run."""
    atoms = binary_atoms(tmp_path)
    host = clease_lattice(atoms)
    own = trained(atoms)
    model = TrainedModel(fixed(host, own.range), own.range, own.metadata)
    mc = NeuralSGCSampler(atoms, T, ["Au", "Cu"], model=model, neural_interval=1, seed=0)
    mc.run(40, chem_pot=CHEM_POT)
    assert mc.neural_schedule is not None
    mc.generator.add_constraint(FixedIndices([int(host.site_indices[-1])]))
    with pytest.warns(NoModelWarning, match="no neural moves are made: sites that are held"):
        mc.run(40)
    mc.reset_eci()


def test_mchammer_moves_are_refused_when_made():
    """Ensembles with neural steps check the model before the first step."""
    atoms, calculator = mchammer_system()
    atoms.symbols[:3] = "Ag"
    own = mchammer_trained(atoms, calculator)
    host = mchammer_lattice(atoms, calculator)
    model = TrainedModel(fixed(host, own.range), own.range, own.metadata)

    class Mixed(NeuralTrialSteps, SemiGrandCanonicalEnsemble):
        """Semi-grand canonical, with neural moves."""

    mu = {"Ag": 0.0, "Au": 0.0}
    with pytest.raises(ValueError, match="fixed composition"):
        NeuralCanonicalEnsemble(atoms, calculator, T, model=model)
    with pytest.raises(ValueError, match="block of 2 sites"):
        Mixed(atoms, calculator, T, mu, model=model, block_size=2)
    mc = Mixed(atoms, calculator, T, mu, model=model, random_seed=1)
    mc.run(40)
    assert mc.neural_acceptance >= 0
    drop_in = NeuralSGCEnsemble(
        atoms, calculator, T, mu, model=model, neural_interval=1, random_seed=1
    )
    drop_in.run(40)
    assert drop_in.neural_schedule is not None


# ------------------------------------------------------------------ another cell
BOUND = {
    "mlp": lambda lattice, box: AnyOrderARM(MLP(lattice, box, width=8, layers=1)),
    "masked_mlp": fixed,
    "transformer": lambda lattice, box: AnyOrderARM(
        LatticeTransformer(lattice, box, width=8, blocks=1, heads=1)
    ),
    "marginal": lambda lattice, box: MarginalizationModel(
        LatticeConvolution(lattice, box, channels=4, blocks=1), MLP(lattice, box, width=8)
    ),
    "order": lambda lattice, box: FixedOrderARM(
        LatticeConvolution(lattice, box, channels=4, blocks=1), range(lattice.n_sites)
    ),
}


@pytest.mark.parametrize("name", sorted(BOUND))
def test_models_of_one_cell_are_passed_over_or_refused(name, tmp_path):
    """Another cell of the same expansion: no file is found, a given model is refused in words."""
    small, large = binary_atoms(tmp_path), binary_atoms(tmp_path, size=(2, 2, 3))
    own = trained(small)
    model = BOUND[name](clease_lattice(small), own.range)
    file = tmp_path / "model.nn"
    TrainedModel(model, own.range, own.metadata).save(file)
    key = own.metadata["parent_fingerprint"]
    at = Conditions([1000.0], np.zeros((1, 2)))
    assert find_model(key, at, clease_lattice(small), [tmp_path]) is not None
    assert find_model(key, at, clease_lattice(large), [tmp_path]) is None
    for make in (
        lambda: NeuralSGCSampler(large, T, ["Au", "Cu"], model=file),
        lambda: NeuralGlobalMove(file, large),
    ):
        with pytest.raises(ValueError, match=r"8 sites, asked for .*12"):
            make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuralSGCSampler(small, T, ["Au", "Cu"], model=file)
