"""Routes from a model to exact results: what is chosen, and that all of them are exact."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.models import AnyOrderARM, FixedOrderARM
from clease_nn.networks import LatticeConvolution, MaskedMLP
from clease_nn.sampling import by_route as module
from clease_nn.sampling import exact
from clease_nn.sampling.routes import ROUTES, Routes, choose_routes
from clease_nn.statistics import normalized_ess
from clease_nn.thermodynamics import averages
from clease_nn.warnings import InterruptedWarning, LowESSWarning


def toy(strength=0.0):
    """Model, ensemble and lattice; the physical prior alone, or spoilt by random weights."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    torch.manual_seed(0)
    network = LatticeConvolution(lattice, box, channels=4, blocks=1)
    if strength:
        torch.nn.init.normal_(network.head.weight, std=strength)
    return AnyOrderARM(network), ensemble, lattice


def at(temperatures=(700.0, 1500.0), shifts=(0.0, 0.03)):
    """A grid of conditions, temperature varying slowest."""
    return Conditions.grid(temperatures, [[x, -x] for x in shifts])


def zs(c, ensemble, lattice, conditions):
    """z of energy, composition and (of weighted draws) ln Z at every condition."""
    states = ensemble.enumerate(lattice)
    share = (states.occupations == 0).double().mean(1)
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESSWarning)
        found = averages(c)
    for k, a in enumerate(found):
        row = conditions[k]
        z = [
            a.energy.z(float(states.mean(row, states.energy)[0])),
            a.composition[0].z(float(states.mean(row, share)[0])),
        ]
        if a.log_z is not None:
            z.append(a.log_z.z(float(states.log_z(row)[0])))
        out.append(z)
    return np.array(out)


# ------------------------------------------------------------------ choice
def test_a_good_model_is_sampled_from():
    """Where pilot draws have a high NESS, their weights are enough."""
    routes = choose_routes(*toy(), at(), 400)
    assert routes.names == ("importance",)
    assert all(r.ness > 0.25 and r.seconds > 0 and r.expected == r.ness for r in routes)
    assert "importance sampling: 96 pilot draws have NESS" in str(routes[0])
    assert routes.cost.attempts_per_site == 4 * 96 * (1 + 4)  # draws, and sweeps that try them


def test_a_spoilt_model_is_annealed_or_refined():
    """ln Z comes by annealing, averages alone by chains; the reason is given in words."""
    parts = toy(3.0)
    conditions = at((700.0,), (0.0,))
    [route] = choose_routes(*parts, conditions, 200)
    assert route.name == "annealing"
    assert route.expected > route.ness
    assert route.steps >= 1
    assert "annealing from" in route.reason
    assert "pilot draws have NESS" in route.reason
    [route] = choose_routes(*parts, conditions, 200, log_z=False)
    assert route.name == "refine"
    assert "averages alone are wanted" in route.reason


def test_a_choice_depends_on_the_seed_alone():
    """The same seed gives the same pilots, routes and rows."""
    parts = toy(1.0)
    first, second = (choose_routes(*parts, at(), 100, 5) for _ in range(2))
    assert [(r.name, r.ness, r.expected, r.steps) for r in first] == [
        (r.name, r.ness, r.expected, r.steps) for r in second
    ]
    rows = [exact(*parts, at((1500.0,)), 30, 5) for _ in range(2)]
    assert torch.equal(rows[0].log_weight, rows[1].log_weight)


def test_pilots_grow_with_the_rows_that_are_wanted():
    """Few rows are not worth many pilot draws."""
    costs = [
        choose_routes(*toy(), at((1500.0,), (0.0,)), n).cost.attempts_per_site
        for n in (5, 200, 10_000)
    ]
    assert costs == [5 * 32, 5 * 50, 5 * 96]


