"""One way to write configurations to a file: the suffix says the format."""

from __future__ import annotations

import os
from pathlib import Path

from clease_nn.configurations import Configurations
from clease_nn.export.hdf5 import write_hdf5
from clease_nn.export.structures import write_db, write_trajectory
from clease_nn.export.unweighted import unweighted

__all__ = ["write"]

_WRITERS = {
    ".h5": write_hdf5,
    ".hdf5": write_hdf5,
    ".db": write_db,
    ".traj": lambda path, c: write_trajectory(path, c, "traj"),
    ".xyz": lambda path, c: write_trajectory(path, c, "extxyz"),
    ".extxyz": lambda path, c: write_trajectory(path, c, "extxyz"),
}


def write(path: str | os.PathLike, c: Configurations, *, resample: int | None = None) -> None:
    """Write configurations; the file appears under its name only when it is complete.

    =====================  ============================================================
    suffix                 what is written
    =====================  ============================================================
    ``.h5``, ``.hdf5``     everything, read back by :func:`read_hdf5`; unknown sites too
    ``.db``                an ase.db with temperature, mu, weights ... as key-value pairs
    ``.traj``              ASE trajectory with the same in ``atoms.info``
    ``.extxyz``, ``.xyz``  extended xyz with the same in ``atoms.info``
    =====================  ============================================================

    Parameters
    ----------
    path : path
    c : Configurations
    resample : int, optional
        Seed. Weighted draws are first made unweighted (:func:`unweighted`), without which they
        are refused by formats whose frames count the same; the file says so.

    Raises
    ------
    ImportError
        If h5py is needed and not installed.
    ValueError
        If the suffix is unknown, there are no configurations, a format cannot hold weights or
        unknown sites, or there are no weights to resample by.
    FileExistsError
        If ``path`` is a database that was not written by this function.
    OSError
        If the file cannot be written; what stood there before is untouched.

    Examples
    --------
    >>> import tempfile
    >>> from clease_nn import Conditions, Lattice
    >>> from clease_nn.export import read_hdf5
    >>> lattice = Lattice.square(2, species=("Cu", "Au"))
    >>> c = Configurations(lattice, Conditions([300.0], [[0.0, 0.1]]), [[0, 0, 0, 1]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(f"{folder}/c.h5", c)
    ...     read_hdf5(f"{folder}/c.h5").occupations
    tensor([[0, 0, 0, 1]], dtype=torch.int8)
    """
    writer = _WRITERS.get(Path(path).suffix)
    if writer is None:
        raise ValueError(
            f"the suffix of {path} must be one of {', '.join(_WRITERS)}; for tables use "
            "to_dataframe(), for mchammer clease_nn.hosts.mchammer.containers"
        )
    if not len(c):
        raise ValueError(f"there are no configurations to write to {path}")
    if resample is not None:
        c = unweighted(c, resample)
    writer(path, c)
