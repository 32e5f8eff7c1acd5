"""Laws of drawing at many conditions at once, from either host."""

import numpy as np
import pytest
import sampler_helpers as clease_side
import torch

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import NeuralSGCSampler, energy, lattice, mu_from_chem_pot
from clease_nn.sampler import ModelService, potential_grid, temperature_grid
from clease_nn.warnings import InterruptedWarning, OutOfRangeWarning

TEMPS = [500.0, 800.0, 1200.0]
X = [-0.05, 0.0, 0.04]


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """16 sites of a random Cu-Au expansion, and a model that is not exact."""
    atoms = clease_side.binary_atoms(tmp_path_factory.mktemp("grid"), (2, 2, 4), scale=0.01)
    return atoms, clease_side.trained(atoms)


def sampler(cell, **options):
    """A sampler of its own, so that tests do not share random numbers."""
    atoms, model = cell
    given = {"seed": 1, "model": model, "neural_interval": None, **options}
    return NeuralSGCSampler(atoms, 800, ["Au", "Cu"], **given)


def z_scores(c, exact, values):
    """z of unbiased weighted means of ``values`` (rows, k) against exact ones, per condition."""
    n, out = len(c) // len(exact), []
    for k, (log_z, means) in enumerate(exact):
        rows = slice(k * n, (k + 1) * n)
        w = (c.log_weight[rows] - log_z).exp().numpy()
        v = np.column_stack([np.ones(n), values[rows]])
        terms = w[:, None] * v
        error = terms.std(0, ddof=1) / np.sqrt(n)
        out.append((terms.mean(0) - np.append(1.0, means)) / error)
    return np.array(out)


def exact_means(states, mus, counts):
    """[(ln Z, mean energy and mean count)] over the grid, temperature slowest."""
    grid = Conditions.grid(TEMPS, mus)
    values = torch.stack([states.energy, torch.as_tensor(counts, dtype=torch.float64)], 1)
    means = states.mean(grid, values).numpy()
    return list(zip(states.log_z(grid).numpy(), means, strict=True))


@pytest.fixture(scope="module")
def drawn(cell):
    """600 configurations at each of nine conditions, and the exact means."""
    atoms, _ = cell
    host = lattice(atoms)
    states = SemiGrandCanonical(energy(atoms)).enumerate(host)
    mus = [mu_from_chem_pot(atoms, host, {"c1_0": x}) for x in X]
    exact = exact_means(states, np.array(mus), (states.occupations == 0).sum(1))
    return sampler(cell).sample_grid(600, TEMPS, {"c1_0": X}, progress=False), exact


def test_grid_agrees_with_enumeration(drawn):
    """1, E and N_Au weighted agree with exact means at every condition, errors not too large."""
    c, exact = drawn
    z = z_scores(c, exact, np.column_stack([c.energy.numpy(), c.counts()[:, 0].numpy()]))
    assert np.abs(z).max() < 4.5
    assert 0.5 < z.std() < 1.6


def test_grid_is_like_repeated_samples(cell, drawn):
    """Rows come condition by condition, temperature slowest, each as ``sample`` would give it."""
    c, exact = drawn
    mc = sampler(cell, seed=2)
    singles = [mc.sample(600, temp=t, chem_pot={"c1_0": x}) for t in TEMPS for x in X]
    for k, one in enumerate(singles):
        rows = slice(600 * k, 600 * (k + 1))
        assert torch.equal(c.conditions.temperature[rows], one.conditions.temperature)
        assert torch.equal(c.conditions.mu[rows], one.conditions.mu)
        a, b = (p.log_weight.exp() / np.exp(exact[k][0]) for p in (c[rows], one))
        error = torch.sqrt((a.var() + b.var()) / 600)
        assert abs(float((a.mean() - b.mean()) / error)) < 4.5


