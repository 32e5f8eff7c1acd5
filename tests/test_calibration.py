"""The large calibration study: error bars of the whole chain of tools are right. Slow."""

import warnings

import numpy as np
import pytest
import torch

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import axes, energy, lattice, mu_from_chem_pot
from clease_nn.hosts.clease.examples import cuau_emt_atoms
from clease_nn.sampling import sample
from clease_nn.statistics import normalized_ess
from clease_nn.thermodynamics import averages
from clease_nn.training import fit
from clease_nn.warnings import CleaseNNWarning


@pytest.mark.slow
@pytest.mark.parametrize("steps", [150, 350])
def test_errors_of_a_trained_model_are_calibrated(steps):
    """z-scores over 40 conditions and 10 replicas have standard deviation 0.8 to 1.2.

    For a model that is hardly trained and for a good one. Conditions whose exact distribution
    has too few events among the samples for an error bar (n < 20 (kurtosis - 1)), or whose ESS
    is below 200, are left out; at least 100 z-scores remain.
    """
    atoms = cuau_emt_atoms((2, 2, 4))
    cell = lattice(atoms)
    ensemble = SemiGrandCanonical(energy(atoms))
    box = ConditionRange((300, 1000), [-0.08], [0.04], axes(atoms, cell, ["c1_0"]))
    mus = [mu_from_chem_pot(atoms, cell, {"c1_0": x}) for x in np.linspace(-0.08, 0.04, 8)]
    grid = Conditions.grid([300, 400, 500, 700, 1000], np.array(mus))
    exact = ensemble.enumerate(cell)
    au = (exact.occupations == cell.species.index("Au")).sum(1).double()
    n, replicas = 600, 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CleaseNNWarning)
        trained = fit(ensemble, cell, box, max_steps=steps, seed=1, progress=False)
        z = {"log_z": [], "energy": [], "composition": []}
        left_out = 0
        rng = torch.Generator().manual_seed(5)
        for k in range(len(grid)):
            p = exact.probabilities(grid[k])
            enough = True
            for values in (exact.energy, au):
                d = values - (p * values).sum()
                second = (p * d**2).sum()
                enough &= bool(n * second**2 > 20 * ((p * d**4).sum() - second**2))
            if not enough:
                left_out += replicas
                continue
            log_z = exact.log_z(grid[k])[0].item()
            mean_e, mean_x = (p * exact.energy).sum().item(), (p * au).sum().item() / 16
            for _ in range(replicas):
                drawn = sample(trained.model, ensemble, cell, grid[k].repeat(n), rng)
                if n * normalized_ess(drawn.log_weight.numpy()) < 200:
                    left_out += 1
                    continue
                a = averages(drawn)[0]
                z["log_z"].append(a.log_z.z(log_z))
                z["energy"].append(a.energy.z(mean_e))
                z["composition"].append(a.composition[cell.species.index("Au")].z(mean_x))
    for name, values in z.items():
        v = np.array(values, dtype=float)
        print(f"{steps} steps: {name} mean {v.mean():.2f} std {v.std():.2f} of {len(v)} z-scores")
        assert len(v) >= 100, (name, left_out)
        assert abs(v.mean()) < 5 / np.sqrt(len(v)) and 0.8 < v.std() < 1.2, (
            name,
            v.mean(),
            v.std(),
        )
