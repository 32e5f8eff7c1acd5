"""Models of small cells serve larger ones of the same parent, in both hosts, exactly."""

import warnings
from dataclasses import replace
from pathlib import Path

import mchammer_helpers
import numpy as np
import pytest
import sampler_helpers
import torch
from ase.build import bulk

from clease_nn import NeuralSGCEnsemble, NeuralSGCSampler
from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM, WindowedModel
from clease_nn.networks import MLP, LatticeConvolution
from clease_nn.sampler.scaling import is_larger, serving
from clease_nn.warnings import CleaseNNWarning, InterruptedWarning

T, X = 900.0, 0.05
TRAINING = {"max_steps": 15, "progress": False, "validation_samples": 8, "batch_size": 32}

pytestmark = pytest.mark.filterwarnings("ignore::clease_nn.warnings.TrainingWarning")


class CleaseHost:
    """A cell of 4 sites trained on, one of 16 to be sampled."""

    mu = {"c1_0": X}
    small, large = (2, 2, 1), (2, 2, 4)
    ranges = {"temps": (600, 1800), "chem_pots": {"c1_0": (-0.1, 0.1)}}

    def __init__(self, folder):
        self.folder = folder

    def atoms(self, size, **kwargs):
        """Supercell with the calculator."""
        return sampler_helpers.binary_atoms(self.folder, size, scale=0.01, **kwargs)

    def make(self, size, **kwargs):
        """A sampler; the same for both hosts."""
        mc = NeuralSGCSampler(self.atoms(size), T, symbols=["Au", "Cu"], seed=1, **kwargs)
        mc.chemical_potential = self.mu
        return mc

    def trained(self, size, softness=0.6):
        """The imperfect model, as if trained on a small cell."""
        model = sampler_helpers.trained(self.atoms(size), softness=softness)
        return replace(model, metadata={**model.metadata, "n_sites": int(np.prod(size))})

    def exact(self, size):
        """ln Z, <E> and share of the first species, by enumeration."""
        host, x, p, e = sampler_helpers.exact(self.atoms(size), T, self.mu)
        energy = sampler_helpers.energy(self.atoms(size))(host, x)
        log_z = float(torch.logsumexp(-e / (T * 8.617330337217213e-05), 0))
        return log_z, float(p @ energy), float(p @ (x == 0).double().mean(1))

    def sample(self, mc, n, **kwargs):
        """Rows at the condition."""
        return mc.sample(n, chem_pot=self.mu, **kwargs)


class MchammerHost(CleaseHost):
    """The same with an expansion of icet."""

    mu = {"Au": X, "Ag": 0.0}
    ranges = {"temps": (600, 1800), "chem_pots": {"Au": (-0.1, 0.1)}}

    def atoms(self, size, **kwargs):
        """Supercell and calculator."""
        return mchammer_helpers.system("binary", scale=0.01, size=size, **kwargs)

    def make(self, size, **kwargs):
        """An ensemble."""
        atoms, calculator = self.atoms(size)
        return NeuralSGCEnsemble(atoms, calculator, T, self.mu, random_seed=1, **kwargs)

    def trained(self, size, softness=0.6):
        """The imperfect model."""
        model = mchammer_helpers.trained(*self.atoms(size), softness=softness)
        return replace(model, metadata={**model.metadata, "n_sites": int(np.prod(size))})

    def exact(self, size):
        """ln Z, <E> and share of the first species, by enumeration."""
        host, x, p, e = mchammer_helpers.exact(*self.atoms(size), T, self.mu)
        kT = float(Conditions([T], [[0.0, 0.0]]).kT)
        n = (x == host.species.index("Au")).sum(1)
        a = -(e - X * n) / kT
        log_z = float(np.log(np.exp(a - a.max()).sum()) + a.max())
        return log_z, float(p @ e), float(p @ (x == 0).mean(1))

    def sample(self, mc, n, **kwargs):
        """Rows at the condition."""
        return mc.sample(n, chemical_potentials=self.mu, **kwargs)


@pytest.fixture(params=[CleaseHost, MchammerHost], ids=["clease", "mchammer"])
def host(request, tmp_path, nowhere):
    """Either host."""
    return request.param(tmp_path)


def check(c, exact, n_sites):
    """z of all averages against enumeration, within 4.5."""
    from clease_nn.thermodynamics import averages

    [a] = averages(c)
    z = [a.energy.z(exact[1]), a.composition[0].z(exact[2])]
    if a.log_z is not None:
        z.append(a.log_z.z(exact[0]))
    assert np.abs(z).max() < 4.5, z
    assert a.n_sites == n_sites


# ------------------------------------------------------------------ sampling
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_a_model_of_a_small_cell_gives_the_averages_of_a_larger_one(host):
    """Weighted rows, unweighted chains and free energy of 16 sites agree with enumeration."""
    exact = host.exact(host.large)
    mc = host.make(host.large, model=host.trained(host.small))
    c = host.sample(mc, 600)
    assert c.log_prob is not None
    [told] = c.provenance["routes"]
    assert told["route"] in ("importance", "annealing")
    assert "pilot draws" in told["reason"]
    check(c, exact, 16)
    check(host.sample(mc, 600, weighted=False), exact, 16)
    f = mc.free_energy(n=600)
    kT = float(Conditions([T], [[0.0, 0.0]]).kT)
    assert abs(f.z(-kT * exact[0])) < 4.5