def test_grid_is_fixed_by_the_seed(cell):
    """Two samplers with one seed draw the same; the next call draws others."""
    first, second = (sampler(cell, seed=5) for _ in range(2))
    grid = [700, 900], [{"c1_0": 0.01}, {"c1_0": -0.02}]
    a = first.sample_grid(7, *grid, progress=False)
    assert torch.equal(a.occupations, second.sample_grid(7, *grid, progress=False).occupations)
    assert not torch.equal(a.occupations, first.sample_grid(7, *grid, progress=False).occupations)


def test_cost_of_a_grid_is_that_of_all_draws(drawn):
    """The provenance counts every energy."""
    c, _ = drawn
    assert c.provenance["energy_evaluations"] == len(c) == 5400
    assert c.provenance["network_passes"] >= 9 * 16
    assert c.provenance["seconds"] > 0


def test_scores_are_those_of_the_conditions(drawn):
    """log_target is -(E - mu.N)/kT row by row."""
    c, _ = drawn
    expected = -(c.energy - (c.counts() * c.conditions.mu).sum(1)) / c.conditions.kT
    assert torch.allclose(c.log_target, expected, atol=1e-9)


def test_density_of_states_from_one_call(cell):
    """ln Z between the conditions of the grid, and its error, agree with enumeration."""
    mc = sampler(cell, seed=3)
    states = mc.ensemble.enumerate(mc.lattice)
    dos = mc.density_of_states(400, TEMPS, {"c1_0": X}, progress=False)
    between = Conditions.cat([mc.line("c1_0").at(t, [-0.03, 0.02]) for t in (600.0, 1000.0)])
    found = dos.log_z(between)
    z = (found.value - states.log_z(between).numpy()) / found.error
    assert np.abs(z).max() < 4.5
    assert dos.cost.energy_evaluations == 3600


def _interrupted(monkeypatch, calls):
    """Ctrl-C in the call of that number."""
    draw, count = ModelService._draw, [0]

    def draw_until(self, *args):
        count[0] += 1
        if count[0] > calls:
            raise KeyboardInterrupt
        return draw(self, *args)

    monkeypatch.setattr(ModelService, "_draw", draw_until)


def test_interrupt_keeps_finished_conditions(cell, monkeypatch):
    """After Ctrl-C the leading conditions are returned, whole, with a warning that counts them."""
    _interrupted(monkeypatch, 2)
    with pytest.warns(InterruptedWarning, match="2 of 4 conditions"):
        c = sampler(cell).sample_grid(1024, [600, 700, 800, 900], {"c1_0": 0.0}, progress=False)
    assert len(c) == 2048
    assert sorted(set(c.conditions.temperature.tolist())) == [600, 700]
    assert c.provenance["energy_evaluations"] == 2048


