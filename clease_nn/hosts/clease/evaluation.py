"""Any energy behind CLEASE's interface: counted energies, CLEASE's evaluator, averages."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from ase.symbols import Symbols
from clease.montecarlo.mc_evaluator import MCEvaluator
from clease.montecarlo.observers import MCObserver
from torch import Tensor

from clease_nn.energies.cluster_expansion import ClusterExpansionEnergy
from clease_nn.energies.protocol import EnergyModel
from clease_nn.hosts.clease.observers import BlockAverager
from clease_nn.hosts.clease.system import fingerprint_of
from clease_nn.lattice import Lattice
from clease_nn.surrogate import SurrogateReport

__all__ = ["EnergyAverages", "EnergyEvaluator", "WatchedEnergy"]

_REMEMBERED = 64  # configurations whose energy the evaluator keeps


class WatchedEnergy:
    """An energy that is counted and never NaN, with the fields of a surrogate where it has none.

    Parameters
    ----------
    energy : EnergyModel
        What it offers besides ``__call__`` (``flip_energies``, ``partial_fields``,
        ``fingerprint``) is offered here too; the fingerprint is None where it has none.
    lattice : Lattice

    Attributes
    ----------
    calls : int
        Configurations whose energy was asked for.
    surrogate : ClusterExpansionEnergy or None
    surrogate_report : SurrogateReport or None
        What :meth:`guide` was given.
    """

    def __init__(self, energy: EnergyModel, lattice: Lattice):
        self.energy, self.lattice, self.calls = energy, lattice, 0
        calls = getattr(energy, "calls", None)
        self._paid_before = calls if isinstance(calls, int) else None
        self.surrogate: ClusterExpansionEnergy | None = None
        self.surrogate_report: SurrogateReport | None = None
        for name in ("flip_energies", "partial_fields"):
            if hasattr(energy, name):
                setattr(self, name, getattr(energy, name))
        self.fingerprint = fingerprint_of(energy)

    def __call__(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Energies in eV per supercell, (batch,), float64.

        Raises
        ------
        ValueError
            If one is NaN or infinite. The message, or a note on the energy's own error, names
            the configuration.
        """
        out = self.tolerant(lattice, occupations)
        bad = (~torch.isfinite(out)).nonzero().ravel()
        if len(bad):
            k = int(bad[0])
            raise ValueError(
                f"the energy of {self._name(occupations[k])} is {out[k].item()} eV; check the "
                "calculator or energy model for this configuration"
            )
        return out

    def tolerant(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """As a call, but energies may be NaN: fits leave such structures out."""
        self.calls += len(occupations)
        try:
            out = self.energy(lattice, occupations.clone())  # it may write into its argument
            out = torch.as_tensor(out).detach().cpu().double()
        except Exception as error:
            more = f" or one of {len(occupations) - 1} others" if len(occupations) > 1 else ""
            error.add_note(f"the configuration was {self._name(occupations[0])}{more}")
            raise
        if out.shape != occupations.shape[:1]:
            raise ValueError(
                f"the energy returned shape {tuple(out.shape)} for {len(occupations)} "
                f"configurations; it must return one number each, shape ({len(occupations)},)"
            )
        return out

    @property
    def paid(self) -> int:
        """Energies computed, by the energy's own count ``calls`` where it keeps one."""
        before = self._paid_before
        return self.calls if before is None else self.energy.calls - before

    def guide(
        self, surrogate: ClusterExpansionEnergy | None, report: SurrogateReport | None = None
    ) -> None:
        """Show models the fields of a surrogate (or none); energies stay as they are."""
        self.surrogate, self.surrogate_report = surrogate, report
        if hasattr(self.energy, "partial_fields"):
            return
        if surrogate is not None:
            self.partial_fields = surrogate.partial_fields
        elif hasattr(self, "partial_fields"):
            del self.partial_fields

    def _name(self, occupations: Tensor) -> str:
        symbols = [self.lattice.species[int(a)] for a in occupations]
        formula = Symbols.fromsymbols(symbols).get_chemical_formula()
        return f"{formula} with {' '.join(symbols)} on the active sites"


class EnergyEvaluator(MCEvaluator):
    """E' = E - mu.N of the present atoms for CLEASE's Monte Carlo classes.

    Parameters
    ----------
    atoms : ase.Atoms
    lattice : Lattice
    energy : EnergyModel
    """

    def __init__(self, atoms: Atoms, lattice: Lattice, energy: EnergyModel):
        super().__init__(atoms)
        self.lattice, self.energy = lattice, energy
        self.mu = np.zeros(lattice.n_species)
        self._known: dict[bytes, float] = {}

    def get_energy(self, applied_changes=None) -> float:
        """E' in eV per supercell; changes are taken back if the energy fails."""
        try:
            occupations = self.lattice.occupations(self.atoms)
            key = occupations.tobytes()
            energy = self._known.get(key)
            if energy is None:
                energy = float(self.energy(self.lattice, torch.from_numpy(occupations[None]))[0])
        except BaseException:
            if applied_changes is not None:
                self.undo_system_changes(applied_changes)
            raise
        self.remember(occupations, energy)
        return energy - float(self.mu[occupations].sum())

    def remember(self, occupations: np.ndarray, energy: float) -> None:
        """Note E (eV, without chemical potential) of a configuration; the oldest is forgotten."""
        self._known.pop(occupations.tobytes(), None)
        if len(self._known) >= _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[occupations.tobytes()] = energy


class _Sums:
    """Sums over steps, laid out as in CLEASE's own observer."""

    def __init__(self, n_species: int):
        self.counter = 0
        self.energy, self.energy_sq = BlockAverager(), BlockAverager()
        self.singlets, self.singlets_sq, self.singl_eng = np.zeros((3, n_species))


class EnergyAverages(MCObserver):
    """Averages of E' and of the share of every species among the active sites.

    Takes the place of CLEASE's ``SGCObserver``, which needs a cluster expansion.

    Attributes
    ----------
    reference : float
        eV; sums are of E' - reference, which keeps the digits of the variance. To be changed
        only where nothing has been added.
    """

    name = "SGCObserver"
    observe_singlets = True

    def __init__(self, evaluator: EnergyEvaluator):
        self.evaluator = evaluator
        self._n_species = evaluator.lattice.n_species
        self.reference = 0.0
        self.quantities = _Sums(self._n_species)

    def reset(self) -> None:
        """Set all sums to zero."""
        self.quantities = _Sums(self._n_species)

    def observe_step(self, mc_step) -> None:
        """Add the present atoms; biases are no part of E'."""
        q, energy = self.quantities, self.evaluator.get_energy() - self.reference
        occupations = self.evaluator.lattice.occupations(self.evaluator.atoms)
        shares = np.bincount(occupations, minlength=self._n_species) / len(occupations)
        q.counter += 1
        q.energy += energy
        q.energy_sq += energy * energy
        q.singlets += shares
        q.singlets_sq += shares * shares
        q.singl_eng += shares * energy

    counter = property(lambda self: self.quantities.counter)

    @property
    def energy(self) -> BlockAverager:
        """E', eV; ``.mean`` is its average."""
        return self._averager(self.reference + self.quantities.energy.mean)

    @property
    def energy_sq(self) -> BlockAverager:
        """E'^2, eV^2. For the variance take :attr:`energy_variance`, which keeps its digits."""
        return self._averager(self.energy_variance + self.energy.mean**2)

    @property
    def energy_variance(self) -> float:
        """Var(E'), eV^2."""
        q = self.quantities
        return float(q.energy_sq.mean - q.energy.mean**2)

    def _averager(self, mean: float) -> BlockAverager:
        out = BlockAverager()
        out.add_sum(self.counter * mean, self.counter)
        return out

    @property
    def shares(self) -> np.ndarray:
        """(species,) mean share of every species among the active sites."""
        return self.quantities.singlets / max(self.counter, 1)

    @property
    def share_variances(self) -> np.ndarray:
        """(species,) variances of the shares."""
        return self.quantities.singlets_sq / max(self.counter, 1) - self.shares**2

    def interval_ok(self, interval: int) -> bool:
        """Every step counts."""
        return interval == 1
