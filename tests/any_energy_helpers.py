"""EMT energies of eight sites, a poor model, and checks against enumeration."""

from functools import cache

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from sampler_helpers import pooled_z

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.system import active_lattice
from clease_nn.io import TrainedModel
from clease_nn.models import AbstractOccupationModel

BINARY = ["Au", "Cu"]
MU = {"Au": 0.2}
TEMP = 900
kB = 8.617333262e-5


def cell():
    """8 fcc sites of copper, fixed positions."""
    return bulk("Cu", a=3.85) * (2, 2, 2)


@cache
def emt_energies():
    """EMT energies of all 256 configurations, by occupation read as a binary number."""
    lattice = active_lattice(cell(), BINARY)
    atoms, out = cell(), np.empty(256)
    atoms.calc = EMT()
    for k in range(256):
        occupations = (k >> np.arange(8)) & 1
        atoms.numbers = lattice.atoms(occupations).numbers
        out[k] = atoms.get_potential_energy()
    return out


def table_energy(lattice, occupations):
    """The EMT energies, looked up."""
    index = occupations.numpy().astype(np.int64) @ (1 << np.arange(8))
    return torch.as_tensor(emt_energies()[index])


def exact(energy, lattice, temp=TEMP, mu=MU):
    """(occupations, probabilities, E', -kT ln Z) of all configurations."""
    states = SemiGrandCanonical(energy).enumerate(lattice)
    at = Conditions([temp], [[mu.get(s, 0.0) for s in lattice.species]])
    e = -states.log_target(at) * at.kT[0]
    return states.occupations, states.probabilities(at), e, -float(at.kT[0] * states.log_z(at)[0])


class BiasedModel(AbstractOccupationModel):
    """Independent sites that prefer the second species: normalised, wrong, without fields."""

    needs_fields = False

    def log_conditionals(self, c, fields):
        """ln q of every site."""
        allowed = c.lattice.allowed_mask()
        logits = 0.3 * torch.arange(c.lattice.n_species, dtype=torch.float64)
        logits = logits.expand(len(c), c.lattice.n_sites, -1)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def draw_steps(self, c, rng):
        """All at once."""
        return torch.where(c.known, -1, 0).to(torch.int16)

    def config(self):
        """Not saved."""
        return {"class": "BiasedModel"}

    @classmethod
    def from_config(cls, config):
        """Not read back."""
        raise NotImplementedError


def biased_model(lattice):
    """The poor model as if it had been trained."""
    k = lattice.n_species - 1
    box = ConditionRange((300, 3000), [-1.0] * k, [1.0] * k, np.eye(k + 1)[:k])
    return TrainedModel(BiasedModel(), box, {"species": list(lattice.species)})


def replicas(mc, n, steps, chem_pot=MU):
    """Thermodynamic quantities of consecutive runs."""
    mc.run(100, call_observers=False, chem_pot=chem_pot)
    out = []
    for _ in range(n):
        mc.run(steps)
        out.append(mc.get_thermodynamic_quantities())
    return out


def check_averages(out, x, p, e):
    """Energy, heat capacity and composition within pooled errors."""
    assert abs(pooled_z([q["energy"] for q in out], float((p * e).sum()))) < 4
    share = float((p * (x == 0).double().mean(1)).sum())
    assert abs(pooled_z([q["Au_conc"] for q in out], share)) < 4
    squares = [q["sgc_heat_capacity"] * kB * TEMP**2 + q["energy"] ** 2 for q in out]
    assert abs(pooled_z(squares, float((p * e * e).sum()))) < 4