def test_interrupt_before_anything_is_finished_goes_on(cell, monkeypatch):
    """Without a finished condition Ctrl-C is not swallowed."""
    _interrupted(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        sampler(cell).sample_grid(10, [600, 700], {"c1_0": 0.0}, progress=False)


def test_conditions_out_of_range_are_named_once(cell):
    """One warning says how many conditions lie outside and names the first."""
    with pytest.warns(OutOfRangeWarning, match=r"2 of 4 conditions, the first: T = 250 K") as seen:
        c = sampler(cell).sample_grid(5, [250, 600], {"c1_0": [0.0, 0.1]}, progress=False)
    assert len(c) == 20
    assert sum(w.category is OutOfRangeWarning for w in seen) == 1
    assert all(w.filename == __file__ for w in seen)


def test_strict_sampler_raises_before_drawing(cell, monkeypatch):
    """With ``out_of_range="raise"`` nothing is drawn if any condition lies outside."""
    _interrupted(monkeypatch, 0)
    mc = sampler(cell, out_of_range="raise")
    with pytest.raises(ValueError, match="T = 3500 K.*outside the trained range"):
        mc.sample_grid(5, [600, 3500], {"c1_0": 0.0}, progress=False)


@pytest.mark.parametrize(
    ("n", "temps", "chem_pots", "error", "text"),
    [
        (0, 600, {"c1_0": 0.0}, ValueError, "n must be a positive integer"),
        (2.5, 600, {"c1_0": 0.0}, TypeError, "n must be a positive integer"),
        (5, [], {"c1_0": 0.0}, ValueError, "temps is empty"),
        (5, [600, -1], {"c1_0": 0.0}, ValueError, "positive, got -1 K"),
        (5, [600, np.nan], {"c1_0": 0.0}, ValueError, "temps must be finite"),
        (5, "hot", {"c1_0": 0.0}, TypeError, "temps must be numbers"),
        (5, [[600]], {"c1_0": 0.0}, ValueError, "one-dimensional"),
        (5, 600, {}, ValueError, "chem_pots is empty"),
        (5, 600, [], ValueError, "chem_pots is empty"),
        (5, 600, {"c1_0": []}, ValueError, "chem_pots.'c1_0'. is empty"),
        (5, 600, {"c1_0": "low"}, TypeError, "must be numbers in eV"),
        (5, 600, 0.1, TypeError, "mapping or a list of mappings"),
        (5, 600, [0.1], TypeError, "each of chem_pots must be a mapping"),
        (5, 600, {"Pd": [0.1]}, ValueError, "unknown chemical potential 'Pd'"),
        (5, 600, [{"c1_0": np.inf}], ValueError, "must be finite"),
        (5, 600, {"c1_0": 0.0, "Au": 0.1}, ValueError, "mix singlets and elements"),
    ],
)
def test_bad_grids(cell, n, temps, chem_pots, error, text):
    """What is wrong with a grid is named."""
    with pytest.raises(error, match=text):
        sampler(cell).sample_grid(n, temps, chem_pots, progress=False)


def test_no_model_to_draw_from(cell, tmp_path, monkeypatch):
    """Without a model the error says how to get one."""
    monkeypatch.setenv("CLEASE_NN_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="train one with fit"):
        sampler(cell, model=None).sample_grid(5, 600, {"c1_0": 0.0}, progress=False)


def test_lines_are_in_the_hosts_scale(cell):
    """A point of a line has the chemical potentials that the host means by its position."""
    atoms, _ = cell
    mc = sampler(cell)
    host = lattice(atoms)
    for line, form in [
        (mc.line("c1_0"), lambda t: {"c1_0": t}),
        (mc.line("Au"), lambda t: {"Au": t}),
        (mc.line("Cu", at={"Au": 0.1}), lambda t: {"Cu": t, "Au": 0.1}),
        (mc.line("Cu", "Au", at={"Au": 0.1}), lambda t: {"Cu": t + 0.1, "Au": 0.1}),
    ]:
        for t in (-0.1, 0.03):
            expected = mu_from_chem_pot(atoms, host, form(t))
            assert line.at(500.0, [t]).mu[0].numpy() == pytest.approx(expected, abs=1e-12)
    assert [mc.line(*a).label for a in [("c1_0",), ("Au",), ("Cu", "Au")]] == [
        "c1_0 (eV)", "mu_Au (eV)", "mu_Cu - mu_Au (eV)",
    ]  # fmt: skip
    assert mc.line("c1_0").species == "Au"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("Pd",), "unknown chemical potential 'Pd'"),
        (("Au", "Pd"), "species 'Pd' is none"),
        (("Au", "Au"), "two different species"),
        (("c1_0", "Au"), "no element"),
        (("Au", None, {"Au": 0.1}), "varies along the line"),
    ],
)
def test_bad_lines(cell, args, text):
    """A line of something that does not vary is refused."""
    with pytest.raises(ValueError, match=text):
        sampler(cell).line(*args)


