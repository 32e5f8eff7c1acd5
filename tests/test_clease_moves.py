"""Neural moves in CLEASE's own Monte Carlo classes: exact with the ratio, refused without it."""

import json
import math
import random

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from clease.montecarlo import MetaDynamicsSampler, Montecarlo, RandomFlip, RandomSwap, SGCMonteCarlo
from clease.montecarlo.binned_bias_potential import BinnedBiasPotential
from clease.montecarlo.constraints import (
    ConstrainSwapByBasis,
    FixedElement,
    FixedIndices,
    MCConstraint,
)
from clease.montecarlo.observers import ConcentrationObserver
from clease.montecarlo.trial_move_generator import MixedSwapFlip
from sampler_helpers import FieldModel, binary_atoms, exact, pooled_z, rocksalt_atoms, trained

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.moves import (
    CorrectedMontecarlo,
    CorrectedSGCMonteCarlo,
    MixedMoves,
    NeuralBlockSwap,
    NeuralGlobalMove,
)
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sampler import System
from clease_nn.warnings import OutOfRangeWarning

CHEM_POT = {"c1_0": 0.02}
T = 900


def number_of(occupations):
    """Index of each configuration of a binary lattice."""
    x = np.asarray(occupations, dtype=np.int64)
    return x @ (2 ** np.arange(x.shape[-1]))


def visits(mc, host, steps, **run):
    """Configuration numbers after every step."""
    if run:
        mc.run(0, **run)
    return np.array([number_of(host.occupations(mc.atoms)) for _ in mc.irun(steps)])


def scrambled(atoms, host, seed, p=None, states=None):
    """Put the atoms into a random state, with probabilities ``p`` if given."""
    rng = np.random.default_rng(seed)
    k = rng.choice(len(states), p=p)
    atoms.numbers[:] = host.atoms(states[k]).numbers
    random.seed(seed)


def check_energies(atoms, mc, steps, p, energy, host, states, **run):
    """z of the mean energy and of the likeliest state's probability, by means of 40 batches.

    The chain starts in equilibrium and forgets within a few steps, far fewer than a batch has.
    """
    table = np.full(2**host.n_sites, -1)
    table[number_of(states)] = np.arange(len(p))
    scrambled(atoms, host, 0, p, states)
    seen = table[visits(mc, host, steps, **run)]
    assert (seen >= 0).all()
    if not mc.bias_potentials:
        assert abs(mc.current_energy - energy[seen[-1]]) < 1e-8
    best = int(np.argmax(p))
    assert abs(batch_z(energy[seen], float(p @ energy))) < 4
    assert abs(batch_z(seen == best, p[best])) < 4
    if isinstance(mc, SGCMonteCarlo):
        mc.reset_eci()


def batch_z(values, exact):
    """z of the mean of a series, from the means of 40 batches."""
    return pooled_z(np.asarray(values, dtype=float).reshape(40, -1).mean(1), exact)


def reference(atoms, chem_pot=CHEM_POT, temp=T):
    """(lattice, states, probabilities, E') as arrays."""
    host, states, p, energy = exact(atoms, temp, chem_pot)
    return host, states.numpy(), p.numpy(), energy.numpy()


def fixed(states, p, energy, n):
    """The part of the states with ``n`` sites of species 0."""
    same = (states == 0).sum(1) == n
    return states[same], p[same] / p[same].sum(), energy[same]


# ------------------------------------------------------------------ the right distribution
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("mixed", [False, True])
def test_semi_grand_canonical_averages(tmp_path, block_size, mixed):
    """Global and block moves, alone and among flips, sample exp(-E'/kT)."""
    atoms = binary_atoms(tmp_path)
    host, states, p, energy = reference(atoms)
    moves = NeuralGlobalMove(trained(atoms), atoms, block_size=block_size)
    if mixed:
        moves = MixedMoves([(moves, 1.0), (RandomFlip({"Au", "Cu"}, atoms), 2.0)])
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    check_energies(
        atoms, mc, 2000, p, energy, host, states, call_observers=False, chem_pot=CHEM_POT
    )


