"""Energies on disk, in a database that ASE reads."""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

__all__ = ["Cache", "CacheError", "Entry"]

_KEY = "clease_nn"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_INTERVAL = 1.0  # s; cheap energies that come faster are written together


class CacheError(RuntimeError):
    """The file of energies cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Entry:
    """One row: an energy in eV, or the reason of a collapse."""

    occupation: np.ndarray
    energy: float
    reason: str


class Cache:
    """Finished energies in an ``ase.db`` file (SQLite).

    A row is the structure that the energy belongs to (relaxed, if it was) with the keys
    ``lattice``, ``occupation`` (``"o"`` and one digit a site) and ``state`` (``"finished"`` or
    ``"collapsed"``). Several supercells may share a file, several calculators may not.

    Parameters
    ----------
    path : str or Path
        Made if it does not exist.
    fingerprint, description : str
        Of the calculator and the relaxation.

    Raises
    ------
    CacheError
        If the file is damaged, locked, of something else or of another calculator or relaxation.
    """

    def __init__(self, path: str | Path, fingerprint: str, description: str):
        self.path = Path(path).absolute()
        self._waiting: list[tuple[Atoms, dict, dict]] = []
        self._written = 0.0
        if not self.path.parent.is_dir():
            raise CacheError(f"the folder of the cache {self.path} does not exist; make it first")
        try:
            if not self.path.exists() or self.path.stat().st_size == 0:
                self._make({_KEY: {"fingerprint": fingerprint, "description": description}})
            self._check_file()
            self._db = connect(self.path, type="db", use_lock_file=False)
            mine = self._db.metadata.get(_KEY, {})
        except (sqlite3.Error, OSError, ValueError) as error:
            raise self._error(error) from error
        if "fingerprint" not in mine:
            raise CacheError(
                f"{self.path} is a database of something else, not a cache of energies; choose "
                "another file"
            )
        if mine["fingerprint"] != fingerprint:
            raise CacheError(
                f"the cache {self.path} holds energies of another calculator or relaxation:\n"
                f"  cache: {mine['description']}\n  this:  {description}\n"
                "use another file for each"
            )

    def entries(self, lattice: str) -> Iterator[Entry]:
        """All rows of one supercell.

        Raises
        ------
        CacheError
            If the file cannot be read.
        """
        try:
            for row in self._db.select(lattice=f"l{lattice}"):
                digits = row.key_value_pairs["occupation"][1:]
                occupation = np.array([_DIGITS.index(d) for d in digits], dtype=np.int8)
                collapsed = row.key_value_pairs["state"] == "collapsed"
                energy = np.nan if collapsed else float(row.energy)
                yield Entry(occupation, energy, row.data["reason"] if collapsed else "")
        except (sqlite3.Error, OSError, ValueError, KeyError, AttributeError) as error:
            raise self._error(error) from error

    def structure(self, lattice: str, occupation: np.ndarray) -> Atoms | None:
        """The structure of one row that has an energy, or None."""
        keys = {"lattice": f"l{lattice}", "occupation": _text(occupation), "state": "finished"}
        try:
            for row in self._db.select(**keys):
                return row.toatoms()
        except (sqlite3.Error, OSError, ValueError) as error:
            raise self._error(error) from error
        return None

    def add(
        self, lattice: str, occupation: np.ndarray, atoms: Atoms, energy: float, reason: str = ""
    ) -> None:
        """Take one result, to be written by :meth:`flush_if_due` or :meth:`flush`."""
        keys = {"lattice": f"l{lattice}", "occupation": _text(occupation)}
        keys["state"] = "collapsed" if reason else "finished"
        atoms = atoms.copy()
        if not reason:
            atoms.calc = SinglePointCalculator(atoms, energy=energy)
        self._waiting.append((atoms, keys, {"reason": reason} if reason else {}))

    def flush_if_due(self) -> None:
        """Write what waits, unless something was written less than a second ago.

        Raises
        ------
        CacheError
            As for :meth:`flush`.
        """
        if time.monotonic() - self._written > _INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write what waits, in one transaction.

        Raises
        ------
        CacheError
            If the file cannot be written; what waits is kept for the next attempt.
        """
        if not self._waiting:
            return
        try:
            with self._db:
                for atoms, keys, data in self._waiting:
                    self._db.write(atoms, key_value_pairs=keys, data=data)
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from error
        finally:
            # ase keeps a connection whose commit failed or was interrupted, and refuses the next
            if self._db.connection is not None:
                self._db.connection.close()
                self._db.connection = None
        self._waiting.clear()
        self._written = time.monotonic()

    def _make(self, metadata: dict) -> None:
        """A new file, whole at once; where another process is faster, its file stays."""
        if self.path.exists():  # without content
            connect(self.path, type="db", use_lock_file=False).metadata = metadata
            return
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        try:
            connect(temporary, type="db", use_lock_file=False).metadata = metadata
            os.link(temporary, self.path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _check_file(self) -> None:
        con = sqlite3.connect(self.path, timeout=20)
        try:
            found = con.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            con.close()
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def _error(self, error: Exception) -> CacheError:
        text = str(error)
        if "locked" in text or "busy" in text:
            remedy = "another process holds it: wait for that one, or use a file of your own"
        elif any(s in text for s in ("full", "No space", "disk I/O", "quota")):
            remedy = "free some space (or ask for more of it) and call again"
        elif "readonly" in text or "unable to open" in text or isinstance(error, OSError):
            remedy = "check the permissions of file and folder"
        else:
            remedy = "it is damaged or no database: restore a copy, or move it away and start anew"
        waiting = (
            f" ({len(self._waiting)} finished energies are kept in memory; the next call writes "
            "them)"
            if self._waiting
            else ""
        )
        return CacheError(f"the cache {self.path} failed: {text}; {remedy}{waiting}")


def _text(occupation: np.ndarray) -> str:
    return "o" + "".join(_DIGITS[k] for k in occupation)