def test_expensive_energies_are_not_annealed():
    """An energy without cheap changes of one site is sampled from, with what to expect."""
    model, ensemble, lattice = toy(3.0)
    energy = ensemble.energy

    class Whole:
        partial_fields = staticmethod(energy.partial_fields)

        def __call__(self, lattice, occupations):
            return energy(lattice, occupations)

    [route] = choose_routes(model, SemiGrandCanonical(Whole()), lattice, at((700.0,), (0.0,)), 100)
    assert route.name == "importance"
    assert "annealing would cost an energy a site" in route.reason
    assert "effective samples of 100" in route.reason


def test_models_of_one_order_are_not_refined(monkeypatch):
    """A fixed order cannot redraw blocks: poor draws are annealed, also for averages."""
    monkeypatch.setattr("clease_nn.sampling.routes.GOOD_NESS", 1.1)  # no draws are good enough
    lattice, ensemble, box = SYSTEMS["binary"]()
    torch.manual_seed(0)
    model = FixedOrderARM(MaskedMLP(lattice, box, width=8))
    routes = choose_routes(model, ensemble, lattice, at((700.0,), (0.03,)), 100, log_z=False)
    assert routes.names == ("annealing",)


# ------------------------------------------------------------------ exactness
@pytest.mark.parametrize("strength", [0.0, 1.5])
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_every_route_is_exact(route, strength):
    """Averages and ln Z of good and spoilt models agree with enumeration within their errors."""
    model, ensemble, lattice = toy(strength)
    conditions = at()
    c = exact(model, ensemble, lattice, conditions, 600, 1, route=route, log_z=route != "refine")
    assert len(c) == 600 * len(conditions)
    assert torch.equal(c.conditions.temperature, conditions.repeat(600).temperature)
    assert (c.log_prob is None) == (route == "refine")
    z = zs(c, ensemble, lattice, conditions)
    assert np.abs(z).max() < 4.5
    told = c.provenance["routes"]
    assert len(told) == len(conditions)
    assert route == "auto" or {t["route"] for t in told} == {route}
    json.dumps(told)


def test_errors_are_neither_too_small_nor_too_large():
    """z over many conditions of a spoilt model, of whatever route, has a spread of one."""
    model, ensemble, lattice = toy(0.7)
    conditions = at((1200.0, 2000.0), np.linspace(-0.05, 0.05, 24))
    c = exact(model, ensemble, lattice, conditions, 200, 2)
    z = zs(c, ensemble, lattice, conditions)[:, 2]
    assert 0.65 < z.std() < 1.4  # 48 independent numbers, 4 standard errors of a spread of one
    assert abs(z.mean()) < 4.5 / np.sqrt(48)


def test_rows_of_different_routes_stay_in_order(monkeypatch):
    """Importance sampled and annealed conditions come together as weighted rows, in order."""
    model, ensemble, lattice = toy()
    monkeypatch.setattr("clease_nn.sampling.routes.GOOD_NESS", 0.9)
    conditions = at((500.0, 2000.0), (0.05, 0.0))
    routes = choose_routes(model, ensemble, lattice, conditions, 100)
    assert routes.names == ("importance", "annealing")
    assert "annealing at" in routes.reason
    c = exact(model, ensemble, lattice, conditions, 100, route=routes)
    assert c.step is None
    assert torch.equal(c.conditions.mu, conditions.repeat(100).mu)
    assert np.abs(zs(c, ensemble, lattice, conditions)).max() < 4.5
    assert [t["route"] for t in c.provenance["routes"]] == [r.name for r in routes]


def test_chains_have_the_rows_that_were_asked_for():
    """37 rows a condition, chain after chain in time order, none shared between conditions."""
    model, ensemble, lattice = toy()
    conditions = at((1500.0,))
    c = exact(model, ensemble, lattice, conditions, 37, route="refine", log_z=False)
    assert len(c) == 74
    assert (c.chain.diff() >= 0).all()
    assert not set(c.chain[:37].tolist()) & set(c.chain[37:].tolist())
    assert torch.equal(c.conditions.mu, conditions.repeat(37).mu)