@pytest.mark.parametrize(
    ("mixed", "block_size"), [(False, None), (False, 5), (True, None), (True, 5)]
)
def test_canonical_averages(tmp_path, mixed, block_size):
    """Block moves at fixed composition, alone and among swaps, sample exp(-E/kT)."""
    atoms = binary_atoms(tmp_path, seed=2, scale=0.015)
    host, *whole = reference(atoms, {})
    states, p, energy = fixed(*whole, 3)
    scrambled(atoms, host, 0, p, states)
    moves = NeuralBlockSwap(trained(atoms), atoms, block_size=block_size)
    if mixed:
        moves = MixedMoves([(moves, 1.0), (RandomSwap(atoms), 1.0)])
    mc = CorrectedMontecarlo(atoms, T, generator=moves)
    check_energies(atoms, mc, 2000, p, energy, host, states)


def test_an_untrained_network_is_exact(tmp_path):
    """Random weights cost acceptance and nothing else."""
    atoms = binary_atoms(tmp_path)
    host, states, p, energy = reference(atoms)
    good = trained(atoms)
    torch.manual_seed(0)
    network = LatticeConvolution(host, good.range, needs_fields=False)
    with torch.no_grad():
        for w in network.parameters():
            w.add_(0.1 * torch.randn_like(w))
    bad = TrainedModel(AnyOrderARM(network), good.range, good.metadata)
    moves = MixedMoves(
        [(NeuralGlobalMove(bad, atoms), 1.0), (RandomFlip({"Au", "Cu"}, atoms), 1.0)]
    )
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    check_energies(
        atoms, mc, 2000, p, energy, host, states, call_observers=False, chem_pot=CHEM_POT
    )


def test_total_variation_with_and_without_the_ratio(tmp_path):
    """CLEASE's own acceptance is far off with these proposals; with the ratio it is right."""

    class Forgetful(CorrectedSGCMonteCarlo):
        """Takes the ratio and ignores it: what a plain acceptance does."""

        def _do_accept(self, current_energy, new_energy):
            self._asymmetric.take_log_ratio()
            return Montecarlo._do_accept(self, current_energy, new_energy)

    atoms = binary_atoms(tmp_path)
    host, states, p, energy = reference(atoms)
    levels, level = np.unique(energy.round(6), return_inverse=True)
    exact_share = np.bincount(level, p)
    table = np.empty(256, dtype=int)
    table[number_of(states)] = level
    total_variation = {}
    n = 4000
    for cls in (Forgetful, CorrectedSGCMonteCarlo):
        scrambled(atoms, host, 5, p, states)
        moves = NeuralGlobalMove(trained(atoms, softness=0.9), atoms)
        mc = cls(atoms, T, ["Au", "Cu"], generator=moves)
        seen = table[visits(mc, host, n, call_observers=False, chem_pot=CHEM_POT)]
        share = np.bincount(seen, minlength=len(levels)) / n
        total_variation[cls] = 0.5 * np.abs(share - exact_share).sum()
        mc.reset_eci()
    # the mean of |share - p| of n independent draws
    noise = 0.5 * np.sqrt(2 * exact_share * (1 - exact_share) / (math.pi * n)).sum()
    assert total_variation[CorrectedSGCMonteCarlo] < 3 * noise  # the chain repeats itself
    assert total_variation[Forgetful] > 8 * noise


def test_two_sublattices(tmp_path):
    """On rocksalt no species leaves its sublattice, and the canonical averages are exact."""
    atoms = rocksalt_atoms(tmp_path)
    host, states, p, energy = reference(atoms, {})
    start = atoms.numbers.copy()
    on = host.sublattices == host.sublattices[0]
    key = np.stack(
        [(states[:, on] == a).sum(1) for a in range(4)] + [(states == a).sum(1) for a in range(4)],
        1,
    )
    _, inverse, counts = np.unique(key, axis=0, return_inverse=True, return_counts=True)
    same = inverse.ravel() == int(np.argmax(counts))
    states, p, energy = states[same], p[same] / p[same].sum(), energy[same]
    number = {x.tobytes(): k for k, x in enumerate(states)}
    model = TrainedModel(
        FieldModel(0.8), ConditionRange((300, 3000), [-0.3], [0.3], [[0, 1.0, 0, 0]]),
        {**trained(atoms).metadata},
    )  # fmt: skip
    scrambled(atoms, host, 0, p, states)
    moves = NeuralBlockSwap(model, atoms, block_size=6)
    moves.add_constraint(ConstrainSwapByBasis(atoms, atoms.calc.settings.index_by_basis))
    mc = CorrectedMontecarlo(atoms, T, generator=moves)
    seen = [number[host.occupations(atoms).tobytes()] for _ in mc.irun(1600)]
    atoms.numbers[:] = start
    assert abs(batch_z(energy[seen], float(p @ energy))) < 4


