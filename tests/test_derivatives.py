"""Laws of the responses: the score-function identity, against enumeration and fluctuations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_model_laws import MODELS
from test_model_laws import spoilt as spoilt_model
from toys import SYSTEMS

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations, species_counts
from clease_nn.diagnostics import condition_scores, responses
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.models import AbstractOccupationModel, AnyOrderARM
from clease_nn.models.abstract import conditionals
from clease_nn.models.orders import random_order
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.networks import LatticeConvolution
from clease_nn.sampling import sample

pytestmark = pytest.mark.filterwarnings("ignore::clease_nn.warnings.LowESSWarning")


class FieldModel(AbstractOccupationModel):
    """The physical conditionals themselves: exact where sites do not interact."""

    needs_fields = True

    def log_conditionals(self, c, fields):
        """Softmax of the fields."""
        return conditionals(fields[..., : c.lattice.n_species], c.lattice.allowed_mask())

    def draw_steps(self, c, rng):
        """Any order."""
        return random_order(c.known, rng)

    def config(self):
        """No parameters."""
        return {"class": "FieldModel"}

    @classmethod
    def from_config(cls, config):
        """No parameters."""
        return cls()


class PointEnergy:
    """Sites without interactions: an energy for every species."""

    levels = torch.tensor([0.03, -0.02, 0.05], dtype=torch.float64)

    def __call__(self, lattice, occupations):
        """Sum of the levels, eV."""
        return self.levels[occupations.long()].sum(1)

    def partial_fields(self, lattice, occupations, means=None):
        """The levels, whatever is known."""
        return self.levels.expand(*occupations.shape, 3)


def spoilt(lattice, box, seed=0, size=0.3):
    """A network that follows its conditions somehow."""
    torch.manual_seed(seed)
    model = AnyOrderARM(LatticeConvolution(lattice, box, channels=8, blocks=2))
    torch.nn.init.normal_(model.network.head.weight, std=size)
    return model


def enumerated(model, ensemble, exact, at, steps):
    """q of all states at one condition."""
    n = len(exact.occupations)
    c = Configurations(exact.lattice, at.repeat(n), exact.occupations)
    with torch.no_grad():
        return model.log_prob(c, steps=steps.expand(n, -1), fields=ensemble.fields).exp()


def test_exact_model_responds_as_it_fluctuates():
    """Independent sites: derivatives, fluctuations and the closed form agree within errors."""
    lattice, _, _ = SYSTEMS["ternary"]()
    ensemble = SemiGrandCanonical(PointEnergy())
    exact = ensemble.enumerate(lattice)
    at = Conditions.grid([400.0, 800.0], [[0.0, 0.02, -0.01], [0.03, 0.0, 0.05]])
    counts = species_counts(exact.occupations, 3)
    scores = []
    for seed in range(8):
        rng = torch.Generator().manual_seed(seed)
        found = responses(
            FieldModel(), ensemble, sample(FieldModel(), ensemble, lattice, at.repeat(600), rng)
        )
        assert found.problems() == []
        for k in range(len(at)):
            p, kT = exact.probabilities(at[k]), at.kT[k]
            energy = -kT * exact.log_target(at[k])
            d, e = counts - p @ counts, energy - p @ energy
            heat = (p @ e**2) / (kT * at.temperature[k])
            chi = torch.einsum("n,na,nb->ab", p, d, d) / kT
            scores.append(found.heat_capacity[k].z(heat))
            scores += list(np.ravel(found.susceptibility[k].z(chi))[[0, 1, 4, 5, 8]])
            # with p = q the two estimators are one, up to the score in place of the observable
            other = found.averages[k].susceptibility
            np.testing.assert_allclose(found.susceptibility.value[k], other.value, rtol=2e-3)
            np.testing.assert_allclose(
                found.heat_capacity.value[k], found.averages[k].heat_capacity.value, rtol=2e-3
            )
    z = np.array(scores)
    assert abs(z.mean()) < 0.4 and 0.7 < z.std() < 1.3 and np.abs(z).max() < 5


@pytest.mark.parametrize("name", SYSTEMS)
def test_identity_holds_for_any_model(name):
    """Sums over all states of O d ln q/dx equal differences of <O>_q at shifted conditions."""
    lattice, ensemble, box = SYSTEMS[name]()
    exact = ensemble.enumerate(lattice)
    model = spoilt(lattice, box)
    at = box.at(np.full((1, 1 + box.n_axes), 0.4))
    steps = torch.randperm(lattice.n_sites, generator=torch.Generator().manual_seed(4))[None]
    n = len(exact.occupations)
    c = Configurations(lattice, at.repeat(n), exact.occupations)
    d_temperature, d_mu = condition_scores(
        model, c, steps=steps.expand(n, -1), fields=ensemble.fields
    )
    q = enumerated(model, ensemble, exact, at, steps)
    counts = species_counts(exact.occupations, lattice.n_species)
    energy = exact.energy - counts @ at.mu[0]
    assert abs(float(q @ d_temperature)) < 1e-6
    assert float((q @ d_mu).abs().max()) < 1e-3  # 1/eV
    h = 20.0  # K
    low, high = (
        enumerated(model, ensemble, exact, Conditions(at.temperature + s, at.mu), steps)
        for s in (-h, h)
    )
    slope = (high - low) @ energy / (2 * h)
    assert float(q @ (energy * d_temperature)) == pytest.approx(float(slope), rel=5e-3)
    h = 0.004  # eV
    for b in range(lattice.n_species):
        shift = torch.zeros_like(at.mu)
        shift[0, b] = h
        low, high = (
            enumerated(model, ensemble, exact, Conditions(at.temperature, at.mu + s), steps)
            for s in (-shift, shift)
        )
        slope = (high - low) @ counts / (2 * h)
        torch.testing.assert_close((q * d_mu[:, b]) @ counts, slope, rtol=0.02, atol=0.05)


def test_estimates_from_draws_are_calibrated():
    """Draws of a spoilt model give the responses of its own distribution within their errors."""
    lattice, ensemble, box = SYSTEMS["ternary"]()
    exact = ensemble.enumerate(lattice)
    model = spoilt(lattice, box, 1)
    at = box.at([[0.3, 0.4, 0.6], [0.8, 0.7, 0.5]])
    steps = torch.randperm(lattice.n_sites, generator=torch.Generator().manual_seed(4))[None]
    n = len(exact.occupations)
    counts = species_counts(exact.occupations, 3)
    heat, chi = [], []
    for k in range(len(at)):
        c = Configurations(lattice, at[k].repeat(n), exact.occupations)
        d_temperature, d_mu = condition_scores(
            model, c, steps=steps.expand(n, -1), fields=ensemble.fields
        )
        q = enumerated(model, ensemble, exact, at[k], steps)
        energy = exact.energy - counts @ at.mu[k]
        heat.append(float(q @ (energy * d_temperature)))
        chi.append(torch.einsum("n,na,nb->ab", q, counts, d_mu).numpy())
    rng = torch.Generator().manual_seed(7)
    z = []
    for _ in range(12):
        empty = Configurations.unknown(lattice, at.repeat(300))
        drawn = model.complete(empty, rng, ensemble.fields, steps=steps.expand(600, -1))
        found = responses(model, ensemble, ensemble.score(drawn))
        z += list(found.heat_capacity.z(heat))
        z += list(np.ravel(found.susceptibility.z(np.array(chi))[:, [0, 1, 2], [0, 1, 2]]))
    z = np.array(z)
    assert abs(z.mean()) < 0.4 and 0.7 < z.std() < 1.3 and np.abs(z).max() < 5


def test_a_model_deaf_to_its_conditions_is_reported():
    """An untrained network without fields has no response; the fluctuations of p tell."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    model = AnyOrderARM(LatticeConvolution(lattice, box, channels=4, blocks=1, needs_fields=False))
    at = box.grid(1, 1).repeat(400)
    found = responses(
        model, ensemble, sample(model, ensemble, lattice, at, torch.Generator().manual_seed(0))
    )
    assert found.heat_capacity.value[0] == 0
    assert any("susceptibility" in text for _, text in found.problems())
    assert "standard errors" in str(found)


