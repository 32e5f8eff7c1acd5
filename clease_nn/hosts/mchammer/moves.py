r"""Neural moves in mchammer's own ensembles.

Some trial steps of an ensemble are replaced by proposals of a trained model, decided with the
energy difference of the ensemble's calculator and the ratio of the proposal probabilities:

.. math:: \min\{1, \exp[-(\Delta E - \sum_i \mu_i \Delta N_i)/kT]\; q(x|y)/q(y|x)\}

with :math:`\Delta N_i = 0` at fixed composition. All other steps are mchammer's. The distribution
is that of the ensemble, whatever the model is worth.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from os import PathLike

import numpy as np
import torch
from ase import Atoms
from ase.units import kB
from mchammer.ensembles import CanonicalEnsemble, SemiGrandCanonicalEnsemble
from mchammer.ensembles.base_ensemble import BaseEnsemble
from mchammer.ensembles.thermodynamic_base_ensemble import ThermodynamicBaseEnsemble

import clease_nn
from clease_nn.conditions import Conditions
from clease_nn.hosts.mchammer.chemical_potentials import Gauge
from clease_nn.hosts.mchammer.expansion import Expansion, flip_groups
from clease_nn.io import TrainedModel
from clease_nn.sampler import CanonicalBlockMoves, match_composition
from clease_nn.sampler.keyed import KeyedMoves
from clease_nn.sampler.orders import check_any_order, obstacle
from clease_nn.warnings import NoModelWarning, OutOfRangeWarning

__all__ = ["NeuralCanonicalEnsemble", "NeuralTrialSteps"]

_RECORD = "neural_moves"  # entry of the container's metadata
_COLD = 1e-16  # K; mchammer accepts no move uphill below
_BATCH = 32  # redrawings of all sites drawn together


class NeuralTrialSteps:
    """Mixin for ``CanonicalEnsemble``, ``SemiGrandCanonicalEnsemble`` and their subclasses.

    Put it first: ``class Mine(NeuralTrialSteps, SemiGrandCanonicalEnsemble)``. Every now and then
    a trial step is a neural move: all sites, or a block of them, are redrawn. At fixed
    composition they keep the species they have, sublattice by sublattice, and a block lies on one
    sublattice.

    Parameters
    ----------
    *args, **kwargs
        Those of the ensemble.
    model : path or TrainedModel, optional
        Default: the one last fitted with this calculator; without any, a ``NoModelWarning`` is
        given and all steps are mchammer's.
    neural_interval : float
        Sweeps (one trial step a site that may change) from one neural move to the next.
    block_size : int, optional
        Sites redrawn, those of one sublattice at fixed composition. Default: all sites. Smaller
        blocks cost less but leave an ordered domain as it is.
    guide : mapping of str to float, optional
        Only for a fixed composition: chemical potentials in eV that the model is asked for. Any
        are exact; default those at which the model finds the initial structure most likely.

    Raises
    ------
    TypeError
        If the ensemble is one whose moves this cannot correct, or the calculator's energy is more
        than its cluster expansion.
    ValueError
        If the model belongs to another expansion or has one order of drawing that does not allow
        these moves, or a number is out of its limits.

    Notes
    -----
    A proposal that violates ``neighbor_sites_to_avoid`` is rejected. The sublattice of a block is
    chosen with the probabilities of swaps; sublattices with probability zero are frozen. Random
    numbers of a model depend on the seed of the container, the interval and the step alone, all
    others are mchammer's. A semi-grand canonical run that is restarted therefore goes on as if it
    had never been stopped. A canonical one goes on as another run of the same distribution: the
    second site of mchammer's swaps is taken from lists whose order is the history of the run.
    """

    def __init__(
        self,
        *args,
        model: str | PathLike | TrainedModel | None = None,
        neural_interval: float = 1.0,
        block_size: int | None = None,
        guide: Mapping | None = None,
        **kwargs,
    ):
        self._refuse_other_ensembles()
        canonical = isinstance(self, CanonicalEnsemble)
        if not isinstance(neural_interval, Real) or not 0 < neural_interval < np.inf:
            raise ValueError(
                f"neural_interval must be a positive number of sweeps, got {neural_interval!r}"
            )
        least = 2 if canonical else 1
        if block_size is not None and (not isinstance(block_size, Integral) or block_size < least):
            raise ValueError(f"block_size must be an integer, {least} or more, got {block_size!r}")
        if guide is not None and not canonical:
            raise ValueError("guide is for a fixed composition; here chemical_potentials are given")
        if not isinstance(model, (str, PathLike, TrainedModel, type(None))):
            raise TypeError(
                f"model must be the path of a *.nn file or a TrainedModel, got {model!r}"
            )
        self._interval, self._guide = float(neural_interval), guide
        self._block_size = block_size
        self._moves: CanonicalBlockMoves | KeyedMoves | None = None
        self._setting: tuple | None = None
        self._drawn: tuple | None = None
        super().__init__(*args, **kwargs)
        self._expansion = Expansion.read(self.structure, self.calculator)
        system = self._expansion.system
        self._trained = self._expansion.fitted
        if model is not None:
            model = model if isinstance(model, TrainedModel) else TrainedModel.load(model)
            self._trained = system.check(model)
        if self._trained is None:
            warnings.warn(
                "no model was given: all trial steps are mchammer's. Give model='file.nn', or "
                "train one with NeuralSGCEnsemble.fit",
                NoModelWarning,
                stacklevel=3,
            )
        others = [s.chemical_symbols[0] for s in self.calculator.sublattices.inactive_sublattices]
        self._gauge = Gauge(system.lattice, others)
        if guide is not None:
            self._gauge.mu(guide)
        site_of = np.full(len(self.structure), -1)
        site_of[system.lattice.site_indices] = np.arange(system.lattice.n_sites)
        self._sites = [site_of[np.array(s.indices, dtype=int)] for s in self.sublattices]
        self._sites = [s[s >= 0] for s in self._sites]
        weights = self._probabilities()
        n_free = sum(len(s) for s, p in zip(self._sites, weights, strict=True) if p > 0)
        if self._trained is not None:
            self._refuse_one_order(weights)
        self._every = max(1, round(self._interval * n_free)) if n_free else 0
        metadata = self.data_container.metadata
        self._seed = _seed_of(metadata.get("seed", self.random_seed))
        self._root = (self._seed << 32) + self._every  # another interval numbers moves anew
        record = metadata.get(_RECORD) or {}
        self._neural = [int(record.get("moves", 0)), int(record.get("accepted", 0))]
        self._warned = False

    def _refuse_other_ensembles(self) -> None:
        """Raise TypeError unless the trial steps to be mixed with are known to be exact."""
        base = next(
            (b for b in (CanonicalEnsemble, SemiGrandCanonicalEnsemble) if isinstance(self, b)),
            None,
        )
        name = type(self).__name__
        if base is None:
            raise TypeError(
                f"{name} is neither a CanonicalEnsemble nor a SemiGrandCanonicalEnsemble: what it "
                "samples is not exp(-E/kT), and neural moves cannot be corrected for it; mix "
                "NeuralTrialSteps with one of these two"
            )
        methods = {
            "_do_trial_step": base,
            "_run": BaseEnsemble,
            "_get_property_change": BaseEnsemble,
            "update_occupations": BaseEnsemble,
            "_acceptance_condition": ThermodynamicBaseEnsemble,
            "do_canonical_swap": ThermodynamicBaseEnsemble,
            "do_sgc_flip": ThermodynamicBaseEnsemble,
        }
        own = {m: getattr(type(self), m) for m in methods}
        own["_do_trial_step"] = super()._do_trial_step.__func__  # the one that is mixed with
        for method, owner in methods.items():
            if own[method] is not getattr(owner, method):
                raise TypeError(
                    f"{name} has a {method} of its own, so what it samples or how it accepts is "
                    "not known here and neural moves cannot be corrected for it; mix "
                    f"NeuralTrialSteps with a class that keeps mchammer's {method}"
                )

    def _refuse_one_order(self, weights) -> None:
        """Raise ValueError if the model cannot propose these moves."""
        model, lattice = self._trained.model, self._expansion.system.lattice
        if isinstance(self, CanonicalEnsemble):
            check_any_order(model, "moves at fixed composition")
            return
        free = np.zeros(lattice.n_sites, dtype=bool)
        for sites, p in zip(self._sites, weights, strict=True):
            free[sites] = p > 0
        reason = obstacle(model, lattice, free, self._block_size)
        if reason is not None:
            raise ValueError(reason)

    def _probabilities(self):
        """Of the sublattices, for swaps or flips."""
        if isinstance(self, CanonicalEnsemble):
            return self._swap_sublattice_probabilities
        return self._flip_sublattice_probabilities

    # ------------------------------------------------------------------ trial steps
    def _do_trial_step(self) -> int:
        """One trial step, mchammer's or a neural one; whether it was accepted."""
        step = self._step + 1
        due = self._trained is not None and self._every and step % self._every == 0
        if not due or self.temperature <= _COLD:
            return super()._do_trial_step()
        lattice, numbers = self._expansion.system.lattice, self.configuration.occupations
        x = (numbers[lattice.site_indices][:, None] == self._expansion.numbers).argmax(1)
        x = x.astype(np.int8)
        self._prepare(numbers)
        self._neural[0] += 1
        y, log_ratio = self._propose(step, x)
        changed = np.flatnonzero(x != y)
        if not len(changed) or log_ratio == -np.inf:
            return 0
        sites = lattice.site_indices[changed].tolist()
        species = self._expansion.numbers[y[changed]].tolist()
        if self.configuration.is_constraint_violated(sites, species):
            return 0
        difference = self._get_property_change(sites, species)
        if not isinstance(self, CanonicalEnsemble):
            mu = self.chemical_potentials
            difference -= sum(mu[b] - mu[numbers[i]] for i, b in zip(sites, species, strict=True))
        log_p = log_ratio - difference / (self.boltzmann_constant * self.temperature)
        if log_p < 0 and self._next_random_number() >= np.exp(log_p):
            return 0
        self.update_occupations(sites, species)
        self._neural[1] += 1
        return 1

    def _propose(self, step: int, x: np.ndarray) -> tuple[np.ndarray, float]:
        if isinstance(self._moves, KeyedMoves):
            return self._moves.proposal(step // self._every, x)
        moves, probabilities = self._moves, self._probabilities()
        if self._block_size is not None:
            self._restart(2, step)
            sublattice = self.get_random_sublattice_index(probabilities)
            return moves.propose(x, self._sites[sublattice])
        number = step // self._every
        start = number - number % _BATCH  # proposals depend on x only where it cannot change
        active = [s for s, p in zip(self._sites, probabilities, strict=True) if p > 0]
        among = np.concatenate(active)
        kept = [np.delete(x, among), *(np.sort(x[s]) for s in active)]  # the composition, too
        kept = np.concatenate(kept).tobytes()
        if self._drawn is None or self._drawn[:2] != (start, kept):
            self._restart(3, start)
            self._drawn = start, kept, moves.draw(x, _BATCH, among)
        y, log_q_y = self._drawn[2][number - start]
        self._restart(2, step)
        return y, moves.score(x, among) - log_q_y

    def _restart(self, purpose: int, number: int) -> None:
        """Random numbers of the model that depend on the seed and a number alone."""
        words = np.random.SeedSequence([self._root, purpose, number])
        self._moves.rng.manual_seed(int(words.generate_state(1, np.uint64)[0]))

    def _prepare(self, numbers: np.ndarray) -> None:
        """Moves at the present conditions."""
        given = {} if isinstance(self, CanonicalEnsemble) else self.chemical_potentials
        avoid = self.configuration.neighbor_sites_to_avoid or {}
        setting = (
            float(self.temperature),
            tuple(sorted(given.items())),
            tuple(self._probabilities()),
            tuple((i, tuple(n)) for i, n in sorted(avoid.items())),
        )
        if setting == self._setting:
            return
        conditions = self._conditions()
        if not self._warned and not bool(self._trained.range.contains(conditions).all()):
            self._warned = True
            warnings.warn(
                f"T = {conditions.temperature[0].item():g} K, mu = {conditions.mu[0].tolist()} eV "
                "lies outside the trained range of the model: neural moves stay exact, but few "
                "may be accepted",
                OutOfRangeWarning,
                stacklevel=6,
            )
        system = self._expansion.system
        parts = self._trained.model, system.ensemble, system.lattice, conditions
        if isinstance(self, CanonicalEnsemble):
            self._moves = CanonicalBlockMoves(*parts, torch.Generator(), self._block_size)
        else:
            groups = flip_groups(
                system.lattice, numbers, self.sublattices, self._probabilities(), avoid or None
            )
            self._moves = KeyedMoves(
                *parts, self._root, block_size=self._block_size, reachable=groups.reachable,
                forbidden=groups.forbidden if len(groups.avoid) else None,
            )  # fmt: skip
        self._setting, self._drawn = setting, None

    def _conditions(self) -> Conditions:
        """What the model is asked for, one row, in the gauge that models know."""
        kT = float(self.temperature) * self.boltzmann_constant
        if isinstance(self, CanonicalEnsemble) and self._guide is None:
            lattice = self._expansion.system.lattice
            ensemble = self._expansion.system.ensemble
            fields = ensemble.fields if self._trained.model.needs_fields else None
            start = lattice.occupations(self.data_container.structure)  # also after a restart
            rng = torch.Generator().manual_seed(self._seed % 2**63)
            return match_composition(self._trained, lattice, start, kT / kB, rng, fields)
        given = self._guide if self._guide is not None else self.chemical_potentials
        return Conditions.from_kT([kT], self._gauge.fixed(self._gauge.mu(given))[None])

    # ------------------------------------------------------------------ records
    @property
    def neural_acceptance(self) -> float:
        """Share of the neural moves that were accepted so far, nan if there were none."""
        moves, accepted = self._neural
        return accepted / moves if moves else float("nan")

    def _write_record(self) -> None:
        metadata = self.data_container.metadata
        metadata["clease_nn"] = clease_nn.__version__
        metadata[_RECORD] = dict(zip(("moves", "accepted"), self._neural, strict=True))

    def write_data_container(self, outfile) -> None:
        """Write rows, parameters and the last state to a file, as mchammer does."""
        self._write_record()
        super().write_data_container(outfile)

    def _finalize(self) -> None:
        super()._finalize()
        self._write_record()


class NeuralCanonicalEnsemble(NeuralTrialSteps, CanonicalEnsemble):
    """mchammer's ``CanonicalEnsemble`` with collective swaps proposed by a trained model.

    Samples ``exp(-E/kT)`` at fixed composition exactly. Most steps are mchammer's swaps; now and
    then the model redraws all sites with the species they have, or a block of one sublattice.

    Parameters
    ----------
    structure, calculator, temperature, user_tag, boltzmann_constant, random_seed, dc_filename
        As in mchammer; the calculator must be a ``ClusterExpansionCalculator``.
    data_container_write_period, ensemble_data_write_interval, trajectory_write_interval
        As in mchammer.
    sublattice_probabilities, neighbor_sites_to_avoid
        As in mchammer; both hold for neural moves.
    model : path or TrainedModel, optional
        From ``NeuralSGCEnsemble.fit``. Default: the one last fitted with this calculator; without
        any, a ``NoModelWarning`` is given and all steps are mchammer's.
    chemical_potentials : mapping of str to float, optional
        eV, that the model is asked for. Any are exact; default those at which the model finds the
        initial structure most likely.
    neural_interval : float
        Sweeps (one trial step a site that may change) from one neural move to the next.
    block_size : int, optional
        Sites redrawn in a neural move, at least 2. Default: all.

    Raises
    ------
    TypeError, ValueError
        If the input is not what it should be; the message says what to do.

    Examples
    --------
    >>> import warnings
    >>> from ase.build import bulk
    >>> from icet import ClusterExpansion, ClusterSpace
    >>> from mchammer.calculators import ClusterExpansionCalculator
    >>> from clease_nn import NeuralSGCEnsemble
    >>> primitive = bulk("Au")
    >>> space = ClusterSpace(primitive, [4.3], ["Ag", "Au"])
    >>> expansion = ClusterExpansion(space, [0, 0, 0.1, -0.02])
    >>> structure = primitive.repeat(2)
    >>> structure.symbols[:4] = "Ag"
    >>> calculator = ClusterExpansionCalculator(structure, expansion)
    >>> sgc = NeuralSGCEnsemble(structure, calculator, 900, {"Ag": 0, "Au": 0})
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     trained = sgc.fit((500, 1500), {"Au": (-0.5, 0.5)}, max_steps=2, progress=False)
    >>> mc = NeuralCanonicalEnsemble(structure, calculator, 900, random_seed=1, model=trained)
    >>> mc.run(160)
    >>> mc.structure.symbols.count("Ag"), mc.neural_acceptance > 0
    (4, True)
    """

    def __init__(
        self,
        structure: Atoms,
        calculator,
        temperature: float,
        user_tag: str | None = None,
        boltzmann_constant: float = kB,
        random_seed: int | None = None,
        dc_filename: str | None = None,
        data_container_write_period: float = 600,
        ensemble_data_write_interval: int | None = None,
        trajectory_write_interval: int | None = None,
        sublattice_probabilities: list[float] | None = None,
        neighbor_sites_to_avoid: dict[int, list[int]] | None = None,
        *,
        model: str | PathLike | TrainedModel | None = None,
        chemical_potentials: Mapping | None = None,
        neural_interval: float = 1.0,
        block_size: int | None = None,
    ):
        super().__init__(
            structure,
            calculator,
            temperature,
            user_tag=user_tag,
            boltzmann_constant=boltzmann_constant,
            random_seed=random_seed,
            dc_filename=dc_filename,
            data_container_write_period=data_container_write_period,
            ensemble_data_write_interval=ensemble_data_write_interval,
            trajectory_write_interval=trajectory_write_interval,
            sublattice_probabilities=sublattice_probabilities,
            neighbor_sites_to_avoid=neighbor_sites_to_avoid,
            model=model,
            guide=chemical_potentials,
            neural_interval=neural_interval,
            block_size=block_size,
        )


def _seed_of(seed) -> int:
    """A non-negative integer from whatever mchammer was given as a seed."""
    seed = int(seed) if isinstance(seed, Integral) else seed
    return int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:16], "big")