def test_constraints_reject_and_clamp(tmp_path):
    """The restricted distribution is exact under clamps, inserts and constraints of one's own."""

    class NoMoreThanFive(MCConstraint):
        """At most five Au."""

        def __init__(self, atoms):
            self.atoms = atoms

        def __call__(self, changes):
            n = int((self.atoms.numbers == 79).sum())
            return n + sum((c.new_symb == "Au") - (c.old_symb == "Au") for c in changes) <= 5

    atoms = binary_atoms(tmp_path)
    host, states, p, energy = reference(atoms)
    au = host.species.index("Au")
    inside = ((states == au).sum(1) <= 5) & (states[:, 1] == au) & (states[:, 4] != au)
    states, p, energy = states[inside], p[inside] / p[inside].sum(), energy[inside]

    moves = MixedMoves(
        [(NeuralGlobalMove(trained(atoms), atoms), 1.0), (RandomFlip({"Au", "Cu"}, atoms), 1.0)]
    )
    moves.add_constraint(FixedIndices([1, 4]))
    moves.add_constraint(NoMoreThanFive(atoms))
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    check_energies(
        atoms, mc, 2000, p, energy, host, states, call_observers=False, chem_pot=CHEM_POT
    )


def test_constraints_replaced_under_way(tmp_path):
    """As many constraints as before, but others: the next move obeys those of now."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[:3] = "Au"
    swap = NeuralBlockSwap(trained(atoms), atoms)
    swap.add_constraint(ConstrainSwapByBasis(atoms, [[0, 1, 2, 3], [4, 5, 6, 7]]))
    mc = CorrectedMontecarlo(atoms, T, generator=swap)
    random.seed(1)
    for _ in mc.irun(20):
        pass
    steps = mc.irun(200)
    next(steps)
    swap.remove_constraints()
    swap.add_constraint(ConstrainSwapByBasis(atoms, [[0, 1, 4, 5], [2, 3, 6, 7]]))
    gold = [int((atoms.numbers[[0, 1, 4, 5]] == 79).sum()) for _ in steps]
    assert mc.num_accepted > 20
    assert len(set(gold)) == 1


def test_fixed_elements_stay(tmp_path):
    """Sites with a fixed element keep it and no other site gets it."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[[0, 3]] = "Au"
    moves = NeuralGlobalMove(trained(atoms), atoms)
    moves.add_constraint(FixedElement("Au"))
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    mc.run(30, chem_pot=CHEM_POT)
    assert mc.num_accepted == 0 and np.flatnonzero(atoms.symbols == "Au").tolist() == [0, 3]
    mc.reset_eci()


def test_swaps_follow_neural_moves(tmp_path):
    """After neural moves a RandomSwap still finds the elements where they are."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[:4] = "Au"
    swap = RandomSwap(atoms)
    inner = MixedMoves([(RandomFlip({"Au", "Cu"}, atoms), 1.0), (swap, 3.0)])
    moves = MixedMoves([(NeuralGlobalMove(trained(atoms), atoms, chem_pot={}), 1.0), (inner, 3.0)])
    mc = CorrectedMontecarlo(atoms, 3000, generator=moves)
    swaps = 0
    for step in mc.irun(300):
        for c in step.last_move:
            if c.name == "swap_move":
                assert c.old_symb != c.new_symb
                now = c.new_symb if step.move_accepted else c.old_symb
                assert atoms.symbols[c.index] == now
                swaps += 1
    assert swaps > 100


def test_swaps_made_before_neural_moves(tmp_path):
    """A later run with an older RandomSwap alone keeps the composition at every step."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[:3] = "Au"
    swaps = RandomSwap(atoms)
    random.seed(0)
    CorrectedMontecarlo(atoms, T, generator=NeuralBlockSwap(trained(atoms), atoms)).run(50)
    mc = CorrectedMontecarlo(atoms, T, generator=swaps)
    assert {int((atoms.numbers == 79).sum()) for _ in mc.irun(100)} == {3}
    assert mc.num_accepted > 10


