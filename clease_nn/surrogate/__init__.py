"""Expensive energies at two levels: sample a cheap surrogate, let the true energy decide.

A surrogate is a cluster expansion fitted to few true energies where the sampler goes
(:func:`fit_surrogate`), or any other expansion of the lattice. Two ways lead from it to the
averages of the true energy, whatever the surrogate's errors:

* :class:`DelayedAcceptanceChain`: a chain of the true energy whose proposals are long stretches
  of the surrogate's chain;
* importance weights: draws of a model trained on the surrogate, scored by
  ``SemiGrandCanonical(true_energy).score(draws)``, which replaces ``energy`` and ``log_target``
  and leaves ``log_prob`` as drawn; :mod:`clease_nn.thermodynamics` reads them as ever, and the
  normalised effective sample size is the one against the true energy.
"""

from clease_nn.surrogate.delayed import DelayedAcceptanceChain
from clease_nn.surrogate.fitting import Surrogate, SurrogateReport, fit_surrogate
from clease_nn.surrogate.regression import RidgeFit, ridge

__all__ = [
    "DelayedAcceptanceChain",
    "RidgeFit",
    "Surrogate",
    "SurrogateReport",
    "fit_surrogate",
    "ridge",
]
