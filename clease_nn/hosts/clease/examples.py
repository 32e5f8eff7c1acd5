"""The project's own expansions of Cu-Au and Ag-Pd as CLEASE objects."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.resources import files

from ase import Atoms

__all__ = ["agpd_emt_atoms", "agpd_emt_data", "cuau_emt_atoms", "cuau_emt_data", "emt_atoms"]


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
    return _read("cuau_emt.json")


def agpd_emt_data() -> dict:
    """The committed Ag-Pd expansion, in the form of :func:`cuau_emt_data`.

    Examples
    --------
    >>> agpd_emt_data()["settings"]["basis_elements"]
    [['Ag', 'Pd']]
    """
    return _read("agpd_emt.json")


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
    return emt_atoms(cuau_emt_data() if data is None else data, size)


def agpd_emt_atoms(size: tuple[int, int, int] = (2, 2, 4)) -> Atoms:
    """Supercell of the Ag-Pd example with a ``Clease`` calculator.

    In ASE's effective medium potential Ag and Pd demix; the real alloy mixes. The expansion is a
    test case with a miscibility gap, not a description of Ag-Pd.

    Parameters, result and errors as :func:`cuau_emt_atoms`; all sites are Pd.

    Examples
    --------
    >>> agpd_emt_atoms().get_chemical_formula()
    'Pd16'
    """
    return emt_atoms(agpd_emt_data(), size)


def emt_atoms(data: dict, size: tuple[int, int, int] = (2, 2, 4)) -> Atoms:
    """Supercell of any expansion in the form of :func:`cuau_emt_data`.

    All sites carry the last element of the settings. Other parameters, result and errors as
    :func:`cuau_emt_atoms`.
    """
    from clease.calculator import attach_calculator
    from clease.settings import CEBulk, Concentration

    if len(size) != 3 or any(int(n) != n or n < 1 for n in size):
        raise ValueError(f"size must be three positive integers such as (2, 2, 4), got {size}")
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
            db_name=os.path.join(folder, "emt.db"),
        )
        atoms = settings.prim_cell.copy()
        atoms.symbols[:] = given["basis_elements"][0][-1]
        return attach_calculator(settings, atoms.repeat([int(n) for n in size]), data["eci"])


def _read(name: str) -> dict:
    return json.loads(files("clease_nn").joinpath("data", name).read_text(encoding="utf-8"))
