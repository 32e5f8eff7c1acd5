"""Drop-in for CLEASE's semi-grand canonical Monte Carlo with neural moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from clease.calculator import Clease

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.hosts.clease.any_energy import EnergySampler
from clease_nn.hosts.clease.checks import check_chemical_potential, check_temperature
from clease_nn.hosts.clease.chemical_potentials import axes, mu_from_chem_pot
from clease_nn.hosts.clease.constraints import species_indices
from clease_nn.hosts.clease.driver import AbstractNeuralSampler
from clease_nn.hosts.clease.expansion import (
    Expansion,
    check_atoms,
    refuse_foreign_chemical_potential,
)
from clease_nn.hosts.clease.extraction import parent_fingerprint, supercell
from clease_nn.hosts.clease.observers import BlockAverager, updated_on_demand
from clease_nn.io import TrainedModel
from clease_nn.sampler import ModelService, Schedule, System
from clease_nn.single_chain import SingleChain

__all__ = ["NeuralSGCSampler"]


class NeuralSGCSampler(AbstractNeuralSampler):
    """CLEASE's ``SGCMonteCarlo``, faster, with neural moves and absolute free energies.

    The chain samples ``exp(-E'/kT)`` exactly, E' being the energy that CLEASE reports: with
    ``chem_pot={"c1_0": x}``, ``E' = E - N x <phi_0>``, N the number of all atoms. Single-site
    moves have CLEASE's distribution and run in compiled code from one observation to the next.
    Where a trained model is at hand, every now and then the whole configuration (or a block of
    it) is redrawn by the model and accepted or rejected so that the distribution stays exact;
    such a move counts as one step. Everything of ``SGCMonteCarlo`` works unchanged.

    Parameters
    ----------
    atoms : ase.Atoms
        With a ``Clease`` calculator. Its numbers are changed in place. With any other calculator,
        or with ``energy=``, the name makes an :class:`EnergySampler`; see there.
    temp : float
        K.
    symbols : sequence of str
        Elements that trial moves exchange.
    generator : TrialMoveGenerator, optional
        Other trial moves. ``RandomFlip`` and ``RandomFlipWithinBasis`` are compiled; others run at
        the host's speed, without neural moves unless they derive from these two.
    observe_singlets : bool
        Also average the singlets.
    model : path or TrainedModel, optional
        Proposals for neural moves. Default: one is looked for
        (:func:`~clease_nn.sampler.find_model`); if there is none, single-site moves alone are
        made, with a ``NoModelWarning``.
    train : bool or dict
        Train a model at the first run if none is found. A dict has the arguments of :meth:`fit`;
        True means half to twice the temperature, 0.1 eV around the chemical potentials, 60 s.
    out_of_range : {"warn", "raise"}
        What to do at conditions the model was not trained for: warn once and make exact
        single-site moves, or raise ValueError.
    seed : int, optional
        Seed of all compiled and neural moves. Default: taken from Python's ``random`` at the start
        of every run, so that ``random.seed`` fixes a run as it does in CLEASE. Generators that run
        at the host's speed always use Python's ``random``.
    neural_interval : "auto", float or None
        Sweeps between neural moves, chosen by a deterministic pilot run
        (:func:`~clease_nn.sampler.plan_schedule`), given, or no neural moves at all.

    Raises
    ------
    TypeError, ValueError
        If the input is not what it should be; the message says what to do.

    Notes
    -----
    Rejected moves reach observers as (i, s, s), accepted ones as the changes from state to
    state. A constraint rejects a move instead of having it drawn again. Bias potentials and
    constraints that are neither clamps nor masks are run at the host's speed without neural
    moves. Observers of CLEASE that count wrongly give right results here, in their own objects.

    Examples
    --------
    >>> from clease_nn.hosts.clease.examples import cuau_emt_atoms
    >>> atoms = cuau_emt_atoms()
    >>> mc = NeuralSGCSampler(atoms, 600, symbols=["Au", "Cu"], seed=1, neural_interval=None)
    >>> mc.run(2000, chem_pot={"c1_0": 0.03})
    >>> mc.get_thermodynamic_quantities()["n_mc_steps"]
    2000
    """

    def __new__(cls, atoms=None, *args, energy=None, **kwargs):
        """A sampler for the calculator of the atoms: CLEASE's, or any other."""
        other = isinstance(atoms, Atoms) and not isinstance(atoms.calc, (Clease, type(None)))
        if cls is NeuralSGCSampler and (other or energy is not None):
            return EnergySampler(atoms, *args, energy=energy, **kwargs)
        return super().__new__(cls)

    def __init__(
        self,
        atoms: Atoms,
        temp: float,
        symbols: Sequence[str] = (),
        generator=None,
        observe_singlets: bool = False,
        *,
        model: str | PathLike | TrainedModel | None = None,
        train: bool | Mapping = False,
        out_of_range: str = "warn",
        seed: int | None = None,
        neural_interval: str | float | None = "auto",
    ):
        check_atoms(atoms)
        check_temperature(temp)
        self._configure(train, seed, neural_interval)
        refuse_foreign_chemical_potential(atoms)
        atoms.calc.eci = dict(atoms.calc.eci)  # the user's own dict stays as it is
        self._expansion = Expansion.read(atoms, atoms.calc.eci)
        self._models = ModelService(self._expansion.system, model, out_of_range)
        self._adopt(self._expansion.system)
        if generator is None:
            if len(set(symbols)) < 2:
                raise ValueError(
                    f"at least two symbols are needed, got {list(symbols)}; this expansion has "
                    f"{list(self._lattice.species)}"
                )
            species_indices(symbols, self._lattice)
        self._offset = 0.0
        super().__init__(atoms, temp, symbols, generator, observe_singlets)
        q = self.averager.quantities
        reference = float(atoms.calc.energy)
        q.energy, q.energy_sq = BlockAverager(reference), BlockAverager(reference**2)

    __new__.__wrapped__ = __init__  # the signature that users see

    @classmethod
    def from_mchammer(
        cls,
        calculator,
        temp: float,
        symbols: Sequence[str] = (),
        *,
        structure: Atoms | None = None,
        **options: Any,
    ) -> EnergySampler:
        """The same interface for an icet cluster expansion, moves compiled.

        Parameters
        ----------
        calculator : mchammer.calculators.ClusterExpansionCalculator
            Or an ``icet.ClusterExpansion``, with ``structure``.
        temp : float
            K.
        symbols : sequence of str
            Elements that trial moves exchange, as far as a site may carry them. Default: all.
        structure : ase.Atoms, optional
            Start, changed in place. Default: a copy of the structure of the calculator.
        **options
            As in :class:`EnergySampler`. Chemical potentials are given by element.

        Raises
        ------
        ImportError
            If icet is not installed: ``pip install 'clease_nn[icet]'``.
        TypeError, ValueError
            If the calculator is none of icet, or the structure does not fit it.

        Examples
        --------
        >>> from icet import ClusterExpansion, ClusterSpace
        >>> from mchammer.calculators import ClusterExpansionCalculator
        >>> from ase.build import bulk
        >>> space = ClusterSpace(bulk("Au"), [4.3], ["Ag", "Au"])
        >>> expansion = ClusterExpansion(space, [0, 0, 0.1, -0.02])
        >>> calculator = ClusterExpansionCalculator(bulk("Au").repeat(3), expansion)
        >>> mc = NeuralSGCSampler.from_mchammer(calculator, 300, neural_interval=None, seed=1)
        >>> mc.run(1000, chem_pot={"Ag": 0.05})
        >>> mc.get_thermodynamic_quantities()["mu_Ag"]
        0.05
        """
        try:
            from clease_nn.hosts.mchammer import extraction
        except ImportError as error:
            raise ImportError(
                f"from_mchammer needs icet ({error}); pip install 'clease_nn[icet]'"
            ) from error
        if structure is None:
            structure = _structure_of(calculator)
        return EnergySampler(
            structure,
            temp,
            symbols,
            energy=extraction.energy(structure, calculator),
            lattice=extraction.lattice(structure, calculator),
            **options,
        )

    # ------------------------------------------------------------------ chemical potentials
    @property
    def chemical_potential(self) -> dict[str, float] | None:
        """Chemical potentials in eV as they were given: of singlets or of elements."""
        return self._chemical_potential

    @chemical_potential.setter
    def chemical_potential(self, chem_pot: Mapping[str, float]) -> None:
        check_chemical_potential(chem_pot)
        singlets, offset = self._expansion.singlets(self.atoms, chem_pot)
        self.reset_eci()
        self._chemical_potential = chem_pot
        self._fold(singlets, offset)

    def _fold(self, singlets: dict[str, float], offset: float) -> None:
        """Put the chemical potential into the calculator's ECIs, as CLEASE does."""
        eci = self.calc.eci
        self._offset = offset * self._lattice.n_sites / len(self.atoms)
        if self._offset:
            eci["c0"] -= self._offset
        self._include_chemical_potential_in_eci(singlets, eci)

    def reset_eci(self) -> None:
        """Take the chemical potential out of the calculator's ECIs."""
        if not self.chem_pot_in_eci:
            return
        eci = self.calc.eci
        if self._offset:
            eci["c0"] += self._offset
        self._reset_eci_to_original(eci)
        for name in (*self.chem_pot_names, "c0"):  # exactly, not up to rounding
            if name in eci and abs(eci[name] - self._expansion.eci.get(name, np.inf)) < 1e-9:
                eci[name] = self._expansion.eci[name]
        self.calc.update_eci(eci)

    def initialize_run(self) -> None:
        """Prepare the next run: energies, random numbers, trial moves, neural schedule."""
        if self._chemical_potential is not None and not self.chem_pot_in_eci:
            self._fold(*self._expansion.singlets(self.atoms, self._chemical_potential))
        super().initialize_run()

    def _mu(self, chem_pot: Mapping[str, float]) -> np.ndarray:
        return mu_from_chem_pot(self.atoms, self._lattice, chem_pot)

    def _axes(self, names: Iterable[str]) -> np.ndarray:
        return axes(self.atoms, self._lattice, names)

    def _names(self) -> list[str]:
        return [f"c1_{d}" for d in range(len(self._expansion.singlet_table))]

    def _cell(self, cell) -> System:
        if isinstance(cell, Atoms) and isinstance(cell.calc, Clease):
            key = parent_fingerprint(cell)
            if key != self._expansion.parent:
                raise ValueError(
                    f"the {len(cell)} atoms to train on have another expansion (key {key}, these "
                    f"{self._expansion.parent}): give their calculator the same settings and ECIs, "
                    "without a chemical potential folded in (reset_eci()), or give the size alone"
                )
        own = self._expansion
        host, energy = supercell(self.atoms, cell, own.eci)
        return System(host, SemiGrandCanonical(energy), energy.metadata["parent"])

    def _require_chemical_potential(self) -> None:
        if self._chemical_potential is None:
            raise ValueError(
                "no chemical potentials given; use chem_pot={'c1_0': x} with the singlets of the "
                "expansion, or {'Au': mu} with its elements"
            )

    # ------------------------------------------------------------------ the expansion
    def _check_energy(self) -> None:
        """Follow ECIs that the user has changed; refuse those another sampler has changed."""
        bare = dict(self.calc.eci)
        if self.chem_pot_in_eci:
            for name, x in zip(self.chem_pot_names, self.chem_pots, strict=True):
                bare[name] += x
            if self._offset:
                bare["c0"] += self._offset
        if self._expansion.has(bare):
            return
        refuse_foreign_chemical_potential(self.atoms, self)
        self._expansion = Expansion.read(self.atoms, bare)
        self._adopt(self._expansion.system)

    def _energy_state(self) -> tuple:
        return tuple(self.calc.eci.values())

    def _present_conditions(self) -> Conditions:
        return self._conditions(chem_pot=None if self.chem_pot_in_eci else {})

    def _new_chain(self, observing: bool) -> SingleChain:
        table = self._expansion.singlet_table if observing else None
        return SingleChain(self._ensemble.energy.tables, table)

    def _plan(self, neural, groups, conditions, occupations) -> Schedule:
        return self._plan_by(self._new_chain(True), neural, groups, conditions, occupations)

    def _loaded_energy(self, conditions: Conditions, occupations: np.ndarray) -> float:
        bias = sum(b.calculate_from_scratch(self.atoms) for b in self.bias_potentials)
        energy = self.current_energy - bias
        c = Configurations(self._lattice, conditions, torch.as_tensor(occupations)[None])
        own = -float(self._ensemble.score(c).log_target) * conditions.kT.item()
        if abs(own - energy) > 1e-6 * (1 + abs(own)):
            raise RuntimeError(
                f"the calculator says {energy} eV, its expansion {own} eV; the calculator was "
                "changed behind the sampler: make it anew with attach_calculator"
            )
        return energy

    def _following(self):
        return updated_on_demand(self.calc)

    def _update_calculator(self) -> None:
        self.calc.update_energy()
        self.calc.clear_history()

    # ------------------------------------------------------------------ results
    def get_thermodynamic_quantities(self, reset_eci: bool = False) -> dict[str, Any]:
        """Averages of the last run under CLEASE's keys, flat scalars only.

        ``energy`` and ``sgc_energy``: <E'> in eV per supercell; ``sgc_heat_capacity``:
        Var(E')/(kB T^2), eV/K; ``temperature``, ``n_mc_steps``, ``accept_rate``, ``mu_c1_k``;
        with ``observe_singlets`` also ``singlet_energy`` = <E>, ``singlet_c1_k``,
        ``var_singlet_c1_k`` and ``<symbol>_conc``; then what the observers report.

        Parameters
        ----------
        reset_eci : bool
            Take the chemical potential out of the ECIs afterwards.
        """
        observed = self.averager
        n = observed.counter
        mean, mean_sq = observed.energy.mean, observed.energy_sq.mean
        out: dict[str, Any] = {
            "energy": float(mean),
            "sgc_energy": float(mean),
            "sgc_heat_capacity": float((mean_sq - mean**2) / (kB * self.temperature**2)),
            "temperature": self.temperature,
            "n_mc_steps": n,
            "accept_rate": self.current_accept_rate,
        }
        if self.observe_singlets and n:
            out.update(self._singlet_averages(mean))
        out.update({f"mu_{k}": x for k, x in zip(self.chem_pot_names, self.chem_pots, strict=True)})
        given = self._chemical_potential or {}
        out.update({f"mu_{k}": float(x) for k, x in given.items() if not k.startswith("c1_")})
        out.update(self.meta_info)
        for _, observer in self.observers:
            out.update(observer.get_averages())
        if reset_eci:
            self.reset_eci()
        return out

    def _singlet_averages(self, mean_energy: float) -> dict[str, float]:
        observed = self.averager
        singlets = observed.singlets / observed.counter
        squares = observed.quantities.singlets_sq / observed.counter
        names = [f"c1_{d}" for d in range(len(singlets))]
        mu_n = sum(
            x * singlets[names.index(k)]
            for k, x in zip(self.chem_pot_names, self.chem_pots, strict=True)
        )
        out = {"singlet_energy": mean_energy + len(self.atoms) * (mu_n + self._offset)}
        for name, s, s2 in zip(names, singlets, squares, strict=True):
            out[f"singlet_{name}"] = float(s)
            out[f"var_singlet_{name}"] = float(s2 - s * s)
        if len(self.symbols) == len(singlets) + 1:
            composition = self.singlet2composition(singlets)
            out.update({k: float(v) for k, v in composition.items()})
        return out


def _structure_of(calculator) -> Atoms:
    """A copy of the structure that a calculator of mchammer was made for."""
    structure = getattr(getattr(calculator, "sublattices", None), "_structure", None)
    if not isinstance(structure, Atoms):
        raise TypeError(
            "calculator must be a mchammer ClusterExpansionCalculator, got "
            f"{type(calculator).__name__}; give structure= where it keeps none"
        )
    return structure.copy()


NeuralSGCSampler.register(EnergySampler)  # isinstance holds for what the name makes
