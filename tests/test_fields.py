"""Physical logits of partial configurations: at equal shares and at the mean field."""

import numpy as np
import pytest
import torch
from toys import SYSTEMS, binary, ternary

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.energies import ClusterExpansionEnergy
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice


def partial(lattice, conditions, rows, share, seed=0):
    """Random allowed species with a share of the sites unknown."""
    rng = np.random.default_rng(seed)
    choices = [np.flatnonzero(row) for row in lattice.allowed]
    x = np.stack([rng.choice(c, size=rows) for c in choices], 1).astype(np.int8)
    x[rng.random(x.shape) < share] = UNKNOWN
    return Configurations(lattice, conditions.repeat(rows), torch.as_tensor(x))


def exact_conditionals(states, log_target, x):
    """p(species | known sites) of every site, by summing over all states that agree."""
    out = torch.zeros(*x.shape, 1 + int(states.max()), dtype=torch.float64)
    for row, known in enumerate(x):
        agree = ((states == known) | (known == UNKNOWN)).all(1)
        p = torch.softmax(log_target[agree], 0)
        for a in range(out.shape[2]):
            out[row, :, a] = (p[:, None] * (states[agree] == a)).sum(0)
    return out


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_the_mean_field_is_near_the_exact_conditionals(name):
    """In warm cells it has less than a third of the KL divergence that equal shares have."""
    lattice, ensemble, box = SYSTEMS[name]()
    states = ensemble.enumerate(lattice)
    at = Conditions([4000.0], box.at([[0.5] + [0.6] * box.n_axes]).mu)
    c = partial(lattice, at, 40, 0.6)
    p = exact_conditionals(states.occupations, states.log_target(at).reshape(-1), c.occupations)
    allowed = torch.tensor(lattice.allowed)
    field, alike = ensemble.fields(c).double().chunk(2, -1)
    divergence = []
    for logits in (field, alike):
        log_q = logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)
        terms = torch.where(p > 0, p * (p.log() - log_q), 0.0).sum(-1)
        divergence.append(float(terms[c.occupations == UNKNOWN].mean()))
    assert 0 <= divergence[0] < 0.3 * divergence[1]


def test_without_interactions_both_are_exact():
    """Sites that do not see each other: the same logits, those of their own levels."""
    lattice = Lattice.square(3)
    levels = torch.tensor([0.03, -0.02], dtype=torch.float64)

    class Levels:
        def __call__(self, lattice, occupations):
            return levels[occupations.long()].sum(1)

        def partial_fields(self, lattice, occupations, means=None):
            return levels.expand(*occupations.shape, 2)

    at = Conditions([500.0], [[0.01, 0.0]])
    field, alike = SemiGrandCanonical(Levels()).fields(partial(lattice, at, 4, 0.5)).chunk(2, -1)
    assert torch.equal(field, alike)
    expected = -(levels - at.mu[0]) / at.kT
    assert torch.allclose(field[0, 0].double(), expected - expected.mean(), atol=1e-6)


def test_energies_without_means_are_refused():
    """An energy whose fields take no means: the message says so."""
    lattice, ensemble, box = binary()

    class Old:
        def partial_fields(self, lattice, occupations):
            return ensemble.energy.partial_fields(lattice, occupations)

    c = partial(lattice, box.at([[0.5] * (1 + box.n_axes)]), 2, 0.5)
    with pytest.raises(TypeError, match="partial_fields of Old cannot be called with means"):
        SemiGrandCanonical(Old()).fields(c)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_no_rows(backend):
    """An empty batch has fields."""
    lattice, ensemble, box = ternary()
    energy = ClusterExpansionEnergy(ensemble.energy.tables, backend=backend)
    c = partial(lattice, box.at([[0.3] * (1 + box.n_axes)]), 3, 0.5)[:0]
    assert SemiGrandCanonical(energy).fields(c).shape == (0, lattice.n_sites, 6)


def test_rows_do_not_see_each_other():
    """A row alone has the fields that it has in a batch."""
    lattice, ensemble, box = ternary()
    c = partial(lattice, box.at([[0.3] * (1 + box.n_axes)]), 6, 0.5)
    together = ensemble.fields(c)
    for k in range(6):
        assert torch.equal(ensemble.fields(c[k : k + 1])[0], together[k])


@pytest.mark.parametrize("temperature", [1.0, 1e7])
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_fields_are_finite(name, temperature):
    """At any temperature, with a constant of any size; 0 where a species is not allowed."""
    lattice, ensemble, box = SYSTEMS[name]()
    at = Conditions([temperature], box.at([[0.2] * (1 + box.n_axes)]).mu + 1e4)
    fields = ensemble.fields(partial(lattice, at, 20, 0.7))
    assert fields.shape == (20, lattice.n_sites, 2 * lattice.n_species)
    assert torch.isfinite(fields).all()
    barred = ~torch.tensor(lattice.allowed)
    assert (fields[:, barred.repeat(1, 2)] == 0).all()


def test_derivatives_through_the_mean_field():
    """Derivatives with respect to T and mu are those of finite differences."""
    lattice, ensemble, box = binary()
    c = partial(lattice, box.at([[0.5] * (1 + box.n_axes)]), 3, 0.6)

    def fields(temperature, mu):
        at = Conditions(temperature, mu)
        return ensemble.fields(Configurations(lattice, at, c.occupations)).double()

    t, mu = c.conditions.temperature.clone(), c.conditions.mu.clone()
    for x, step in ((t, 5.0), (mu, 2e-3)):
        x.requires_grad_()
        weight = torch.randn(3, lattice.n_sites, 2 * lattice.n_species, dtype=torch.float64)
        (slope,) = torch.autograd.grad((weight * fields(t, mu)).sum(), x)
        x.requires_grad_(False)
        direction = torch.randn_like(x)
        up, down = (
            (weight * fields(*(y + s * step * direction if y is x else y for y in (t, mu)))).sum()
            for s in (1, -1)
        )
        expected = (up - down) / (2 * step)
        assert torch.allclose((slope * direction).sum(), expected, rtol=2e-3, atol=1e-4)


def test_an_energy_without_fields_is_named():
    """A model that needs fields and an energy without any: what to do is said."""
    lattice = Lattice.square(3)
    at = Conditions([500.0], [[0.0, 0.0]])
    plain = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    with pytest.raises(ValueError, match="has no partial_fields.*needs_fields=False"):
        plain.fields(Configurations.unknown(lattice, at))
