"""Configurations as ase.Atoms, one by one, as trajectories and in an ase.db."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import ase.db
import ase.io
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from clease_nn.configurations import Configurations
from clease_nn.energies.atomic_numbers import atomic_numbers
from clease_nn.export.tables import columns, complete_rows
from clease_nn.export.unweighted import is_weighted
from clease_nn.files import replacing

__all__ = ["to_atoms", "write_db", "write_trajectory"]


def to_atoms(c: Configurations) -> list[Atoms]:
    """One Atoms object a configuration, background atoms included.

    ``info`` has ``temperature`` (K), ``mu_<species>`` (eV) and, as far as there are such,
    ``log_prob``, ``log_target``, ``log_weight``, ``chain`` and ``method`` (how the rows were
    made); energies (eV per supercell, without mu.N) are those of a SinglePointCalculator.

    Raises
    ------
    ValueError
        If a site is unknown.

    Notes
    -----
    Averages over weighted draws need their ``log_weight``; :func:`clease_nn.export.unweighted`
    makes configurations that count the same.

    Examples
    --------
    >>> from clease_nn import Conditions, Lattice
    >>> lattice = Lattice.square(2, species=("Cu", "Au"))
    >>> c = Configurations(lattice, Conditions([300.0], [[0.0, 0.1]]), [[0, 0, 0, 1]])
    >>> [atoms] = to_atoms(c)
    >>> str(atoms.symbols), atoms.info["mu_Au"]
    ('Cu3Au', 0.1)
    """
    rows = complete_rows(c, "an Atoms object")
    table = {name: column.tolist() for name, column in columns(c).items()}
    energies = table.pop("energy", None)
    method = {"method": c.provenance["method"]} if "method" in c.provenance else {}
    out = []
    for k, numbers in enumerate(atomic_numbers(c.lattice, rows)):
        atoms = c.lattice.template.copy()
        atoms.numbers[:] = numbers
        atoms.info.update({name: column[k] for name, column in table.items()}, **method)
        if energies is not None:
            atoms.calc = SinglePointCalculator(atoms, energy=energies[k])
        out.append(atoms)
    return out


def write_trajectory(path: str | os.PathLike, c: Configurations, format: str) -> None:
    """Write frames that count the same, in one of ASE's formats.

    Raises
    ------
    ValueError
        If the configurations are weighted, or a site is unknown.
    OSError
        If the file cannot be written.
    """
    if is_weighted(c):
        raise ValueError(
            f"these are weighted draws, and readers of {path} would take every frame for equally "
            "probable; use resample=<seed> for an unweighted chain, or write .h5 or .db"
        )
    images = to_atoms(c)
    with replacing(path) as temporary:
        ase.io.write(temporary, images, format=format)


def write_db(path: str | os.PathLike, c: Configurations) -> None:
    """Write an ase.db (SQLite), one row a configuration, with the columns as key-value pairs.

    ``metadata["clease_nn"]`` of the database has ``lattice`` (fingerprint) and ``provenance``.
    The template's own ``info``, which may be anything, is left out.

    Raises
    ------
    FileExistsError
        If there is a database already that was not written by this function.
    ValueError
        If a site is unknown.
    OSError
        If the file cannot be written.
    """
    if Path(path).exists() and not _own(path):
        raise FileExistsError(
            f"{path} is no database of configurations, but of something else, which is not "
            "overwritten; choose another name, or add the structures of to_atoms() to it yourself"
        )
    images = to_atoms(c)
    with replacing(path) as temporary, _connect(temporary) as db:
        for atoms in images:
            pairs = {k: v for k, v in atoms.info.items() if k not in c.lattice.template.info}
            db.write(atoms, key_value_pairs=pairs)
        db.metadata = {
            "clease_nn": {"lattice": c.lattice.fingerprint, "provenance": dict(c.provenance)}
        }


def _connect(path):
    return ase.db.connect(str(path), type="db", use_lock_file=False)


def _own(path) -> bool:
    """Whether a file is a database of :func:`write_db`, without touching it."""
    query = "SELECT value FROM information WHERE name = 'metadata'"
    try:
        uri = f"{Path(path).absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            metadata = json.loads(connection.execute(query).fetchone()[0])
        return "provenance" in metadata["clease_nn"]  # a cache of energies has none
    except (sqlite3.Error, KeyError, TypeError, ValueError):
        return False
