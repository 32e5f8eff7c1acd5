"""The shipped contract check finds every kind of broken energy model."""

import pytest
import torch

from clease_nn.energies import EnergyModel, EnergyModelError, check_energy_model, ising_energy
from clease_nn.lattice import Lattice

LATTICE = Lattice.square(3)
GOOD = ising_energy(LATTICE)


class Broken:
    """The Ising energy with one thing replaced."""

    def __init__(self, **replaced):
        self.replaced = replaced

    def __call__(self, lattice, x):
        return self.replaced.get("energy", GOOD)(lattice, x)

    def flip_energies(self, lattice, x):
        return self.replaced.get("flips", GOOD.flip_energies)(lattice, x)

    def partial_fields(self, lattice, x, means=None):
        return self.replaced.get("fields", GOOD.partial_fields)(lattice, x, means)


def no_means(lattice, x):
    return GOOD.partial_fields(lattice, x)


def mutate(lattice, x):
    x[0, 0] = 1 - x[0, 0]
    return GOOD(lattice, x)


def not_finite(lattice, x):
    return torch.where(torch.arange(len(x)) == len(x) - 1, torch.nan, GOOD(lattice, x))


BREAKAGES = {
    "changed the occupations": {"energy": mutate},
    "must be finite": {"energy": not_finite},
    r"must have shape \(16,\)": {"energy": lambda lattice, x: GOOD(lattice, x)[:, None]},
    "depends on the order": {"energy": lambda lattice, x: GOOD(lattice, x) + torch.arange(len(x))},
    "alone differs": {"energy": lambda lattice, x: GOOD(lattice, x) + len(x)},
    "flip_energies differ.*instead of": {
        "flips": lambda lattice, x: 1.001 * GOOD.flip_energies(lattice, x)
    },
    "flip_energies differ.*shape": {"flips": lambda lattice, x: GOOD(lattice, x)},
    "partial_fields with all sites known": {
        "fields": lambda lattice, x, means: 0.5 * GOOD.partial_fields(lattice, x, means)
    },
    "partial_fields with certain means": {
        "fields": lambda lattice, x, means: GOOD.partial_fields(lattice, x)
    },
    "partial_fields with certain means .*": {
        "fields": lambda lattice, x, means: GOOD.partial_fields(
            lattice, x if means is None else torch.full_like(x, -1), means
        )
    },
    "partial_fields must take means": {
        "fields": lambda lattice, x, means: no_means(
            lattice, x, **({} if means is None else {"means": means})
        )
    },
    "a partial field": {"fields": lambda lattice, x, means: GOOD.partial_fields(lattice, x) / 0.0},
    "partial_fields must have shape": {
        "fields": lambda lattice, x, means: GOOD(lattice, x.clamp(min=0))
    },
}


@pytest.mark.parametrize("message", BREAKAGES)
def test_every_broken_law_is_found(message):
    """A model that breaks one law is refused with a message that says which."""
    with pytest.raises(EnergyModelError, match=message):
        check_energy_model(Broken(**BREAKAGES[message]), LATTICE)


def test_good_models_pass_and_are_energy_models():
    """Plain callables are tested on energies only; single-precision fields are accepted."""
    assert isinstance(GOOD, EnergyModel)
    assert set(check_energy_model(lambda lattice, x: GOOD(lattice, x), LATTICE)) == {"batch"}
    single = Broken(
        fields=lambda lattice, x, m: GOOD.partial_fields(lattice, x, m).float() * 1.0000001
    )
    assert check_energy_model(single, LATTICE)["fields"] < 1e-4


def test_too_few_configurations():
    """One configuration cannot show a dependence on the batch."""
    with pytest.raises(ValueError, match="at least 2"):
        check_energy_model(GOOD, LATTICE, n=1)
