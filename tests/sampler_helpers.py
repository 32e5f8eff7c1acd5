"""Small systems with known answers and a deliberately imperfect model for tests of samplers."""

import numpy as np
import torch
from clease.calculator import attach_calculator
from clease.settings import CEBulk, Concentration

from clease_nn.conditions import ConditionRange, Conditions
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease import axes, energy, lattice, mu_from_chem_pot
from clease_nn.io import TrainedModel
from clease_nn.models import AbstractOccupationModel


class FieldModel(AbstractOccupationModel):
    """Draws sites one by one from a softened mean field: normalised, order-dependent, not exact."""

    needs_fields = True

    def __init__(self, softness=0.6):
        super().__init__()
        self.softness = softness

    def log_conditionals(self, c, fields):
        """ln q of every site."""
        allowed = c.lattice.allowed_mask(fields.device)
        alike = fields[..., c.lattice.n_species :]  # not the mean field
        logits = self.softness * alike.to(torch.float64)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def draw_steps(self, c, rng):
        """A random order of the unknown sites."""
        rank = torch.rand(c.known.shape, generator=rng).masked_fill(c.known, 2.0)
        return torch.where(c.known, -1, rank.argsort(1).argsort(1)).to(torch.int16)

    def config(self):
        """Not saved."""
        return {"class": "FieldModel"}

    @classmethod
    def from_config(cls, config):
        """Not read back."""
        raise NotImplementedError


def binary_atoms(folder, size=(2, 2, 2), seed=0, scale=0.03, host="Cu"):
    """Cu-Au on fcc with random ECIs, all atoms ``host``."""
    settings = CEBulk(
        Concentration(basis_elements=[["Au", "Cu"]]), crystalstructure="fcc", a=3.8,
        size=list(size), max_cluster_dia=[4.0, 3.0], db_name=str(folder / f"b{seed}.db"),
    )  # fmt: skip
    return _attach(settings, size, seed, scale, {0: host})


def ternary_atoms(folder, size=(2, 2, 2), seed=0, scale=0.03):
    """Au-Cu-Pd on fcc with random ECIs."""
    settings = CEBulk(
        Concentration(basis_elements=[["Au", "Cu", "Pd"]]), crystalstructure="fcc", a=3.8,
        size=list(size), max_cluster_dia=[4.0], db_name=str(folder / f"t{seed}.db"),
    )  # fmt: skip
    return _attach(settings, size, seed, scale, {0: "Cu"})


def rocksalt_atoms(folder, size=(2, 2, 1), seed=0, scale=0.03):
    """(Li, V) on one sublattice and (O, X) on the other, random ECIs."""
    settings = CEBulk(
        Concentration(basis_elements=[["Li", "V"], ["O", "X"]]), crystalstructure="rocksalt",
        a=4.0, size=list(size), max_cluster_dia=[3.0], db_name=str(folder / f"r{seed}.db"),
    )  # fmt: skip
    return _attach(settings, size, seed, scale, {0: "Li", 1: "O"})


def _attach(settings, size, seed, scale, first):
    rng = np.random.default_rng(seed)
    eci = {name: float(rng.normal(0, scale)) for name in sorted(settings.all_cf_names)}
    eci["c0"] = -0.5
    atoms = settings.prim_cell.copy().repeat(list(size))
    atoms = attach_calculator(settings, atoms, eci)
    for basis, indices in enumerate(settings.index_by_basis):
        atoms.symbols[indices] = first[basis]
    atoms.get_potential_energy()
    return atoms


def bare_eci(atoms):
    """ECIs as they are now, in a dict of their own."""
    return dict(atoms.calc.eci)


def exact(atoms, temp, chem_pot, eci=None):
    """(lattice, occupations, probabilities, E') of all configurations."""
    host = lattice(atoms)
    ensemble = SemiGrandCanonical(energy(atoms, eci))
    states = ensemble.enumerate(host)
    at = Conditions([temp], mu_from_chem_pot(atoms, host, chem_pot)[None])
    return host, states.occupations, states.probabilities(at), -states.log_target(at) * at.kT[0]


def trained(atoms, names=("c1_0",), temps=(300.0, 3000.0), softness=0.6):
    """The imperfect model as if it had been trained on these atoms."""
    from clease_nn.hosts.clease import parent_fingerprint

    host = lattice(atoms)
    box = ConditionRange(
        temps, [-0.3] * len(names), [0.3] * len(names), axes(atoms, host, list(names))
    )
    meta = {
        "parent_fingerprint": parent_fingerprint(atoms),
        "species": list(host.species),
        "eci": bare_eci(atoms),
    }
    return TrainedModel(FieldModel(softness), box, meta)


def pooled_z(values, reference):
    """z of the mean of independent replicas."""
    values = np.asarray(values, dtype=float)
    return (values.mean() - reference) / (values.std(ddof=1) / np.sqrt(len(values)))