@pytest.mark.parametrize("route", ["importance", "annealing", "refine"])
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_every_route_that_is_asked_for_is_exact(host, route):
    """Also of a poor model: routes differ in errors, not in what they estimate."""
    mc = host.make(host.large, model=host.trained(host.small, softness=0.3))
    c = host.sample(mc, 600, route=route, weighted=route != "refine")
    assert (c.chain is not None) == (route == "refine")
    check(c, host.exact(host.large), 16)


def test_grids_go_through_routes(host):
    """Rows of a grid are weighted, in order, and told apart by their routes."""
    mc = host.make(host.large, model=host.trained(host.small))
    names = {"c1_0": [-X, X]} if isinstance(mc, NeuralSGCSampler) else {"Au": [-X, X], "Ag": 0.0}
    c = mc.sample_grid(40, [800.0, T], names, progress=False)
    assert len(c) == 160
    assert c.log_prob is not None
    assert len(c.provenance["routes"]) == 4
    assert c.conditions.temperature.tolist() == [800.0] * 80 + [T] * 80


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_interrupted_grids_stop_at_what_was_finished(host, monkeypatch):
    """Ctrl-C within a batch of routes: its finished conditions come back, nothing after them."""
    from clease_nn.sampling import by_route

    real, calls = by_route._Run.importance, []

    def interrupted(self, routes):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, routes)

    monkeypatch.setattr(by_route._Run, "importance", interrupted)
    monkeypatch.setattr(by_route, "_AT_ONCE", 1)  # one condition at a time
    monkeypatch.setattr("clease_nn.sampler.service._ROUTED", 40)  # two in a batch
    monkeypatch.setattr("clease_nn.sampling.routes.GOOD_NESS", 0.0)
    mc = host.make(host.large, model=host.trained(host.small))
    names = {"c1_0": [X]} if isinstance(mc, NeuralSGCSampler) else {"Au": [X], "Ag": 0.0}
    with pytest.warns(InterruptedWarning, match="1 of 4 conditions"):
        c = mc.sample_grid(20, [700.0, 800.0, T, 1000.0], names, progress=False)
    assert c.conditions.temperature.tolist() == [700.0] * 20
    assert len(c.provenance["routes"]) == 1


def test_small_cells_are_sampled_as_ever(host):
    """On the cell of the training no pilot is drawn, and rows are independent draws."""
    mc = host.make(host.small, model=host.trained(host.small))
    c = host.sample(mc, 50)
    assert "routes" not in c.provenance
    assert c.step is not None


def test_the_route_says_why(host):
    """Name, NESS and reason of the route, without any rows."""
    mc = host.make(host.large, model=host.trained(host.small))
    route = mc.route(200)
    assert route.name in ("importance", "annealing")
    assert "pilot draws have NESS" in str(route)
    assert f"T = {T:g} K" in str(route)
    averages_only = host.make(host.large, model=host.trained(host.small, softness=0.01))
    assert averages_only.route(200, weighted=False).name in ("importance", "refine")


def test_routes_that_give_no_such_rows_are_refused(host):
    """Chains have no weights, annealed draws are weighted, other names are unknown."""
    mc = host.make(host.large, model=host.trained(host.small))
    with pytest.raises(ValueError, match="gives chains, without weights"):
        host.sample(mc, 10, route="refine")
    with pytest.raises(ValueError, match="gives weighted draws"):
        host.sample(mc, 10, route="annealing", weighted=False)
    with pytest.raises(ValueError, match="route must be"):
        host.sample(mc, 10, route="fast")


# ------------------------------------------------------------------ training small, using large
@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_training_on_a_small_cell_serves_the_large_one(host):
    """fit(train_on=...) by size, by atoms and on several cells; the file is found later."""
    mc = host.make(host.large)
    trained = mc.fit(**host.ranges, train_on=host.small, **TRAINING)
    assert trained.metadata["n_sites"] == 4
    assert trained.metadata["cells"] == [4]
    check(host.sample(mc, 600), host.exact(host.large), 16)
    mc.save("small.nn")
    other = host.make(host.large)
    assert len(host.sample(other, 20)) == 20
    assert other.trained.metadata["n_sites"] == 4


def test_training_on_atoms_and_on_several_cells(host):
    """Atoms of a small cell do as well as its size; of several cells the largest is validated."""
    mc = host.make(host.large)
    atoms = host.atoms(host.small)
    cell = atoms if isinstance(mc, NeuralSGCSampler) else atoms[1]
    assert mc.fit(**host.ranges, train_on=cell, **TRAINING).metadata["cells"] == [4]
    plain = atoms if isinstance(mc, NeuralSGCSampler) else atoms[0]
    plain = plain.copy()
    plain.calc = None
    found = mc.fit(**host.ranges, train_on=[(2, 2, 2), plain], **TRAINING).metadata
    assert found["cells"] == [4, 8]
    assert found["n_sites"] == 8


