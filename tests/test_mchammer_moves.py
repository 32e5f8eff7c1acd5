"""Neural moves in mchammer's own ensembles: exact, restartable, refused where not correctable."""

import random
import warnings

import numpy as np
import pytest
import torch
from mchammer import DataContainer
from mchammer.calculators import ClusterExpansionCalculator
from mchammer.ensembles import (
    CanonicalAnnealing,
    CanonicalEnsemble,
    HybridEnsemble,
    SemiGrandCanonicalEnsemble,
    VCSGCEnsemble,
    WangLandauEnsemble,
)
from mchammer_helpers import exact, rows, system, trained
from sampler_helpers import pooled_z

from clease_nn.hosts.mchammer import NeuralSGCEnsemble
from clease_nn.hosts.mchammer.extraction import lattice as calculator_lattice
from clease_nn.hosts.mchammer.moves import NeuralCanonicalEnsemble, NeuralTrialSteps
from clease_nn.io import TrainedModel
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution
from clease_nn.sampler.keyed import KeyedMoves
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

T = 900


class Mixed(NeuralTrialSteps, SemiGrandCanonicalEnsemble):
    """A user's own semi-grand canonical ensemble with neural moves."""


def untrained(model, host):
    """The same model file with random weights in the network."""
    torch.manual_seed(0)
    network = LatticeConvolution(host, model.range, needs_fields=False)
    with torch.no_grad():
        for w in network.parameters():
            w.add_(0.1 * torch.randn_like(w))
    return TrainedModel(AnyOrderARM(network), model.range, model.metadata)