def test_grids_of_several_names():
    """All combinations, the last name fastest; a list is taken as it is."""
    assert potential_grid({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip
    assert potential_grid([{"a": 1}, {"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert temperature_grid(300) == [300.0]


# ------------------------------------------------------------------ mchammer
def mchammer_ensemble(**options):
    """16 sites of a random Ag-Au expansion with an imperfect model."""
    pytest.importorskip("icet")
    import mchammer_helpers as icet_side

    from clease_nn.hosts.mchammer import NeuralSGCEnsemble

    atoms, calculator = icet_side.system("binary", scale=0.01, size=(2, 2, 4))
    model = icet_side.trained(atoms, calculator)
    given = {"temperature": 800, "chemical_potentials": {"Ag": 0.0, "Au": 0.0}, "random_seed": 3}
    return NeuralSGCEnsemble(
        atoms, calculator, model=model, neural_interval=None, **{**given, **options}
    )


def test_grid_of_mchammer_agrees_with_enumeration():
    """As with CLEASE; chemical potentials of both elements count, in mchammer's gauge."""
    ensemble = mchammer_ensemble()
    states = ensemble.ensemble.enumerate(ensemble.lattice)
    mus = np.array([[0.1, 0.1 + x] for x in X])
    exact = exact_means(states, mus, (states.occupations == 1).sum(1))
    c = ensemble.sample_grid(600, TEMPS, {"Ag": 0.1, "Au": [0.1 + x for x in X]}, progress=False)
    assert c.conditions.mu[::600].numpy() == pytest.approx(np.tile(mus, (3, 1)))
    z = z_scores(c, exact, np.column_stack([c.energy.numpy(), c.counts()[:, 1].numpy()]))
    assert np.abs(z).max() < 4.5
    assert 0.5 < z.std() < 1.6


def test_grid_of_mchammer_knows_its_boltzmann_constant():
    """Temperatures are the ensemble's, kT what its Boltzmann constant makes of them."""
    ensemble = mchammer_ensemble(boltzmann_constant=1e-4)
    c = ensemble.sample_grid(3, [700, 900], [{"Au": 0.02}], progress=False)
    assert c.conditions.kT.numpy() == pytest.approx([0.07] * 3 + [0.09] * 3)


def test_density_of_states_of_mchammer():
    """As with CLEASE, in mchammer's gauge."""
    ensemble = mchammer_ensemble()
    states = ensemble.ensemble.enumerate(ensemble.lattice)
    dos = ensemble.density_of_states(400, TEMPS, {"Ag": 0.1, "Au": [0.05, 0.15]}, progress=False)
    between = ensemble.line("Au", at={"Ag": 0.1}).at(700.0, [0.08, 0.12])
    found = dos.log_z(between)
    z = (found.value - states.log_z(between).numpy()) / found.error
    assert np.abs(z).max() < 4.5


def test_lines_of_mchammer():
    """Elements, alone or against another; inactive and unknown ones are refused."""
    ensemble = mchammer_ensemble()
    line = ensemble.line("Au", against="Ag")
    assert (line.species, line.label) == ("Au", "mu_Au - mu_Ag (eV)")
    assert line.mu([0.2]).tolist() == [[0.0, 0.2]]
    assert ensemble.line("Ag", at={"Au": 0.3}).mu([0.2]).tolist() == [[0.2, 0.3]]
    with pytest.raises(ValueError, match="unknown species 'Pd'"):
        ensemble.line("Pd")
    with pytest.raises(ValueError, match="varies along the line"):
        ensemble.line("Au", at={"Au": 0.1})


def test_bad_grids_of_mchammer():
    """Errors of names and counts are those of ``sample``."""
    ensemble = mchammer_ensemble()
    with pytest.raises(ValueError, match="unknown species 'Pd'"):
        ensemble.sample_grid(5, 600, {"Pd": [0.1]})
    with pytest.raises(TypeError, match="n must be a positive integer"):
        ensemble.sample_grid("5", 600, {"Au": [0.1]})
    with pytest.raises(ValueError, match="temps is empty"):
        ensemble.sample_grid(5, [], {"Au": [0.1]})
