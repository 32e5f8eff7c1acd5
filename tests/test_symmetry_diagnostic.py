"""Laws of the symmetry check: symmetric models pass, others are told."""

import numpy as np
import pytest
import torch
from test_model_laws import spoilt
from torch import nn
from toys import SYSTEMS

from clease_nn.configurations import Configurations
from clease_nn.diagnostics import SymmetryCheck, symmetry_check
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.models.abstract import AbstractOccupationModel, conditionals
from clease_nn.models.orders import random_order
from clease_nn.montecarlo.chains import random_occupations
from clease_nn.networks import LatticeConvolution
from clease_nn.symmetry import site_permutations


class SiteBias(AbstractOccupationModel):
    """Independent sites with a preference of their own."""

    needs_fields = False

    def __init__(self, bias):
        super().__init__()
        self.bias = nn.Parameter(bias)

    def log_conditionals(self, c, fields):
        """The preferences, whatever is known."""
        bias = self.bias.expand(len(c), *self.bias.shape)
        return conditionals(bias, c.lattice.allowed_mask())

    def draw_steps(self, c, rng):
        """Any order."""
        return random_order(c.known, rng)

    def config(self):
        """The preferences."""
        return {"class": "SiteBias", "bias": self.bias.tolist()}

    @classmethod
    def from_config(cls, config):
        """From the preferences."""
        return cls(torch.tensor(config["bias"]))


def rows(lattice, box, n=40):
    """Random configurations at conditions of the box."""
    x = torch.as_tensor(random_occupations(lattice, n, np.random.default_rng(0)))
    return Configurations(lattice, box.at(np.full((n, 1 + box.n_axes), 0.3)), x)


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_equivariant_network_is_symmetric(name):
    """A lattice convolution agrees on images, in the image of the order, trained or not."""
    lattice, ensemble, box = SYSTEMS[name]()
    torch.manual_seed(0)
    model = AnyOrderARM(LatticeConvolution(lattice, box, channels=8, blocks=2))
    nn.init.normal_(model.network.head.weight, std=0.1)
    rng = torch.Generator().manual_seed(1)
    found = symmetry_check(model, ensemble, rows(lattice, box), rng, n_orders=6)
    assert found.r_squared > 0.9999
    assert found.rms_difference < 1e-3 < 0.05 < found.order_spread


def test_a_spoilt_model_is_not():
    """Preferences of single sites are seen at their full size, whatever the order."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    bias = 1.5 * torch.randn(lattice.n_sites, 2, generator=torch.Generator().manual_seed(2))
    model, c = SiteBias(bias), rows(lattice, box)
    found = symmetry_check(model, ensemble, c, torch.Generator().manual_seed(1))
    assert found.r_squared < 0.5
    assert found.order_spread < 1e-12
    [(category, text)] = found.problems()
    assert category.__name__ == "LostModeWarning" and "symmetry-related" in text


def test_a_fixed_order_is_scored_in_its_own():
    """One order; rows are what log_prob gives, images are among all images of their row."""
    lattice, ensemble, box = system = SYSTEMS["two_sublattices"]()
    model, c = spoilt("fixed_order-masked_mlp", system, True), rows(lattice, box, 5)
    found = symmetry_check(model, ensemble, c, torch.Generator().manual_seed(0), n_images=3)
    assert found.log_prob.shape == (5, 4, 1) and found.order_spread == 0
    permutations = torch.as_tensor(site_permutations(lattice))
    n = len(permutations)
    images = Configurations(
        lattice, c.conditions.repeat(n), c.occupations[:, permutations].reshape(-1, 8)
    )
    steps = model.draw_steps(Configurations.unknown(lattice, images.conditions), torch.Generator())
    with torch.no_grad():
        all_images = model.log_prob(images, steps=steps, fields=ensemble.fields)
    all_images = all_images.view(5, n).numpy()
    np.testing.assert_allclose(found.log_prob[:, 0, 0], all_images[:, 0], atol=1e-5)
    off = np.abs(found.log_prob[:, 1:, :] - all_images[:, None]).min(2)
    assert off.max() < 1e-5 and found.rms_difference > 0.01


def test_numbers_are_those_of_their_definitions():
    """Differences, R^2 and spread over orders, on numbers made up."""
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=5.0, size=(3000, 1, 1))
    shift = rng.normal(scale=0.5, size=(3000, 2, 1)) * np.array([0.0, 1.0])[:, None]
    found = SymmetryCheck(truth + shift + rng.normal(scale=0.8, size=(3000, 2, 4)))
    assert found.order_spread == pytest.approx(0.8, rel=0.03)
    assert found.rms_difference == pytest.approx(np.sqrt(0.25 + 2 * 0.64 / 4), rel=0.05)
    assert found.r_squared == pytest.approx(1 - 0.57 / 25, abs=0.005)
    assert "R^2 0.97" in str(found)
    one = SymmetryCheck(truth + shift)
    assert one.order_spread == 0
    assert one.rms_difference == pytest.approx(0.5, rel=0.05)


def test_bad_input_is_named():
    """Unknown sites, no symmetry and empty numbers are refused."""
    lattice, ensemble, box = SYSTEMS["binary"]()
    model = SiteBias(torch.zeros(8, 2))
    rng = torch.Generator()
    with pytest.raises(ValueError, match="without unknown sites"):
        symmetry_check(model, ensemble, Configurations.unknown(lattice, box.grid(1, 1)), rng)
    with pytest.raises(ValueError, match="must be at least 1, got 0, 4, 64"):
        symmetry_check(model, ensemble, rows(lattice, box), rng, n_images=0)
    atoms = Lattice.square(2, 1).template
    atoms.positions[1] += [0.13, 0.29, 0.0]
    atoms.cell[0, 1], atoms.pbc = 0.37, True
    lone = Lattice(atoms, [0, 1], ["Au", "Cu"], np.ones((2, 2)), sublattices=[0, 1])
    zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    with pytest.raises(ValueError, match="no symmetry but the identity"):
        symmetry_check(SiteBias(torch.zeros(2, 2)), zero, rows(lone, box), rng)