def test_frozen_conditions_deviate_by_nothing():
    """Where all draws are one state, rounding errors are no response and raise no alarm."""
    lattice, _, _ = SYSTEMS["ternary"]()
    ensemble = SemiGrandCanonical(PointEnergy())
    at = Conditions([100.0], [[0.5, 0.1, -0.3]]).repeat(50)
    found = responses(
        FieldModel(), ensemble, sample(FieldModel(), ensemble, lattice, at, torch.Generator())
    )
    assert found.problems() == []
    assert all((z == 0).all() for z in found.deviations().values())


def test_gradients_leave_the_model_alone():
    """No gradient is left on the parameters, the mode is what it was, rows do not mix."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    model = spoilt(lattice, box).train()
    c = sample(model, ensemble, lattice, box.grid(2, 3), torch.Generator().manual_seed(0))
    whole = condition_scores(model, c, steps=c.step, fields=ensemble.fields)
    assert model.training and all(p.grad is None for p in model.parameters())
    parts = condition_scores(model, c, steps=c.step, fields=ensemble.fields, batch_size=2)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_bad_input_is_named():
    """Draws of another model, without steps or energies, are refused."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    model = spoilt(lattice, box)
    c = sample(model, ensemble, lattice, box.grid(1, 1).repeat(20), torch.Generator())
    with pytest.raises(ValueError, match="need draws with step"):
        responses(model, ensemble, replace(c, step=None))
    with pytest.raises(ValueError, match="another model"):
        responses(spoilt(lattice, box, 3, 3.0), ensemble, c)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        responses(model, ensemble, c, batch_size=0)
    with torch.inference_mode(), pytest.raises(ValueError, match="nothing can be differentiated"):
        condition_scores(model, c, steps=c.step, fields=ensemble.fields)


