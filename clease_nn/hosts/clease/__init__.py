"""CLEASE as a host: its expansions as fast energies, its chemical potentials as ours."""

from clease_nn.hosts.clease.any_energy import EnergySampler
from clease_nn.hosts.clease.chemical_potentials import axes, chem_pot_from_mu, mu_from_chem_pot
from clease_nn.hosts.clease.extraction import energy, lattice, parent_fingerprint
from clease_nn.hosts.clease.metadynamics import metadynamics
from clease_nn.hosts.clease.sampler import NeuralSGCSampler

__all__ = [
    "EnergySampler",
    "NeuralSGCSampler",
    "axes",
    "chem_pot_from_mu",
    "energy",
    "lattice",
    "metadynamics",
    "mu_from_chem_pot",
    "parent_fingerprint",
]
