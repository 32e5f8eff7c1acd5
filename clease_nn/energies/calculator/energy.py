"""Energies of an ASE calculator for batches of configurations."""

from __future__ import annotations

import functools
import uuid
import warnings
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from torch import Tensor
from tqdm import tqdm

from clease_nn.energies.atomic_numbers import atomic_numbers, complete_occupations
from clease_nn.energies.calculator.cache import Cache, CacheError
from clease_nn.energies.calculator.failures import CalculatorError, ExecutorError, Failure, listing
from clease_nn.energies.calculator.fingerprints import (
    describe_calculator,
    describe_relaxation,
    digest,
    lattice_key,
    parameters_text,
)
from clease_nn.energies.calculator.relaxation import Relaxation
from clease_nn.energies.calculator.task import Outcome, Task
from clease_nn.executors import Batch, check_executor
from clease_nn.lattice import Lattice
from clease_nn.symmetry import canonical_occupations, site_permutations
from clease_nn.warnings import CalculatorWarning

__all__ = ["CalculatorEnergy"]


class CalculatorEnergy:
    """Potential energy of an ASE calculator, in eV per supercell.

    Every distinct structure is computed once: duplicates and symmetry equivalents of a
    configuration share the energy of one representative, in memory and, with ``cache``, on disk.
    Vacancies ``"X"`` are deleted before a structure is computed; one without any atom has energy
    zero.

    Parameters
    ----------
    calculator : ase calculator or callable
        A calculator, or a function without arguments that returns one (a calculator class is
        such a function). Workers need a function of a module where the calculator cannot be
        pickled; calculators that write files need one that gives each its own folder.
    relax : Relaxation, optional
        Take the energy of the relaxed structure. Default: ideal positions.
    cache : str or Path, optional
        File of ``ase.db`` (SQLite). Each energy is written as it comes (those that come within a
        second of one another together). Several lattices may share a file; another calculator or
        relaxation is refused.
    executor : optional
        Anything with ``submit`` (``concurrent.futures``, ``dask.distributed.Client``) or ``map``.
        Default: this process. For processes use the spawn context,
        ``ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))``: forked
        workers deadlock in threaded libraries. Set ``OMP_NUM_THREADS=1`` before many workers
        share a machine.
    symmetry : bool
        Whether symmetry equivalents share an energy. Switch it off for energies that depend on
        more than the structure: an external field, tags, settings by the index of an atom.
    retries : int
        Times a structure is tried again after an exception or an energy that is not finite.
    max_failures : int
        Failed structures that a call puts up with: it warns, and their energies read NaN, which
        no ensemble accepts. One more and the call starts no further structure, waits for those
        under way and raises. What has been computed is kept either way, and in the next call
        structures that failed come last.
    name : str, optional
        Identity of the calculator, in place of its class and parameters. Needed with ``cache``
        where these do not determine the energies (a file of weights, a version of a code).
    progress : bool
        Whether to show a progress bar.

    Attributes
    ----------
    requested : int
        Configurations asked for.
    hits : int
        Those answered without computing a structure.
    calls : int
        Times the calculator was asked for the energy of a structure; a relaxation counts as one.
    steps : int
        Optimizer steps of all relaxations.

    Raises
    ------
    TypeError
        If ``calculator`` is neither a calculator nor callable, or cannot be sent to the workers.
    ValueError
        If a number is negative, or the calculator cannot be recognised and has no ``name``; when
        energies are asked for, if its parameters are no longer those of the energies before.
    CacheError
        If the cache is damaged or belongs to another calculator or relaxation.

    Notes
    -----
    A relaxed structure must stay on its lattice: an atom that ends nearer to another site than
    to its own, or a cell that changes its shape beyond ``max_strain``, is a *collapse*. Its
    energy belongs to another configuration and is never used; it counts as a failure, as does a
    relaxation that does not converge. Neither is tried again.

    Symmetry is that of the empty supercell (:func:`~clease_nn.symmetry.site_permutations`), sites
    within 1e-3 angstrom of their images counting as ideal. With a filter that is not a plain class
    (it may have a mask), and with constraints other than ``FixAtoms``, only exact duplicates are
    shared.

    On a cluster, start workers as dask documents for its queue and hand over the client:

    >>> from dask_jobqueue import SLURMCluster                             # doctest: +SKIP
    >>> cluster = SLURMCluster(cores=16, processes=1, memory="32GB")       # doctest: +SKIP
    >>> cluster.scale(jobs=20)                                             # doctest: +SKIP
    >>> energy = CalculatorEnergy(make_vasp, executor=Client(cluster))     # doctest: +SKIP

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> lattice = Lattice.uniform(bulk("Cu", a=3.8, cubic=True), ["Au", "Cu"])
    >>> energy = CalculatorEnergy(EMT())
    >>> occupations = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1]], dtype=torch.int8)
    >>> energy(lattice, occupations).round(decimals=3)
    tensor([0.0560, 0.0560, 0.0150], dtype=torch.float64)
    >>> energy.requested, energy.hits, energy.calls
    (3, 1, 2)
    """

    def __init__(
        self,
        calculator,
        *,
        relax: Relaxation | None = None,
        cache: str | Path | None = None,
        executor=None,
        symmetry: bool = True,
        retries: int = 1,
        max_failures: int = 0,
        name: str | None = None,
        progress: bool = False,
    ):
        self._is_factory = isinstance(calculator, type) or not hasattr(
            calculator, "get_potential_energy"
        )
        if isinstance(calculator, Atoms) or (self._is_factory and not callable(calculator)):
            raise TypeError(
                "calculator must be an ASE calculator (atoms.calc) or a function that returns "
                f"one, got {type(calculator).__name__}"
            )
        if relax is not None and not isinstance(relax, Relaxation):
            raise TypeError(f"relax must be a Relaxation, got {type(relax).__name__}")
        for what, value in (("retries", retries), ("max_failures", max_failures)):
            if value < 0:
                raise ValueError(f"{what} must not be negative, got {value}")
        self.calculator = calculator
        self.relax = relax
        self.symmetry = symmetry
        self.retries = retries
        self.max_failures = max_failures
        self.name = name
        self.progress = progress
        self.requested = self.hits = self.calls = self.steps = 0
        self._token = uuid.uuid4().hex
        self._parameters = None if self._is_factory else parameters_text(calculator)
        self._shelves: dict[str, _Shelf] = {}
        self._shelf_of: WeakKeyDictionary[Lattice, _Shelf] = WeakKeyDictionary()
        self.executor = executor
        self.cache = None if cache is None else Cache(cache, self.fingerprint, self.description)

    # ------------------------------------------------------------------ identity
    @property
    def executor(self):
        """Where structures are computed; may be replaced, for instance after one has died."""
        return self._executor

    @executor.setter
    def executor(self, executor) -> None:
        check_executor(
            executor,
            self.calculator,
            self.relax,
            remedy="pass a function of a module, without arguments, that returns a new calculator",
        )
        self._executor = executor

    @functools.cached_property
    def description(self) -> str:
        """Calculator and relaxation in words."""
        what = self.name
        if what is None:
            what = describe_calculator(self.calculator() if self._is_factory else self.calculator)
        return f"{what}, {describe_relaxation(self.relax)}"

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the calculator's class and parameters, or of ``name``, and of the relaxation.

        Raises
        ------
        ValueError
            If the calculator states no parameters, or some that cannot be written down.
        """
        return digest(self.description)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Structures without an energy so far, of all lattices."""
        return tuple(f for shelf in self._shelves.values() for f in shelf.failures.values())

    # ------------------------------------------------------------------ energies
    def __call__(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Energies in eV per supercell, shape (batch,), float64.

        Raises
        ------
        ValueError
            If a site is unknown or carries a species that it may not carry.
        CalculatorError
            If more than ``max_failures`` structures fail; the message names them.
        ExecutorError
            If the executor dies. What has finished is kept; set ``executor`` and call again.
        CacheError
            If the cache cannot be written. Nothing computed is lost; call again.
        """
        x = complete_occupations(lattice, occupations)
        if self._parameters not in (None, parameters_text(self.calculator)):
            raise ValueError(
                f"the parameters of {type(self.calculator).__name__} have changed since it gave "
                "energies that are kept here; make a new CalculatorEnergy for the new ones"
            )
        shelf = self._shelf(lattice)
        rows, back = _unique(x)
        canonical = canonical_occupations(rows, shelf.permutations)
        keys = [row.tobytes() for row in canonical]
        todo = {k: row for k, row in zip(keys, canonical, strict=True) if k not in shelf.energies}
        self.requested += len(x)
        self.hits += len(x) - len(todo)
        if self.cache is not None:
            self.cache.flush()  # what an earlier call could not write
        if todo:
            self._fill(shelf, todo)
        values = np.array([shelf.energies.get(k, np.nan) for k in keys])
        return torch.from_numpy(values[back]).to(torch.as_tensor(occupations).device)

    def structures(self, lattice: Lattice, occupations: Tensor) -> list[Atoms]:
        """The structures that the calculator is given, one a configuration, unrelaxed."""
        x = complete_occupations(lattice, occupations)
        shelf = self._shelf(lattice)
        task = self._task(shelf)
        canonical = canonical_occupations(x, shelf.permutations)
        return [task.atoms(numbers) for numbers in atomic_numbers(lattice, canonical)]

    def relaxed(self, lattice: Lattice, occupation) -> Atoms:
        """Relaxed structure behind the energy of one configuration, computed if need be.

        With symmetry it is the structure of an image of the configuration by a rotation,
        reflection or translation, the one computed; its occupation is in ``info["occupation"]``.

        Raises
        ------
        ValueError
            Without ``relax``: nothing is relaxed.
        """
        if self.relax is None:
            raise ValueError("nothing is relaxed without relax=; structures() gives the cells")
        x = torch.as_tensor(occupation)[None]
        energy = float(self(lattice, x)[0])
        shelf = self._shelf(lattice)
        row = canonical_occupations(x.numpy(), shelf.permutations)[0]
        atoms = shelf.structures.get(row.tobytes())
        if atoms is None and self.cache is not None:
            self.cache.flush()
            row = shelf.stored.get(row.tobytes(), row)
            atoms = self.cache.structure(shelf.key, row)
        if atoms is None:
            raise CalculatorError(f"configuration {row.tolist()} has no relaxed structure")
        atoms = atoms.copy()
        atoms.info.update(occupation=row.tolist(), energy=energy)
        return atoms

    # ------------------------------------------------------------------ the work
    def _fill(self, shelf: _Shelf, todo: dict[bytes, np.ndarray]) -> None:
        """Compute what is missing; raise if too much of it fails."""
        known = [k for k in todo if k in shelf.failures and shelf.failures[k].final]
        pending = [k for k in todo if k not in shelf.failures]
        pending += [k for k in todo if k in shelf.failures and not shelf.failures[k].final]
        done, failed, error = self._compute(shelf, pending, todo) if pending else (0, [], None)
        failures = [shelf.failures[k] for k in [*failed, *known]]
        remaining = len(pending) - done
        if error is not None:
            raise ExecutorError(
                f"the executor {type(self.executor).__name__} died "
                f"({type(error).__name__}: {error}); {done} of {len(pending)} structures are "
                f"finished and kept, {remaining} remain. Set .executor to a new one and call "
                "again. Workers that cannot import the calculator or its factory die so too",
                failures,
                remaining,
            ) from error
        if len(failures) > self.max_failures:
            raise CalculatorError(
                f"{len(failures)} of {len(todo)} structures have no energy (max_failures is "
                f"{self.max_failures}); {done - len(failed)} energies of this call are kept, "
                f"{remaining} structures were not started:\n{listing(failures)}",
                failures,
                remaining,
            )
        if failures:
            warnings.warn(
                f"{len(failures)} of {len(todo)} structures have no energy, it reads NaN:\n"
                f"{listing(failures)}",
                CalculatorWarning,
                stacklevel=4,
            )

    def _compute(
        self, shelf: _Shelf, pending: list[bytes], rows: dict[bytes, np.ndarray]
    ) -> tuple[int, list[bytes], BaseException | None]:
        """Number of structures computed, those that failed, what the executor died of."""
        numbers = atomic_numbers(shelf.lattice, np.stack([rows[k] for k in pending]))
        batch = Batch(self.executor, self._task(shelf), list(numbers))
        done, failed, trouble = 0, [], None
        bar = tqdm(total=len(pending), disable=not self.progress, desc="energies")
        try:
            for k, outcome in batch:
                self._record(shelf, pending[k], rows[pending[k]], numbers[k], outcome)
                done += 1
                failed += [pending[k]] if outcome.kind else []
                bar.update()
                try:
                    if self.cache is not None and trouble is None:
                        self.cache.flush_if_due()
                except CacheError as error:
                    trouble = error
                if trouble is not None or len(failed) > self.max_failures:
                    batch.stop()
        except BaseException:  # interrupted: take what has come meanwhile
            batch.stop()
            for k, outcome in batch.finished():
                self._record(shelf, pending[k], rows[pending[k]], numbers[k], outcome)
            raise
        finally:
            bar.close()
            if not self._is_factory:  # as its own work may have left them
                self._parameters = parameters_text(self.calculator)
            if self.cache is not None:
                self.cache.flush()
        if trouble is not None:  # written after all, but work was stopped
            raise trouble
        return done, failed, batch.error

    def _record(
        self, shelf: _Shelf, key: bytes, row: np.ndarray, numbers: np.ndarray, outcome: Outcome
    ) -> None:
        self.calls += outcome.attempts
        self.steps += outcome.steps
        if outcome.kind:
            formula = self._task(shelf).atoms(numbers).get_chemical_formula()
            occupation = tuple(row.tolist())
            shelf.failures[key] = Failure(formula, occupation, outcome.kind, outcome.reason)
        else:
            shelf.failures.pop(key, None)
            shelf.energies[key] = outcome.energy
            if outcome.atoms is not None:
                shelf.structures[key] = outcome.atoms
        if self.cache is not None and outcome.kind in ("", "collapsed") and numbers.any():
            atoms = self._task(shelf).atoms(numbers) if outcome.atoms is None else outcome.atoms
            self.cache.add(shelf.key, row, atoms, outcome.energy, outcome.reason)

    def _task(self, shelf: _Shelf) -> Task:
        return Task(
            source=self.calculator,
            is_factory=self._is_factory,
            shared=self.executor is None,
            token=self._token,
            template=shelf.lattice.template,
            relax=self.relax,
            retries=self.retries,
        )

    # ------------------------------------------------------------------ what is known
    def _shelf(self, lattice: Lattice) -> _Shelf:
        """Known energies of a lattice; equal lattices share them."""
        shelf = self._shelf_of.get(lattice)
        if shelf is None:
            key = lattice_key(lattice)
            shelf = self._shelves.get(key)
            if shelf is None:
                shelf = self._shelves[key] = _Shelf(lattice, key, self._permutations(lattice))
                self._load(shelf)
            self._shelf_of[lattice] = shelf
        return shelf

    def _permutations(self, lattice: Lattice) -> np.ndarray:
        constraints = lattice.template.constraints
        cell = None if self.relax is None else self.relax.filter
        masked = not (cell is None or isinstance(cell, type))
        simple = all(isinstance(c, FixAtoms) for c in constraints)
        if self.symmetry and simple and not masked:
            return site_permutations(lattice)
        return np.arange(lattice.n_sites)[None]

    def _load(self, shelf: _Shelf) -> None:
        if self.cache is None:
            return
        for entry in self.cache.entries(shelf.key):
            row = canonical_occupations(entry.occupation[None], shelf.permutations)[0]
            if entry.reason:
                formula = shelf.lattice.atoms(row).get_chemical_formula()
                failure = Failure(formula, tuple(row.tolist()), "collapsed", entry.reason)
                shelf.failures[row.tobytes()] = failure
            else:
                shelf.energies[row.tobytes()] = entry.energy
                shelf.stored[row.tobytes()] = entry.occupation


class _Shelf:
    """What is known of one lattice, by the bytes of the representative's occupation."""

    def __init__(self, lattice: Lattice, key: str, permutations: np.ndarray):
        self.lattice, self.key, self.permutations = lattice, key, permutations
        self.energies: dict[bytes, float] = {}
        self.failures: dict[bytes, Failure] = {}
        self.structures: dict[bytes, Atoms] = {}
        self.stored: dict[bytes, np.ndarray] = {}  # as in the cache, maybe an image


def _unique(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in the order of their first appearance, and where each row went."""
    first: dict[bytes, int] = {}
    back = np.array([first.setdefault(row.tobytes(), len(first)) for row in x], dtype=np.int64)
    rows = np.array([np.frombuffer(k, dtype=np.int8) for k in first], dtype=np.int8)
    return rows.reshape(len(first), x.shape[1]), back