@pytest.mark.parametrize("fields", [True, False])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_scores_are_differences_of_log_prob(name, fields):
    """Of every model with every network; a constant added to all mu changes nothing."""
    lattice, ensemble, box = system = SYSTEMS["ternary"]()
    model = spoilt_model(name, system, fields)
    at = box.at(np.random.default_rng(0).uniform(0.2, 0.8, (6, 1 + box.n_axes)))
    x = torch.as_tensor(random_occupations(lattice, 6, np.random.default_rng(1)))
    steps = model.draw_steps(Configurations.unknown(lattice, at), torch.Generator().manual_seed(0))

    def log_q(temperature, mu):
        c = Configurations(lattice, Conditions(temperature, mu), x)
        return model.log_prob(c, steps=steps, fields=ensemble.fields)

    with torch.no_grad():
        found = condition_scores(
            model, Configurations(lattice, at, x), steps=steps, fields=ensemble.fields
        )
        h, t, mu = 5.0, at.temperature, at.mu  # K
        differences = [(log_q(t + h, mu) - log_q(t - h, mu)) / (2 * h)]
        h = 1e-3  # eV
        shifts = h * torch.eye(3, dtype=torch.float64)
        differences.append(
            torch.stack([(log_q(t, mu + s) - log_q(t, mu - s)) / (2 * h) for s in shifts], 1)
        )
    for own, reference in zip(found, differences, strict=True):
        scale = float(reference.abs().max())
        assert scale > 0 and float((own - reference).abs().max()) < 0.02 * scale
    assert float(found[1].sum(1).abs().max()) < 1e-9 * float(found[1].abs().max())
    with torch.autocast("cpu", torch.bfloat16):
        half = condition_scores(
            model, Configurations(lattice, at, x), steps=steps, fields=ensemble.fields
        )
    for own, reference in zip(half, found, strict=True):
        assert float((own - reference).abs().max()) < 0.1 * float(reference.abs().max())