def test_cells_of_other_systems_are_refused(host):
    """Another parent lattice, other parameters, no size, nothing at all: errors in words."""
    mc = host.make(host.large)
    for cell in (bulk("Cu", a=3.0) * 2, bulk("Cu", "bcc", a=3.8) * 2):
        with pytest.raises(ValueError, match="primitive"):
            mc.fit(**host.ranges, train_on=cell, **TRAINING)
    other = host.atoms(host.small, seed=7)
    other = other if isinstance(mc, NeuralSGCSampler) else other[1]
    with pytest.raises(ValueError, match="to train on ha(s|ve) another expansion"):
        mc.fit(**host.ranges, train_on=other, **TRAINING)
    for wrong in ("small", (2, 2), (2, 2, 0), 3):
        with pytest.raises(TypeError, match="such as"):
            mc.fit(**host.ranges, train_on=wrong, **TRAINING)
    with pytest.raises(ValueError, match="train_on is empty"):
        mc.fit(**host.ranges, train_on=[], **TRAINING)
    with pytest.raises(ValueError, match="several cells are trained on by the default recipe"):
        mc.fit(**host.ranges, train_on=[(2, 2, 1), (2, 2, 2)], recipe="segal", **TRAINING)


@pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")
def test_models_of_one_cell_draw_larger_ones_in_windows(host):
    """An MLP of 4 sites serves 16 window by window, exactly, with a note."""
    mc = host.make(host.large)
    mc.fit(**host.ranges, train_on=host.small, recipe="any_order", **TRAINING)
    with pytest.warns(CleaseNNWarning, match="windows of that cell, which costs likelihood"):
        c = host.sample(mc, 600)
    check(c, host.exact(host.large), 16)
    assert not isinstance(mc.trained.model, WindowedModel)  # what is saved is the model itself


def test_chains_of_large_cells_use_the_model(host):
    """run() makes neural moves with a model of a small cell."""
    mc = host.make(host.large, model=host.trained(host.small), neural_interval=2)
    if isinstance(mc, NeuralSGCSampler):
        mc.run(320, chem_pot=host.mu)
    else:
        mc.run(320)
    assert "asked for" in mc.neural_schedule.reason


# ------------------------------------------------------------------ forms of a model
def convolution(lattice, box):
    """A model for every cell of a parent lattice, as if trained on this one."""
    model = AnyOrderARM(LatticeConvolution(lattice, box, channels=4, blocks=1, needs_fields=False))
    return TrainedModel(model, box, {"n_sites": lattice.n_sites})


def test_models_of_every_cell_serve_larger_ones_as_they_are():
    """Nothing is changed, and who was trained on fewer sites is known."""
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    small, large = Lattice.square(4), Lattice.square(12)
    trained = convolution(small, box)
    assert serving(trained, small) == serving(trained, large) == (trained, "")
    assert is_larger(trained, large)
    assert not is_larger(trained, small)
    assert not is_larger(convolution(large, box), small)
    assert not is_larger(replace(trained, metadata={}), large)  # nobody knows


def test_models_of_one_cell_need_to_know_it():
    """Without its cell, or for a smaller one, a bound model is refused as ever."""
    box = ConditionRange((600, 2400), [-0.1], [0.1], [[1.0, -1.0]])
    small, large = Lattice.square(3), Lattice.square(5)
    model = AnyOrderARM(MLP(small, box, width=8, layers=1, needs_fields=False))
    known = {"n_sites": 9, "lattice": small.to_dict()}
    served, said = serving(TrainedModel(model, box, known), large)
    assert isinstance(served.model, WindowedModel)
    assert "cell of 9 sites" in said
    for meta, lattice in (({"n_sites": 9}, large), (known, Lattice.square(2))):
        with pytest.raises(ValueError, match="was made for the cell"):
            serving(TrainedModel(model, box, meta), lattice)
    triangular = Lattice.uniform(bulk("Cu") * (3, 3, 3), ("Cu", "Au"))
    with pytest.raises(ValueError, match="nor in windows"):
        serving(TrainedModel(model, box, known), triangular)


def test_other_energies_cannot_be_trained_on_another_cell(nowhere):
    """A sampler of any energy says how to go about it."""
    from ase.calculators.emt import EMT

    atoms = bulk("Cu", a=3.8, cubic=True)
    atoms.calc = EMT()
    mc = NeuralSGCSampler(atoms, 800, ["Au", "Cu"], seed=1, neural_interval=None)
    with pytest.raises(ValueError, match="give its model to this one"):
        mc.fit(temps=(600, 900), chem_pots={"Au": (-0.1, 0.1)}, train_on=(1, 1, 1))


def test_the_example_agrees_with_chains(monkeypatch):
    """examples/larger_cell.py, in short, gives the energies of chains of the large cell."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import larger_cell

    with warnings.catch_warnings():
        found = larger_cell.main(["--short"])
    assert np.abs(found["z"]).max() < 4.5
