"""An observer that keeps the configurations of any semi-grand canonical CLEASE run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from clease.datastructures import MCStep
from clease.montecarlo import SGCMonteCarlo
from clease.montecarlo.observers import MCObserver

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost
from clease_nn.energies.atomic_numbers import from_atomic_numbers
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.any_energy import EnergySampler
from clease_nn.hosts.clease.chemical_potentials import mu_from_chem_pot
from clease_nn.hosts.clease.extraction import lattice

__all__ = ["ConfigurationRecorder"]


class ConfigurationRecorder(MCObserver):
    """Keeps what a run visits, for :mod:`clease_nn.thermodynamics` and :mod:`clease_nn.export`.

    Works on CLEASE's own ``SGCMonteCarlo`` and on ``NeuralSGCSampler``; averages come with errors
    that contain the autocorrelation time. ``run`` begins anew, as with every observer; ``irun``
    adds to what there is, also at another temperature or chemical potential.

    Parameters
    ----------
    mc : SGCMonteCarlo
        The sampler it will be attached to: CLEASE's, or a ``NeuralSGCSampler`` of any energy.

    Raises
    ------
    TypeError
        If ``mc`` is something else; a canonical run has no chemical potentials.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> from clease_nn.thermodynamics import averages
    >>> atoms = cuau_emt_atoms()
    >>> mc = SGCMonteCarlo(atoms, 900, symbols=["Au", "Cu"])
    >>> recorder = ConfigurationRecorder(mc)
    >>> mc.attach(recorder, interval=len(atoms))
    >>> mc.run(20 * len(atoms), chem_pot={"c1_0": 0.03})
    >>> len(recorder.configurations())
    20
    """

    name = "ConfigurationRecorder"

    def __init__(self, mc: SGCMonteCarlo):
        if not isinstance(mc, SGCMonteCarlo):
            raise TypeError(
                f"mc must be a semi-grand canonical sampler, got {type(mc).__name__}; the rows of "
                "other runs belong to no chemical potential"
            )
        super().__init__()
        self.mc = mc
        of_any_energy = isinstance(mc, EnergySampler)
        self.lattice = mc.evaluator.lattice if of_any_energy else lattice(mc.atoms)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._numbers: list[np.ndarray] = []
        self._energies: list[float] = []
        self._temperatures: list[float] = []
        self._mu: list[np.ndarray] = []
        self._last: tuple[Mapping[str, float], np.ndarray] | None = None
        self._step = self._steps = self._timed_steps = 0
        self._seconds = self._clock = 0.0

    def observe_step(self, mc_step: MCStep) -> None:
        """Keep the present configuration."""
        if self.mc.bias_potentials:
            raise ValueError(
                "a biased run does not sample the semi-grand canonical ensemble; take the bias "
                "away or do not record its configurations"
            )
        self._numbers.append(self.mc.atoms.numbers[self.lattice.site_indices])
        self._energies.append(mc_step.energy)
        self._temperatures.append(self.mc.temperature)
        self._mu.append(self._present_mu())
        now = time.perf_counter()
        if mc_step.step > self._step > 0:
            self._timed_steps += mc_step.step - self._step
            self._seconds += now - self._clock
            self._steps += mc_step.step - self._step
        else:  # a run began
            self._steps += mc_step.step
        self._step, self._clock = mc_step.step, now

    @property
    def cost(self) -> Cost:
        """What the steps up to the last observation have cost, one energy each.

        Time runs from the first observation of every run; what came before it is taken to be
        as fast.
        """
        rate = self._seconds / self._timed_steps if self._timed_steps else 0.0
        return Cost(
            energy_evaluations=float(self._steps),
            attempts_per_site=self._steps / self.lattice.n_sites,
            seconds=rate * self._steps,
        )

    def _present_mu(self) -> np.ndarray:
        if isinstance(self.mc, EnergySampler):
            return self.mc.evaluator.mu.copy()
        chem_pot = self.mc.chemical_potential
        if self._last is None or self._last[0] != chem_pot:
            self._last = dict(chem_pot), mu_from_chem_pot(self.mc.atoms, self.lattice, chem_pot)
        return self._last[1]

    def configurations(self) -> Configurations:
        """What was recorded, as one chain in time order.

        Returns
        -------
        Configurations
            ``energy`` is E, without chemical potential, whatever the run was told; every row has
            the conditions at which it was visited. ``provenance`` has :attr:`cost`.

        Raises
        ------
        ValueError
            If nothing was recorded.
        """
        if not self._numbers:
            raise ValueError("nothing was recorded; attach the recorder and run")
        at = Conditions(
            torch.tensor(self._temperatures, dtype=torch.float64),
            torch.as_tensor(np.array(self._mu)),
        )
        c = Configurations(
            self.lattice,
            at,
            torch.as_tensor(from_atomic_numbers(self.lattice, np.array(self._numbers))),
            chain=torch.zeros(len(at), dtype=torch.int64),
            provenance=self.cost.noted_in({"method": f"recorded from {type(self.mc).__name__}"}),
        )
        sgc = torch.tensor(self._energies, dtype=torch.float64)
        energy = sgc + (at.mu * c.counts()).sum(1)
        return replace(c, energy=energy, log_target=SemiGrandCanonical.log_weight(c, energy))
