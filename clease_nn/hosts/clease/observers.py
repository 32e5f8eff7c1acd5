"""CLEASE's observers on our sampler: right numbers, and a calculator that is updated on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from ase.units import kB
from clease.calculator import Clease
from clease.montecarlo.averager import Averager
from clease.montecarlo.observers import (
    AcceptanceRate,
    ConcentrationObserver,
    CorrelationFunctionObserver,
    DiffractionObserver,
    MCObserver,
    MultiStateSGCConcObserver,
    SGCObserver,
    SiteOrderParameter,
)

__all__ = ["BlockAverager", "corrected", "feed", "original", "updated_on_demand"]


class BlockAverager(Averager):
    """CLEASE's averager that also takes the sum of many samples at once."""

    def add_sum(self, total: float, n: int) -> None:
        """Add ``n`` samples with the given sum."""
        self._mean += total / self._ref_value
        self._n_samples += n


def feed(observer: SGCObserver, n: int, sums: np.ndarray) -> None:
    """Hand the sums of ``n`` steps (as in ``SingleChain.sums``) to the sampler's own observer."""
    q = observer.quantities
    q.counter += n
    q.energy.add_sum(sums[0], n)
    q.energy_sq.add_sum(sums[1], n)
    if observer.observe_singlets:
        per_singlet = sums[2:].reshape(-1, 3)
        q.singlets += per_singlet[:, 0]
        q.singlets_sq += per_singlet[:, 1]
        q.singl_eng += per_singlet[:, 2]


# ------------------------------------------------------------------ the calculator
class _Updater:
    """Stands in for the calculator's updater; any use of it brings the calculator up to date."""

    def __init__(self, updater, synchronize: Callable[[], None]):
        self._updater, self._synchronize = updater, synchronize

    def __getattr__(self, name):
        self._synchronize()
        return getattr(self._updater, name)


class _Results(dict):
    """Stands in for the calculator's results; reading them brings the calculator up to date."""

    def __init__(self, results: dict, synchronize: Callable[[], None]):
        super().__init__(results)
        self._synchronize = synchronize


def _reading(name: str):
    def method(self, *args, **kwargs):
        self._synchronize()
        return getattr(dict, name)(self, *args, **kwargs)

    return method


for _name in ("__getitem__", "__contains__", "__iter__", "get", "items", "keys", "values", "copy"):
    setattr(_Results, _name, _reading(_name))


@contextlib.contextmanager
def updated_on_demand(calc: Clease) -> Iterator[Callable[[], None]]:
    """Let compiled code change the atoms; the calculator follows when somebody looks.

    Inside, reading ``calc.results`` or using ``calc.updater`` (which every public method of the
    calculator does) first applies and keeps the changes of the atoms. Yields a function to be
    called after every change of the atoms. Afterwards, also after an exception, the calculator
    is up to date and free of stand-ins.
    """
    updater, stale = calc.updater, False

    def changed() -> None:
        nonlocal stale
        stale = True

    def synchronize() -> None:
        nonlocal stale
        if not stale:
            return
        stale = False
        stand_in, calc.updater = calc.updater, updater
        try:
            calc.update_energy()
            calc.clear_history()
        finally:
            calc.updater = stand_in

    results = calc.results
    calc.updater = _Updater(updater, synchronize)
    calc.results = _Results(results, synchronize)
    try:
        yield changed
    finally:
        calc.updater = updater
        synchronize()
        results.update(dict.items(calc.results))
        calc.results = results


# ------------------------------------------------------------------ observers
def corrected(observer: MCObserver, mc) -> MCObserver:
    """What to call in place of an observer so that its own results come out right.

    The user's object keeps all results; those of CLEASE's classes that count wrongly are driven
    by a :class:`_Correction`, others are returned as they are.
    """
    correction = _CORRECTIONS.get(type(observer))
    return observer if correction is None else correction(observer, mc)


def original(observer: MCObserver) -> MCObserver:
    """The user's observer behind a correction."""
    return observer.observer if isinstance(observer, _Correction) else observer


class _Correction(MCObserver):
    """Drives a user's observer; everything but the step is the observer's own."""

    def __init__(self, observer: MCObserver, mc):
        self.observer, self.mc = observer, mc

    @property
    def name(self):
        return self.observer.name

    def __call__(self, *args, **kwargs):
        return self.observer(*args, **kwargs)

    def reset(self) -> None:
        self.observer.reset()

    def synchronize(self) -> None:
        """Follow changes of the atoms that no step has reported."""

    def get_averages(self) -> dict:
        return self.observer.get_averages()

    def calculate_from_scratch(self, atoms):
        return self.observer.calculate_from_scratch(atoms)

    def interval_ok(self, interval: int) -> bool:
        return self.observer.interval_ok(interval)


