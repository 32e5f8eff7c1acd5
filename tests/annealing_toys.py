"""A crude model of independent sites that tests of annealing start from."""

import numpy as np
import torch

from clease_nn.models import AbstractOccupationModel
from clease_nn.montecarlo import Chains


class MeanField(AbstractOccupationModel):
    """All sites in one pass from softened fields: normalised, cheap, and without correlations."""

    needs_fields = True

    def __init__(self, box, softness=0.7):
        super().__init__()
        self.box, self.softness = box, softness

    def log_conditionals(self, c, fields):
        """ln q of every site."""
        allowed = c.lattice.allowed_mask(fields.device)
        alike = fields[..., c.lattice.n_species :]  # not the mean field
        logits = self.softness * alike.to(torch.float64)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)

    def draw_steps(self, c, rng):
        """One pass."""
        return torch.where(c.known, -1, 0).to(torch.int16)

    def config(self):
        """Not saved."""
        return {"class": "MeanField"}

    @classmethod
    def from_config(cls, config):
        """Not saved."""
        raise NotImplementedError


class Blind(MeanField):
    """Uniformly random sites, for energies without fields."""

    needs_fields = False

    def log_conditionals(self, c, fields):
        """ln q of every site."""
        allowed = c.lattice.allowed_mask()
        logits = torch.zeros(len(c), *allowed.shape, dtype=torch.float64)
        return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1)


class MetropolisMove:
    """An exact move of all rows: one sweep of single-site trials."""

    def __init__(self, ensemble, seed=0):
        self.ensemble, self.seeds = ensemble, np.random.SeedSequence(seed)

    def __call__(self, c):
        """The next configurations, and which have changed."""
        [seed] = self.seeds.spawn(1)
        chains = Chains(self.ensemble, c.lattice, c.conditions, c.occupations, seed=seed)
        chains.sweep(1, "metropolis")
        new = chains.configurations()
        return new, (new.occupations != c.occupations).any(1)