def check(mc, host, states, p, energy, steps, seed=0):
    """z of energy and likeliest state from 40 runs, each begun afresh in equilibrium.

    Their means are independent and unbiased, however slowly the chain forgets.
    """
    rng = np.random.default_rng(seed)
    number = {x.tobytes(): k for k, x in enumerate(states.astype(np.int8))}
    atoms = host.template.copy()
    seen = []
    for _ in range(40):
        before = len(rows(mc))
        start = host.atoms(states[rng.choice(len(p), p=p)]).numbers
        mc.configuration.set_occupations(start)
        mc.calculator.set_occupations(start)
        mc.run(steps // 40)
        run = []
        for row in rows(mc)[max(before, 1) :]:
            atoms.numbers[:] = row["occupations"]
            run.append(number[host.occupations(atoms).tobytes()])
        assert len(run) == steps // 40
        seen.append(run)
    seen = np.array(seen)
    for values, mean in ((energy[seen], p @ energy), (seen == p.argmax(), p.max())):
        assert abs(pooled_z(values.mean(1), float(mean))) < 4


def one_composition(host, states, p, energy, avoid=None):
    """The part of the states with the most frequent composition of every sublattice."""
    key = np.stack(
        [
            (states[:, host.sublattices == g] == a).sum(1)
            for g in np.unique(host.sublattices)
            for a in range(host.n_species)
        ],
        1,
    )
    keep = np.ones(len(p), dtype=bool) if avoid is None else avoid(states)
    _, inverse, counts = np.unique(key[keep], axis=0, return_inverse=True, return_counts=True)
    same = np.flatnonzero(keep)[inverse.ravel() == int(np.argmax(counts))]
    return states[same], p[same] / p[same].sum(), energy[same]


WRITE = {"trajectory_write_interval": 1, "ensemble_data_write_interval": 10_000, "random_seed": 1}


# ------------------------------------------------------------------ the right distribution
@pytest.mark.parametrize(
    ("name", "block_size"),
    [("binary", None), ("binary", 5), ("ternary", 5), ("salt", None), ("salt", 5), ("inactive", 4)],
)
def test_canonical_averages(name, block_size):
    """Swaps and block moves together sample exp(-E/kT) at fixed composition."""
    atoms, calculator = system(name, scale=0.01)
    host, *whole = exact(atoms, calculator, T, {})
    states, p, energy = one_composition(host, *whole)
    first = {"binary": "Au", "ternary": ["Au", "Pd"], "salt": ["Zn", "S"], "inactive": "Zn"}[name]
    mc = NeuralCanonicalEnsemble(
        host.atoms(states[0]), calculator, T, **WRITE,
        model=trained(atoms, calculator, first), neural_interval=0.3, block_size=block_size,
    )  # fmt: skip
    check(mc, host, states, p, energy, 1200)
    assert mc.neural_acceptance > 0.05


def test_an_untrained_network_is_exact():
    """Random weights cost acceptance and nothing else."""
    atoms, calculator = system(scale=0.01)
    host, *whole = exact(atoms, calculator, T, {})
    states, p, energy = one_composition(host, *whole)
    model = untrained(trained(atoms, calculator), host)
    mc = NeuralCanonicalEnsemble(
        host.atoms(states[0]), calculator, T, **WRITE, model=model, neural_interval=0.25
    )
    check(mc, host, states, p, energy, 800)


@pytest.mark.parametrize("block_size", [None, 3])
def test_semi_grand_canonical_averages(block_size):
    """Flips and neural moves together sample exp[-(E - mu N)/kT]."""
    atoms, calculator = system()
    mu = {"Ag": 0.0, "Au": 0.05}
    host, states, p, energy = exact(atoms, calculator, T, mu)
    mc = Mixed(
        atoms, calculator, T, mu, **WRITE, model=trained(atoms, calculator),
        neural_interval=0.25, block_size=block_size,
    )  # fmt: skip
    check(mc, host, states, p, energy, 1200)
    assert mc.neural_acceptance > 0.05


def test_the_ratio_matters():
    """With the ratio set to zero the same test fails: it has the power to see an error."""

    class Forgetful(Mixed):
        def _propose(self, step, x):
            return super()._propose(step, x)[0], 0.0

    atoms, calculator = system()
    mu = {"Ag": 0.0, "Au": 0.05}
    host, states, p, energy = exact(atoms, calculator, T, mu)
    model = trained(atoms, calculator, softness=1.0)
    mc = Forgetful(atoms, calculator, T, mu, **WRITE, model=model, neural_interval=0.1)
    with pytest.raises(AssertionError):
        check(mc, host, states, p, energy, 1200)


def test_neighbor_sites_to_avoid():
    """Proposals that put atoms on sites to avoid are rejected; the rest is exact."""
    atoms, calculator = system("vacancies", scale=0.01)
    host, *whole = exact(atoms, calculator, T, {})
    vacancy = host.species.index("X")

    def possible(states):
        return ~((states[:, 0] != vacancy) & (states[:, 1] != vacancy))

    states, p, energy = one_composition(host, *whole, avoid=possible)
    mc = NeuralCanonicalEnsemble(
        host.atoms(states[0]), calculator, T, **WRITE, neighbor_sites_to_avoid={0: [1], 1: [0]},
        model=trained(atoms, calculator, ["Au", "X"]), neural_interval=0.5, block_size=4,
    )  # fmt: skip
    check(mc, host, states, p, energy, 1200)
    p, mu = whole[1] * possible(whole[0]), {"Ag": 0.0, "Au": 0.0, "X": 0.0}
    mc = Mixed(
        host.atoms(states[0]), calculator, T, mu, **WRITE,
        neighbor_sites_to_avoid={0: [1], 1: [0]},
        model=trained(atoms, calculator, ["Au", "X"]), neural_interval=0.5,
    )  # fmt: skip
    check(mc, host, whole[0], p / p.sum(), whole[2], 1600)


def test_frozen_sublattices_stay():
    """Neural moves leave sublattices with probability zero alone."""
    atoms, calculator = system("salt")
    atoms.symbols[0] = "Mg" if atoms.symbols[0] == "Zn" else "Zn"
    other = np.flatnonzero(np.isin(atoms.get_chemical_symbols(), ["O", "S"]))
    atoms.symbols[other[0]] = "O" if atoms.symbols[other[0]] == "S" else "S"
    model = trained(atoms, calculator, ["Zn", "S"])
    for cls, options in (
        (NeuralCanonicalEnsemble, {}),
        (Mixed, {"chemical_potentials": dict.fromkeys(["Mg", "Zn", "O", "S"], 0.0)}),
    ):
        mc = cls(
            structure=atoms, calculator=calculator, temperature=3000, **WRITE, model=model,
            sublattice_probabilities=[1, 0], neural_interval=0.2, **options,
        )  # fmt: skip
        mc.run(100)
        seen = np.array([row["occupations"] for row in rows(mc)])
        moved = np.flatnonzero((seen != atoms.numbers).any(0))
        assert len(moved) and np.isin(moved, calculator.sublattices[0].indices).all()


# ------------------------------------------------------------------ restart and containers
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("canonical", [True, False])
def test_a_restart_goes_on(tmp_path, canonical, block_size):
    """Semi-grand canonical: the rows of an uninterrupted run, bit by bit.

    The choice of mchammer's swaps depends on the history of a run; there the restart has the
    state, and the neural proposals from one configuration are those of the uninterrupted run.
    """
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    model = trained(atoms, calculator)

    def make(name):
        options = {
            "random_seed": 5, "dc_filename": str(tmp_path / name), "model": model,
            "trajectory_write_interval": 10, "ensemble_data_write_interval": 5,
            "neural_interval": 0.5, "block_size": block_size,
        }  # fmt: skip
        if canonical:
            return NeuralCanonicalEnsemble(atoms, calculator, T, **options)
        return Mixed(atoms, calculator, T, {"Ag": 0.0, "Au": 0.05}, **options)

    whole = make("a.dc")
    whole.run(120)
    first = make("b.dc")
    first.run(43)
    parts = make("b.dc")
    assert parts.step == 43 and parts.neural_acceptance == first.neural_acceptance
    assert (parts.configuration.occupations == first.configuration.occupations).all()
    parts.run(77)
    a, b = (DataContainer.read(str(tmp_path / f)) for f in ("a.dc", "b.dc"))
    if not canonical:
        assert a._data_list == b._data_list
        assert parts.neural_acceptance == whole.neural_acceptance
        assert a.metadata["neural_moves"] == b.metadata["neural_moves"]
        return
    assert a._data_list[:8] == b._data_list[:8]
    assert a.metadata["neural_moves"]["moves"] == b.metadata["neural_moves"]["moves"]
    lattice = calculator_lattice(atoms, calculator)
    x = lattice.occupations(atoms)
    proposals = []
    for mc in (whole, parts):
        random.seed(3)
        y, log_ratio = mc._propose(120, x)
        proposals.append((y.tolist(), log_ratio))
    assert proposals[0] == proposals[1]


@pytest.mark.parametrize("canonical", [True, False])
def test_another_interval_has_fresh_random_numbers(tmp_path, monkeypatch, canonical):
    """A restart with another interval, which numbers the moves anew, repeats none of them."""
    used = []

    def record(owner, seed):
        restart = owner._restart

        def recorded(moves, *key):
            used.append((getattr(moves, seed), *key))
            restart(moves, *key)

        monkeypatch.setattr(owner, "_restart", recorded)

    record(NeuralTrialSteps, "_root")
    record(KeyedMoves, "_seed")
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    model = trained(atoms, calculator)
    host, given = (
        (NeuralCanonicalEnsemble, ()) if canonical else (Mixed, ({"Ag": 0.0, "Au": 0.05},))
    )
    for interval in (1.0, 3.0, 2.0):
        mc = host(
            atoms, calculator, T, *given, random_seed=5, model=model, neural_interval=interval,
            dc_filename=str(tmp_path / "run.dc"),
        )  # fmt: skip
        mc.run(24 * len(atoms))
    deciding = 2 if canonical else 1
    decisions = [key for key in used if key[1] == deciding]
    assert len(decisions) >= 40 and len(decisions) == len(set(decisions))


def test_seeds_fix_the_run():
    """The same random_seed gives the same run, another one another."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    runs = []
    for seed in (1, 1, 2):
        options = {**WRITE, "random_seed": seed}
        mc = NeuralCanonicalEnsemble(
            atoms, calculator, T, **options, model=trained(atoms, calculator)
        )
        mc.run(60)
        runs.append([row["occupations"] for row in rows(mc)])
    assert runs[0] == runs[1] != runs[2]


def test_mchammer_goes_on_with_the_container(tmp_path):
    """Ensemble parameters are mchammer's, so that either class restarts from the file."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    name = str(tmp_path / "x.dc")
    mc = NeuralCanonicalEnsemble(
        atoms, calculator, T, dc_filename=name, random_seed=1, model=trained(atoms, calculator)
    )
    mc.run(50)
    plain = CanonicalEnsemble(atoms, calculator, T, dc_filename=name)
    assert plain.step == 50 and plain.ensemble_parameters == mc.ensemble_parameters
    plain.run(30)
    again = NeuralCanonicalEnsemble(
        atoms, calculator, T, dc_filename=name, model=trained(atoms, calculator)
    )
    again.run(20)
    assert DataContainer.read(name).data.mctrial.iloc[-1] == 96 and again.step == 100


def test_mchammers_own_steps_are_unchanged():
    """Without a model every step is mchammer's, random numbers included, and it is said."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    plain = CanonicalEnsemble(atoms, calculator, T, random_seed=4)
    plain.run(64)
    with pytest.warns(NoModelWarning, match="mchammer's"):
        mc = NeuralCanonicalEnsemble(atoms, calculator, T, random_seed=4)
    mc.run(64)
    assert mc.data_container.data.potential.tolist() == plain.data_container.data.potential.tolist()
    assert np.isnan(mc.neural_acceptance)


# ------------------------------------------------------------------ refusals
def test_ensembles_that_cannot_be_corrected_are_refused():
    """Other distributions, other acceptances and other trial steps: TypeError before the start."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    model = trained(atoms, calculator)

    class OwnAcceptance(CanonicalEnsemble):
        def _acceptance_condition(self, potential_diff):
            return potential_diff < 0.1

    class OwnSteps(SemiGrandCanonicalEnsemble):
        def _do_trial_step(self):
            return 0

    mu = {"chemical_potentials": {"Ag": 0.0, "Au": 0.0}}
    cases = [
        (VCSGCEnsemble, {"temperature": T, "phis": {"Au": -1.0}, "kappa": 200}, "neither"),
        (WangLandauEnsemble, {"energy_spacing": 0.1}, "neither"),
        (CanonicalAnnealing, {"T_start": 900, "T_stop": 300, "n_steps": 10}, "neither"),
        (
            HybridEnsemble,
            {
                "temperature": T,
                "ensemble_specs": [{"ensemble": "canonical", "sublattice_index": 0}],
            },
            "neither",
        ),
        (OwnAcceptance, {"temperature": T}, "_acceptance_condition of its own"),
        (OwnSteps, {"temperature": T, **mu}, "_do_trial_step of its own"),
        (NeuralSGCEnsemble, {"temperature": T, **mu}, "_run of its own"),
    ]
    for base, options, text in cases:
        cls = type("Mine", (NeuralTrialSteps, base), {})
        with pytest.raises(TypeError, match=text):
            cls(structure=atoms, calculator=calculator, model=model, **options)
    with pytest.raises(TypeError, match="neither"):
        NeuralTrialSteps(model=model)
    below = {"_acceptance_condition": lambda self, potential_diff: potential_diff < 0.1}
    swap = {"do_canonical_swap": lambda self, **arguments: 0}
    for methods in (below, swap):  # in a class derived from ours
        cls = type("Mine", (NeuralCanonicalEnsemble,), methods)
        with pytest.raises(TypeError, match=f"{next(iter(methods))} of its own"):
            cls(atoms, calculator, T, model=model)


def test_a_composition_changed_by_hand_is_kept():
    """Between runs the user replaces an atom; neural moves go on with what is there."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    model, every_step = trained(atoms, calculator), 1 / len(atoms)
    mc = NeuralCanonicalEnsemble(
        atoms, calculator, T, random_seed=1, model=model, neural_interval=every_step
    )
    mc.run(5)
    silver = np.flatnonzero(mc.configuration.occupations == 47)
    mc.update_occupations([int(silver[0])], [79])
    mc.run(20)
    assert mc.neural_acceptance > 0.2
    assert (mc.configuration.occupations == 47).sum() == len(silver) - 1


def test_bad_input():
    """Foreign models, calculators and numbers are named in the error."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    model = trained(atoms, calculator)
    with pytest.raises(TypeError, match="path of a"):
        NeuralCanonicalEnsemble(atoms, calculator, T, model=model.model)
    other = system(seed=3)[1]
    with pytest.raises(ValueError, match="another energy"):
        NeuralCanonicalEnsemble(atoms, other, T, model=model)
    with pytest.raises(ValueError, match="neural_interval"):
        NeuralCanonicalEnsemble(atoms, calculator, T, model=model, neural_interval=0)
    with pytest.raises(ValueError, match="2 or more"):
        NeuralCanonicalEnsemble(atoms, calculator, T, model=model, block_size=1)
    with pytest.raises(ValueError, match="unknown species"):
        NeuralCanonicalEnsemble(atoms, calculator, T, model=model, chemical_potentials={"Cu": 0})
    with pytest.raises(ValueError, match="fixed composition"):
        Mixed(atoms, calculator, T, {"Ag": 0, "Au": 0}, model=model, guide={"Au": 0})

    class Shifted(ClusterExpansionCalculator):
        def calculate_total(self, *, occupations):
            return super().calculate_total(occupations=occupations) + 1

    shifted = Shifted(atoms, calculator.cluster_expansion)
    with pytest.raises(TypeError, match="more than its cluster"):
        NeuralCanonicalEnsemble(atoms, shifted, T, model=model)


def test_guides_and_ranges():
    """Given chemical potentials are asked for; outside the range one warning, and exact moves."""
    atoms, calculator = system()
    atoms.symbols[:3] = "Ag"
    model = trained(atoms, calculator, temps=(800.0, 1000.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutOfRangeWarning)
        mc = NeuralCanonicalEnsemble(
            atoms, calculator, T, model=model, chemical_potentials={"Ag": 0.1, "Au": 0.3}
        )
        mc.run(20)
    assert mc._moves.conditions.mu.tolist() == [[0.0, pytest.approx(0.2)]]
    mc = NeuralCanonicalEnsemble(atoms, calculator, 2000, model=model)
    with pytest.warns(OutOfRangeWarning, match="2000 K") as caught:
        mc.run(40)
    assert sum(w.category is OutOfRangeWarning for w in caught) == 1