class _Acceptance(_Correction):
    """CLEASE counts every proposed move that would change something as accepted."""

    def observe_step(self, mc_step) -> None:
        self.observer.num_calls += 1
        self.observer.num_accept += bool(mc_step.move_accepted)


class _Concentration(_Correction):
    """CLEASE leaves rejected steps out of the average and keeps a stale start."""

    def observe_step(self, mc_step) -> float:
        o = self.observer
        if mc_step.move_accepted and mc_step.last_move:
            return o(mc_step.last_move)
        o.avg_conc += o.current_conc
        o.avg_conc_sq += o.current_conc**2
        return o.current_conc

    def synchronize(self) -> None:
        self.observer.current_conc = self.observer.calculate_from_scratch(self.mc.atoms)

    def reset(self) -> None:
        self.synchronize()
        self.observer.reset()


class _Diffraction(_Correction):
    """CLEASE never counts its samples and applies rejected moves."""

    def observe_step(self, mc_step) -> None:
        o = self.observer
        if mc_step.move_accepted:
            o.updater.update(mc_step.last_move)
        o.avg += o.updater.value
        o.num_updates += 1

    def synchronize(self) -> None:
        updater = self.observer.updater
        updater.value = updater.calculate_from_scratch(self.mc.atoms.get_chemical_symbols())
        updater.prev_value = updater.value

    def reset(self) -> None:
        self.observer.updater.orig_symbols = self.mc.atoms.get_chemical_symbols()
        self.observer.reset()


class _SiteOrder(_Correction):
    """CLEASE stops with an assertion once every site differs from the start."""

    def observe_step(self, mc_step) -> None:
        o = self.observer
        o.site_changed = self.mc.atoms.numbers != o.orig_nums
        o.current_num_changed = int(np.count_nonzero(o.site_changed))
        o.num_calls += 1
        o.avg_num_changed += o.current_num_changed
        o.avg_num_changed_sq += o.current_num_changed**2

    def get_averages(self) -> dict:
        return self.observer.get_averages() if self.observer.num_calls else {}


class _MultiState(_Correction):
    """CLEASE leaves out the number of atoms, and counts mu of the reference twice.

    With x the chemical potentials of the singlets s and N atoms, ``E' = E - N x.s``. The weight
    that takes a sample of (T, x) to (T2, x2) is ``exp(E'/kT - (E - N x2.s)/kT2)``. T and x are
    those of the run.
    """

    def __init__(self, observer, mc):
        super().__init__(observer, mc)
        self._shift: dict[int, float] = {}

    def reset(self) -> None:
        super().reset()
        self._shift.clear()

    def observe_step(self, mc_step) -> None:
        mc, calc = self.mc, self.observer.calc
        cf = calc.get_cf()
        n = len(mc.atoms)
        energy = calc.energy
        bare = energy + n * sum(
            x * cf[k] for k, x in zip(mc.chem_pot_names, mc.chem_pots, strict=True)
        )
        for k, state in enumerate(self.observer.thermo_states):
            target = bare - n * sum(x * cf[name] for name, x in state.chem_pot.items())
            log_w = energy / mc.kT - target / (kB * state.temp)
            shift = self._shift.setdefault(k, log_w)
            if log_w > shift:  # keep the largest weight at one
                factor = np.exp(shift - log_w)
                state.avg_weight *= factor
                state.singlets = {name: v * factor for name, v in state.singlets.items()}
                shift = self._shift[k] = log_w
            weight = np.exp(log_w - shift)
            state.avg_weight += weight
            for name in state.chem_pot:
                state.singlets[name] += weight * cf[name]


class _CorrelationFunctions(_Correction):
    """CLEASE tracks other functions than the chosen ones after a reset."""

    def reset(self) -> None:
        o = self.observer
        o.reset()
        o.cf = {name: o.cf[name] for name in o.names}


_CORRECTIONS = {
    AcceptanceRate: _Acceptance,
    ConcentrationObserver: _Concentration,
    CorrelationFunctionObserver: _CorrelationFunctions,
    DiffractionObserver: _Diffraction,
    MultiStateSGCConcObserver: _MultiState,
    SiteOrderParameter: _SiteOrder,
}
