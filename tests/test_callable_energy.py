"""Batched functions and torch modules as energies."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from toys import two_sublattices

from clease_nn.conditions import Conditions
from clease_nn.energies import CallableEnergy, check_energy_model
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.montecarlo import Chains
from clease_nn.montecarlo.chains import random_occupations

LATTICE = Lattice.uniform(bulk("Cu", a=3.8, cubic=True), ["Au", "Cu"])
X = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.int8)


class Module(torch.nn.Module):
    """A linear layer with dropout, that would betray training mode."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(4, 1)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, numbers):
        return self.layer(self.dropout(numbers / 50.0))[:, 0]


def gold(numbers):
    return 0.1 * (numbers == 79).sum(1)


def test_contract_holds_in_any_batch_size():
    """A module keeps the contract; the batch size changes nothing beyond single precision."""
    expected = CallableEnergy(Module())(LATTICE, X)
    for size in (1, 2, 100):
        energy = CallableEnergy(Module(), batch_size=size)
        assert check_energy_model(energy, LATTICE, tolerance=1e-6)
        assert torch.allclose(energy(LATTICE, X), expected, atol=1e-6)


def test_function_sees_all_atoms_and_zero_for_vacancies():
    """Numbers are those of the structures, background atoms included, in the template's order."""
    seen = []

    def function(numbers):
        seen.append(numbers)
        return numbers.sum(1)

    lattice = two_sublattices()[0]
    x = torch.from_numpy(random_occupations(lattice, 4, np.random.default_rng(0)))
    energy = CallableEnergy(function, name="sum")
    e = energy(lattice, x)
    expected = np.array([lattice.atoms(row).numbers for row in x.numpy()])
    assert seen[0].dtype == torch.int64
    assert (seen[0].numpy() == expected).all()
    assert e.dtype == torch.float64
    assert (e.numpy() == expected.sum(1)).all()


def test_module_is_evaluated_without_gradients_and_left_in_its_mode():
    """Dropout is off, nothing has a gradient, and training goes on where it was."""
    module = Module().train()
    module.layer.eval()
    energy = CallableEnergy(module)
    assert torch.equal(energy(LATTICE, X), energy(LATTICE, X))
    assert not energy(LATTICE, X).requires_grad
    assert (module.training, module.layer.training, module.dropout.training) == (True, False, True)


def test_fingerprint_follows_weights_and_name():
    """Other weights, another name, another architecture: another fingerprint."""
    wider = torch.nn.Sequential(Module())
    energies = [
        CallableEnergy(Module()),
        CallableEnergy(Module(1)),
        CallableEnergy(Module(), name="b"),
        CallableEnergy(wider),
        CallableEnergy(gold, name="a"),
        CallableEnergy(gold, name="b"),
    ]
    assert len({e.fingerprint for e in energies}) == len(energies)
    assert CallableEnergy(Module()).fingerprint == energies[0].fingerprint


def test_chains_sample_it():
    """Independent sites: the mean number of gold atoms is exact within four errors."""
    ensemble = SemiGrandCanonical(CallableEnergy(gold, name="gold"))
    conditions = Conditions([1000.0] * 256, [[0.05, 0.0]] * 256)
    chains = Chains(ensemble, LATTICE, conditions, seed=1)
    chains.sweep(10)
    counts = chains.counts()[:, 0]
    p = float(torch.sigmoid(-0.05 / conditions.kT[0]))
    assert abs(counts.mean() - 4 * p) < 4 * np.sqrt(4 * p * (1 - p) / 256)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: z.sum(), r"returned shape \(\) for 3 configurations"),
        (lambda z: z[:, :1].double(), r"shape \(3, 1\)"),
        (lambda z: torch.where((z == 79).sum(1) == 2, torch.nan, 1.0), "nan for configuration 1"),
        (lambda z: z.sum(1) / (z == 79).sum(1), r"inf for configuration 2.*1 of 3"),
    ],
)
def test_bad_results(function, message):
    """Wrong shapes and numbers that are not finite are named."""
    with pytest.raises(ValueError, match=message):
        CallableEnergy(function, name="bad")(LATTICE, X)


def test_bad_arguments():
    """A name for plain functions, a function at all, a batch of at least one."""
    with pytest.raises(ValueError, match="name="):
        CallableEnergy(gold)
    with pytest.raises(TypeError, match="callable"):
        CallableEnergy(3, name="three")
    with pytest.raises(ValueError, match="batch_size"):
        CallableEnergy(gold, name="gold", batch_size=0)
    with pytest.raises(ValueError, match="species -1"):
        CallableEnergy(gold, name="gold")(LATTICE, -torch.ones_like(X))