def test_conditions_do_not_follow_the_chain(tmp_path):
    """From run to run a composition keeps the conditions that the model is asked for."""
    atoms = binary_atoms(tmp_path)
    generator = NeuralBlockSwap(trained(atoms), atoms)
    mc = CorrectedMontecarlo(atoms, T, generator=generator)
    used = []
    for gold in ([0, 1, 2], [0, 3, 6], [1, 4], [2, 5, 7]):
        atoms.symbols[:] = "Cu"
        atoms.symbols[gold] = "Au"
        mc.run(2)
        used.append(generator._moves.conditions)
    assert used[0] is used[1] is used[3]
    assert used[2] is not used[0]


# ------------------------------------------------------------------ bias potentials, metadynamics
def test_bias_potentials_enter_the_acceptance(tmp_path):
    """With a bias on the concentration the chain samples exp(-(E' + bias)/kT)."""
    atoms = binary_atoms(tmp_path)
    host, states, p, energy = reference(atoms)
    count = (states == host.species.index("Au")).sum(1)
    values = np.array([0.0, 0.1, 0.05, -0.05, 0.0, 0.15, 0.0, -0.1, 0.1])
    biased = p * np.exp(-values[count] / (8.617330337217213e-05 * T))
    biased /= biased.sum()
    scrambled(atoms, host, 0, biased, states)
    getter = ConcentrationObserver(atoms, "Au")
    bias = BinnedBiasPotential(-1 / 16, 17 / 16, 9, getter)
    bias.values[:] = values
    bias.evaluate = lambda x: bias.values[bias.get_index(x)]
    mc = CorrectedSGCMonteCarlo(
        atoms, T, ["Au", "Cu"], generator=NeuralGlobalMove(trained(atoms), atoms)
    )
    mc.add_bias(bias)
    mc.attach(getter)

    check_energies(atoms, mc, 2000, biased, energy, host, states, chem_pot=CHEM_POT)


def test_metadynamics_finds_the_free_energy(tmp_path):
    """CLEASE's metadynamics with neural moves: minus the bias is the free energy profile."""
    atoms = binary_atoms(tmp_path, seed=3, scale=0.02)
    host, states, p, _ = reference(atoms, {})
    kT = 8.617330337217213e-05 * T
    count = (states == host.species.index("Au")).sum(1)
    free = -np.log(np.bincount(count, p))
    profiles = []
    for seed in range(4):
        random.seed(seed)
        atoms.symbols[:] = "Cu"
        atoms.symbols[:4] = "Au"
        getter = ConcentrationObserver(atoms, "Au")
        bias = BinnedBiasPotential(-1 / 16, 17 / 16, 9, getter)
        bias.evaluate = lambda x, bias=bias: bias.values[bias.get_index(x)]
        moves = MixedMoves(
            [
                (NeuralGlobalMove(trained(atoms), atoms, chem_pot={}), 1.0),
                (RandomFlip({"Au", "Cu"}, atoms), 3.0),
            ]
        )
        mc = CorrectedMontecarlo(atoms, T, generator=moves)
        meta = MetaDynamicsSampler(
            mc, bias, flat_limit=2.0, mod_factor=0.2, fname=str(tmp_path / "meta.json")
        )
        meta.run(max_sweeps=100)  # never flat: a fixed number of sweeps
        meta.mod_factor = 0.02 * kT
        meta.run(max_sweeps=50)
        rows = []
        meta.add_observer(lambda rows=rows, bias=bias: rows.append(bias.values / kT))
        meta.run(max_sweeps=250)
        profiles.append(-np.mean(rows, 0))
    mean = np.mean(profiles, 0)
    error = np.std(profiles, 0, ddof=1) / 2
    difference = mean - mean.mean() - (free - free.mean())
    # the bias fluctuates by about the square root of 0.02 kT
    assert np.abs(difference).max() < 0.15 + 4 * error.max()
    assert np.ptp(free) > 2
    assert len(json.loads((tmp_path / "meta.json").read_text())["betaG"]["x"]) == 200


