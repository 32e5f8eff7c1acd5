"""Rows at rest: weighted averages that exact sweeps must leave alone, and rows that lack a mode."""

import warnings

import numpy as np
import pytest
import torch
from annealing_toys import MeanField
from test_annealing import quiet, targets
from toys import SYSTEMS, two_sublattices

from clease_nn.conditions import Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.sampling import anneal, exact, sample
from clease_nn.sampling.drift import DRIFTING, drift
from clease_nn.sampling.routes import choose_routes
from clease_nn.statistics import normalized_ess
from clease_nn.thermodynamics import log_z
from clease_nn.warnings import LostModeWarning, LowESSWarning


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def deceived():
    """Model, ensemble, lattice and condition: NESS of few draws is fair, ln Z off by 3.7."""
    lattice, ensemble, box = two_sublattices()
    return MeanField(box), ensemble, lattice, Conditions([600.0], targets(box).mu[2:3])


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_weights_that_describe_the_target_are_at_rest(name):
    """Rows of a uniform density with true weights drift as little as errors allow."""
    lattice, ensemble, box = SYSTEMS[name]()
    hot = box.at([[1.0] + [0.4] * box.n_axes])
    found = []
    for k in range(30):
        c = quiet(None, ensemble, lattice, hot, rng(k), n=64, steps=1)
        found.append(drift(c, ensemble, np.random.SeedSequence(k))[0])
    found = np.array(found)
    assert np.isfinite(found).all()
    assert found.max() < DRIFTING
    # of 30 maxima of a few standard normal numbers
    assert 0.3 < np.mean(found) < 2.0


def test_rows_that_lack_a_mode_drift():
    """A model that draws a mode hardly ever: ln Z is off by far more than its error, and told."""
    model, ensemble, lattice, at = deceived()
    c = sample(model, ensemble, lattice, at.repeat(1000), rng(1))
    exact_log_z = ensemble.enumerate(lattice).log_z(at)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowESSWarning)
        assert abs(log_z(c).z(exact_log_z)[0]) > 10
    assert normalized_ess(c.log_weight) > 0.1
    before = c.occupations.clone()
    moved, cost = drift(c, ensemble, np.random.SeedSequence(0))
    assert moved > DRIFTING
    assert cost.attempts_per_site == 4 * 256
    assert torch.equal(c.occupations, before)


def test_who_cannot_tell_says_so():
    """One effective row, or an energy without cheap changes of one site: nan at no cost."""
    model, ensemble, lattice, at = deceived()
    c = sample(model, ensemble, lattice, at.repeat(3), rng())
    plain = SemiGrandCanonical(lambda lattice, x: ensemble.energy(lattice, x))
    for rows, target in (
        (c, ensemble),
        (sample(model, ensemble, lattice, at.repeat(64), rng()), plain),
    ):
        moved, cost = drift(rows, target, np.random.SeedSequence(0))
        assert np.isnan(moved)
        assert cost.attempts_per_site == 0


def test_annealing_begins_where_no_mode_is_missing():
    """Starts that the pilot finds to drift are not taken, and ln Z is right at all conditions."""
    lattice, ensemble, box = two_sublattices()
    conditions = targets(box)[torch.tensor([0, 3])]
    c = quiet(MeanField(box, 1.0), ensemble, lattice, conditions, rng(), n=400)
    z = log_z(c).z(ensemble.enumerate(lattice).log_z(conditions))
    assert (np.abs(z) < 4.5).all()
    assert all(p["drift"] < DRIFTING for p in c.provenance["paths"])


def test_annealing_from_a_bad_start_is_told():
    """A start that is asked for is taken; what is wrong with it comes as a warning."""
    model, ensemble, lattice, at = deceived()
    with pytest.warns(LostModeWarning, match=r"annealed rows lack a mode at 1 of 1.*model=None"):
        c = anneal(model, ensemble, lattice, at, rng(1), n=1000, start=at, steps=1, progress=False)
    assert c.provenance["paths"][0]["drift"] > DRIFTING


def test_routes_avoid_draws_that_lack_a_mode(monkeypatch):
    """Pilot draws of a fair NESS that drift are not enough; asked for all the same, it is told."""
    monkeypatch.setattr("clease_nn.sampling.routes.GOOD_NESS", 0.05)
    model, ensemble, lattice, at = deceived()
    [route] = choose_routes(model, ensemble, lattice, at, 400)
    assert route.ness > 0.05
    assert route.name == "annealing"
    assert "lack a mode" in route.reason
    with pytest.warns(LostModeWarning, match="sample these conditions anew, all rows of them"):
        c = exact(model, ensemble, lattice, at, 1000, route="importance")
    [told] = c.provenance["routes"]
    assert told["drift"] > DRIFTING
    assert told["found_ness"] == pytest.approx(normalized_ess(c.log_weight))
