"""Laws of the ground states: degeneracies are those of enumeration, losses are told."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import ground_states
from clease_nn.energies.ising import ising_energy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo.chains import random_occupations

LATTICE = Lattice.square(4)
ENSEMBLE = SemiGrandCanonical(ising_energy(LATTICE, -0.05))  # antiferromagnetic
EXACT = ENSEMBLE.enumerate(LATTICE)
CHECKER = ((torch.arange(4)[:, None] + torch.arange(4)) % 2).reshape(1, 16).to(torch.int8)
ZERO = Conditions([300.0], [[0.0, 0.0]])


def scored(x, at):
    """Configurations at one condition, scored."""
    return ENSEMBLE.score(Configurations(LATTICE, at.repeat(len(x)), x))


def test_degeneracies_and_shares_are_exact():
    """A 4 x 4 antiferromagnet: two checkerboards, or one saturated state at a high field."""
    high = Conditions([300.0], [[0.0, 2.0]])
    x = torch.cat([CHECKER, 1 - CHECKER, torch.ones_like(CHECKER), torch.zeros_like(CHECKER)])
    c = Configurations.cat([scored(x, ZERO), scored(x, high)])
    low, top = ground_states(c, ENSEMBLE, np.random.default_rng(0), exact=EXACT)
    assert (low.degeneracy, low.exact_degeneracy, int(low.variants_seen.sum())) == (2, 2, 2)
    assert low.found == low.lowest == low.exact == pytest.approx(-0.05 * 32)
    assert low.share == 0.5
    np.testing.assert_allclose(low.composition, [[0.5, 0.5]])
    assert (top.degeneracy, top.exact_degeneracy) == (1, 1)
    assert top.share == 0.25 and top.lowest == pytest.approx(0.05 * 32 - 2.0 * 16)


def test_random_search_hits_with_the_share_of_the_states():
    """On 2 x 2 sites a uniform search finds the two checkerboards one time in eight."""
    lattice = Lattice.square(2)
    ensemble = SemiGrandCanonical(ising_energy(lattice, -0.05))
    x = torch.tensor([[0, 1, 1, 0]]).repeat(4000, 1)
    c = ensemble.score(Configurations(lattice, ZERO.repeat(4000), x))
    [g] = ground_states(c, ensemble, np.random.default_rng(1))
    assert g.share == 1.0
    assert abs(g.random_share - 1 / 8) < 4 * np.sqrt(7 / 64 / 4000)
    assert g.random_found == pytest.approx(g.lowest)


def test_a_state_drawn_elsewhere_is_tried_everywhere():
    """What other conditions found shows what was missed here, and the report says so."""
    other = Conditions([300.0], [[0.0, 0.01]])
    c = Configurations.cat([scored(torch.ones(20, 16), ZERO), scored(CHECKER, other)])
    found = ground_states(c, ENSEMBLE, np.random.default_rng(0))
    assert found[0].missed and not found[1].missed
    assert found[0].lowest == pytest.approx(-1.6) and found[0].found == pytest.approx(1.6)
    [(_, text)] = found.problems()
    assert "not drawn at 1 of 2 conditions" in text and "3.2 eV above" in text


def test_a_lost_variant_is_told_from_one_not_yet_drawn():
    """One of two checkerboards in 4 hits may be chance, in 40 it is not."""
    rng = np.random.default_rng(0)
    assert ground_states(scored(CHECKER.repeat(4, 1), ZERO), ENSEMBLE, rng).problems() == []
    [(category, text)] = ground_states(
        scored(CHECKER.repeat(40, 1), ZERO), ENSEMBLE, rng
    ).problems()
    assert category.__name__ == "LostModeWarning" and "1 of 2 in 40 hits" in text


def test_hits_of_one_chain_are_one():
    """Forty rows of a chain stuck in one checkerboard may be chance, forty chains are not."""
    rng = np.random.default_rng(0)
    c = scored(CHECKER.repeat(40, 1), ZERO)
    one, many = replace(c, chain=torch.zeros(40)), replace(c, chain=torch.arange(40))
    [g] = found = ground_states(one, ENSEMBLE, rng)
    assert (g.hits, g.independent_hits) == (40, 1) and found.problems() == []
    assert len(ground_states(many, ENSEMBLE, rng).problems()) == 1


def test_energies_in_single_precision_need_a_wider_tolerance():
    """Variants whose energies differ by rounding count once the tolerance says so."""
    x = torch.cat([CHECKER, 1 - CHECKER])
    c = scored(x, ZERO)
    c = replace(c, energy=c.energy + torch.tensor([0.0, 1e-5]))
    rng = np.random.default_rng(0)
    [strict], [wide] = (ground_states(c, ENSEMBLE, rng, tolerance=t) for t in (1e-6, 1e-4))
    assert (strict.hits, wide.hits) == (1, 2)
    assert strict.degeneracy == wide.degeneracy == 2


def test_search_and_axes_respect_sublattices():
    """Several species and two sublattices: every condition agrees with all states."""
    lattice, ensemble, _ = SYSTEMS["two_sublattices"]()
    exact = ensemble.enumerate(lattice)
    at = Conditions.grid([900.0, 300.0], [[0.0, m, 0.0, n] for m in (0.1, -0.1) for n in (0, 0.3)])
    x = torch.as_tensor(random_occupations(lattice, 8 * 500, np.random.default_rng(0)))
    c = ensemble.score(Configurations(lattice, at.repeat(500), x))
    found = ground_states(c, ensemble, np.random.default_rng(1), exact=exact)
    assert torch.equal(found.conditions.mu, at.mu)
    for k, g in enumerate(found):
        sgc = -at.kT[k] * exact.log_target(at[k])
        least = sgc.min()
        assert g.lowest == pytest.approx(float(least))
        states = exact.occupations[sgc <= least + 1e-6].numpy()
        assert g.exact_degeneracy == len(states)
        assert {s.tobytes() for s in g.structures} <= {s.tobytes() for s in states}
        assert bool(lattice.allowed[np.arange(8), g.structures].all())
        # draws and search are both uniform here: equal shares, those of the states
        p = len(states) / 256
        for share in (g.share, g.random_share):
            assert abs(share - p) < 5 * np.sqrt(p / 500) + 1e-3


def test_rows_are_json_ready_and_the_report_is_a_table():
    """Flat dictionaries, a line a condition."""
    c = Configurations.cat(
        [scored(CHECKER, ZERO), scored(CHECKER, Conditions([300.0], [[0, 1.0]]))]
    )
    found = ground_states(c, ENSEMBLE, np.random.default_rng(0))
    rows = json.loads(json.dumps(found.to_rows()))
    assert rows[0]["degeneracy"] == 2 and rows[0]["exact"] is None and rows[1]["mu_Au"] == 1.0
    assert len(str(found).splitlines()) == 3
    assert torch.equal(found.conditions.mu[:, 1], torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_known_orderings_of_copper_and_gold():
    """16 fcc sites of the literature's Cu-Au expansion: six CuAu variants, four of each A3B."""
    folder = os.environ.get("CLEASE_NN_REFERENCE")
    if not folder:
        pytest.skip("CLEASE_NN_REFERENCE is not set")
    from clease_nn.hosts.clease.chemical_potentials import axes
    from clease_nn.hosts.clease.examples import cuau_emt_atoms, cuau_emt_data
    from clease_nn.hosts.clease.extraction import energy, lattice

    eci = json.loads((Path(folder) / "cuau_eci.json").read_text())
    atoms = cuau_emt_atoms((2, 2, 4), {**cuau_emt_data(), "eci": eci})
    cell = lattice(atoms)
    ensemble = SemiGrandCanonical(energy(atoms))
    exact = ensemble.enumerate(cell)
    at = Conditions.grid([200.0], np.array([[0.02], [-0.04]]) * axes(atoms, cell, ["c1_0"]))
    parts = []
    for k in range(2):
        order = exact.log_target(at[k]).argsort(descending=True)[:20]
        c = Configurations(cell, at[k].repeat(20), exact.occupations[order])
        parts.append(ensemble.score(c))
    found = ground_states(
        Configurations.cat(parts), ensemble, np.random.default_rng(0), exact=exact
    )
    for g, degeneracy, share in zip(found, (6, 4), (0.5, 0.25), strict=True):
        assert g.degeneracy == g.exact_degeneracy == int(g.variants_seen.sum()) == degeneracy
        assert min(g.composition[0]) == share
    assert found.problems() == []


def test_bad_input_is_named():
    """Unscored or partial configurations are refused."""
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="carry no energy"):
        ground_states(Configurations(LATTICE, ZERO, CHECKER), ENSEMBLE, rng)
    with pytest.raises(ValueError, match="without unknown sites"):
        ground_states(Configurations.unknown(LATTICE, ZERO), ENSEMBLE, rng)
    c = scored(CHECKER, ZERO)
    with pytest.raises(ValueError, match="around given sites"):
        ground_states(replace(c, step=torch.arange(-1, 15)[None]), ENSEMBLE, rng)
    with pytest.raises(ValueError, match="tolerance must not be negative, got -1 eV"):
        ground_states(c, ENSEMBLE, rng, tolerance=-1)
    other = SemiGrandCanonical(ising_energy(LATTICE, 0.01)).enumerate(LATTICE)
    with pytest.raises(ValueError, match="enumerates another energy"):
        ground_states(c, ENSEMBLE, rng, exact=other)
    small = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x))).enumerate(Lattice.square(2))
    with pytest.raises(ValueError, match="another lattice"):
        ground_states(c, ENSEMBLE, rng, exact=small)