# ------------------------------------------------------------------ behaviour
def test_temperature_and_chemical_potential_are_the_current_ones(tmp_path):
    """A change between runs or while one is under way reaches the model at the next move."""
    atoms = binary_atoms(tmp_path)
    moves = NeuralGlobalMove(trained(atoms), atoms)
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    mc.run(5, chem_pot={"c1_0": 0.02})
    assert moves._moves.conditions.temperature.item() == T
    mu = moves._moves.conditions.mu.clone()
    for _ in mc.irun(3):
        mc.temperature = 1200
    assert moves._moves.conditions.temperature.item() == 1200
    mc.run(5, chem_pot={"c1_0": 0.05})
    assert not torch.equal(moves._moves.conditions.mu, mu)
    mc.temperature = 100
    with pytest.warns(OutOfRangeWarning, match="100 K"):
        mc.run(5)
    mc.reset_eci()


def test_runs_repeat_with_pythons_seed(tmp_path):
    """CLEASE is seeded by Python's random; neural moves follow."""
    atoms = binary_atoms(tmp_path)
    host = reference(atoms)[0]
    moves = NeuralGlobalMove(trained(atoms), atoms)
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    runs = []
    for seed in (1, 1, 2):
        atoms.symbols[:] = "Cu"
        random.seed(seed)
        runs.append(visits(mc, host, 40, chem_pot=CHEM_POT).tolist())
    assert runs[0] == runs[1] != runs[2]
    mc.reset_eci()


def test_symmetric_generators_run_as_in_clease(tmp_path):
    """With CLEASE's generators the corrected class makes the very same steps."""
    energies = []
    for cls in (Montecarlo, CorrectedMontecarlo):
        atoms = binary_atoms(tmp_path)
        atoms.symbols[:4] = "Au"
        random.seed(3)
        energies.append([step.energy for step in cls(atoms, T).irun(50)])
    assert energies[0] == energies[1]


def test_symbols_and_indices_limit_the_moves(tmp_path):
    """Only the given atoms change, and MixedSwapFlip mixes with neural moves."""
    atoms = binary_atoms(tmp_path)
    atoms.symbols[:3] = "Au"
    before = atoms.numbers.copy()
    moves = MixedMoves(
        [
            (NeuralGlobalMove(trained(atoms), atoms, symbols=["Au", "Cu"], indices=[4, 5]), 1.0),
            (MixedSwapFlip(atoms, [0, 1, 2, 3], [4, 5], ["Au", "Cu"]), 1.0),
        ]
    )
    moves.add_constraint(FixedIndices([6, 7]))
    mc = CorrectedSGCMonteCarlo(atoms, T, ["Au", "Cu"], generator=moves)
    mc.run(200, chem_pot=CHEM_POT)
    assert (atoms.numbers[6:] == before[6:]).all()
    assert (np.sort(atoms.numbers[:4]) == np.sort(before[:4])).all()
    moves.remove_constraints()
    mc.reset_eci()


def test_any_calculator(tmp_path):
    """With EMT energies and a model of something else the canonical averages are those of EMT."""
    atoms = bulk("Cu", a=3.9) * (2, 2, 1)
    atoms.symbols[:2] = "Au"
    atoms.calc = EMT()
    lattice = Lattice.uniform(atoms, ["Au", "Cu"])

    def emt(lattice, occupations):
        out = []
        for x in occupations:
            a = lattice.atoms(x)
            a.calc = EMT()
            out.append(a.get_potential_energy())
        return torch.tensor(out, dtype=torch.float64)

    states = SemiGrandCanonical(emt).enumerate(lattice)
    at = Conditions([2000.0], [[0.0, 0.0]])
    host, p = lattice, states.probabilities(at).numpy()
    states, p, energy = fixed(states.occupations.numpy(), p, states.energy.numpy(), 2)
    box = ConditionRange((300, 3000), [-0.1], [0.1], [[1.0, -1.0]])
    torch.manual_seed(0)
    model = TrainedModel(AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False)), box)
    system = System(lattice, SemiGrandCanonical(emt), "emt")
    model = TrainedModel(model.model, box, {"parent_fingerprint": "emt"})

    moves = NeuralBlockSwap(model, atoms, block_size=4, system=system)
    mc = CorrectedMontecarlo(atoms, 2000, generator=moves)
    check_energies(atoms, mc, 800, p, energy, host, states)