def test_annealing_follows_the_path_that_was_measured(monkeypatch):
    """Start and spacing of the pilot, not merely as many even steps."""
    model, ensemble, lattice = toy(3.0)
    conditions = at((300.0,), (0.03,))
    routes = choose_routes(model, ensemble, lattice, conditions, 100)
    [route] = routes
    assert route.name == "annealing"
    assert len(route.fractions) == route.steps > 1
    assert not np.allclose(np.diff(route.fractions, prepend=0.0), 1 / route.steps)
    real, given = module.anneal, []

    def listening(*args, **kwargs):
        given.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "anneal", listening)
    exact(model, ensemble, lattice, conditions, 100, route=routes)
    [kwargs] = given
    assert kwargs["steps"] == route.fractions
    assert kwargs["start"] is route.start


def test_rows_worth_less_than_the_pilot_promised_are_told():
    """No row is drawn anew, which would select; the warning says what to do."""
    model, ensemble, lattice = toy(3.0)
    conditions = at((700.0,), (0.0,))
    [poor] = choose_routes(model, ensemble, lattice, conditions, 200)
    routes = Routes([replace(poor, name="importance", ness=0.6, expected=0.6)])
    with pytest.warns(LowESSWarning, match=r"instead of 0.60 .* anew, all rows .*annealing"):
        c = exact(model, ensemble, lattice, conditions, 200, route=routes)
    [told] = c.provenance["routes"]
    assert told["route"] == "importance"
    assert told["found_ness"] == pytest.approx(normalized_ess(c.log_weight))
    assert told["found_ness"] < 0.25


def test_good_rows_are_not_warned_of():
    """Neither weighted draws of a good model nor its chains."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        c = exact(*toy(), at((1500.0,)), 200)
        exact(*toy(), at((1500.0,), (0.0,)), 64, route="refine", log_z=False)
    assert all(t["found_ness"] > 0.25 and t["drift"] < 5 for t in c.provenance["routes"])


# ------------------------------------------------------------------ interruption, bad input
def test_interruption_while_starts_of_chains_are_drawn(monkeypatch):
    """Chains of some conditions only are none that were asked for: Ctrl-C goes through."""
    real = module.sample
    monkeypatch.setattr(module, "sample", lambda *args, **kwargs: real(*args, **kwargs)[:3])
    with pytest.raises(KeyboardInterrupt):
        exact(*toy(), at((1500.0,)), 64, route="refine", log_z=False)


def test_interruption_keeps_the_leading_conditions(monkeypatch):
    """Ctrl-C returns the conditions that were finished; without any it goes through."""
    model, ensemble, lattice = toy()
    real, calls = module.anneal, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "anneal", interrupted)
    with pytest.warns(InterruptedWarning, match="2 of 4 conditions"):
        c = exact(model, ensemble, lattice, at(), 20, route="annealing")
    assert len(c) == 40
    assert len(c.provenance["routes"]) == 2
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        exact(model, ensemble, lattice, at(), 20, route="annealing")


def test_bad_input():
    """Unknown routes, no rows, no conditions, ln Z of chains, and routes of other conditions."""
    parts = toy()
    with pytest.raises(ValueError, match="route must be 'auto' or one of"):
        exact(*parts, at(), 10, route="fastest")
    with pytest.raises(ValueError, match="n must be at least 1"):
        exact(*parts, at(), 0)
    with pytest.raises(ValueError, match="no conditions"):
        choose_routes(*parts, at()[:0], 10)
    with pytest.raises(ValueError, match="chains give no ln Z"):
        exact(*parts, at(), 10, route="refine")
    routes = choose_routes(*parts, at((1500.0,)), 10)
    with pytest.raises(ValueError, match="chosen for other conditions"):
        exact(*parts, at(), 10, route=routes)
    with pytest.raises(TypeError, match="what choose_routes returns"):
        exact(*parts, at(), 10, route=[3])
