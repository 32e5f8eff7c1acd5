"""The project's own Cu-Au cluster expansion as a CLEASE object."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.resources import files

from ase import Atoms

__all__ = ["cuau_emt_atoms", "cuau_emt_data"]


def cuau_emt_data() -> dict:
    """The committed Cu-Au expansion with its settings and provenance.

    Returns
    -------
    dict
        ``eci`` (eV per atom, keyed by CLEASE's cluster names), ``settings`` (what ``CEBulk`` is
        made with) and ``provenance`` (versions, structures, cross-validation score).

    Examples
    --------
    >>> sorted(cuau_emt_data())
    ['eci', 'provenance', 'settings']
    """
    text = files("clease_nn").joinpath("data/cuau_emt.json").read_text(encoding="utf-8")
    return json.loads(text)


def cuau_emt_atoms(size: tuple[int, int, int] = (2, 2, 4), data: dict | None = None) -> Atoms:
    """Supercell of the Cu-Au example with a ``Clease`` calculator.

    The expansion gives formation energies of fcc Cu-Au in ASE's effective medium potential: a
    cheap stand-in, not a description of the real alloy.

    Parameters
    ----------
    size : tuple of int
        Repetitions of the primitive fcc cell; ``(2, 2, 4)`` has 16 sites, ``(4, 4, 4)`` 64.
    data : dict, optional
        Another expansion in the format of :func:`cuau_emt_data`. Default: the committed one.

    Returns
    -------
    ase.Atoms
        All sites Cu, ready for ``SGCMonteCarlo`` or :class:`clease_nn.NeuralSGCSampler`.

    Raises
    ------
    ValueError
        If ``size`` is not three positive integers.

    Examples
    --------
    >>> atoms = cuau_emt_atoms()
    >>> len(atoms), type(atoms.calc).__name__
    (16, 'Clease')
    """
    from clease.calculator import attach_calculator
    from clease.settings import CEBulk, Concentration

    if len(size) != 3 or any(int(n) != n or n < 1 for n in size):
        raise ValueError(f"size must be three positive integers such as (2, 2, 4), got {size}")
    data = cuau_emt_data() if data is None else data
    given = data["settings"]
    # CLEASE keeps its templates in a database file, which nothing reads once the cell is made
    with tempfile.TemporaryDirectory() as folder:
        settings = CEBulk(
            Concentration(basis_elements=given["basis_elements"]),
            crystalstructure=given["crystalstructure"],
            a=given["a"],
            size=[int(n) for n in size],
            max_cluster_dia=given["max_cluster_dia"],
            basis_func_type=given["basis_func_type"],
            db_name=os.path.join(folder, "cuau_emt.db"),
        )
        atoms = settings.prim_cell.copy()
        atoms.symbols[:] = "Cu"
        return attach_calculator(settings, atoms.repeat([int(n) for n in size]), data["eci"])
