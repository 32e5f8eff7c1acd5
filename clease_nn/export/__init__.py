"""Configurations in the formats of others: Atoms, trajectories, ase.db, HDF5, pandas.

Formats with columns keep the weights of weighted draws. A trajectory (``.traj``, ``.extxyz``) is
read as if every frame counted the same; weighted draws go there only after resampling, on request.
"""

from clease_nn.export.hdf5 import read_hdf5
from clease_nn.export.structures import to_atoms
from clease_nn.export.tables import to_dataframe
from clease_nn.export.unweighted import is_weighted, unweighted
from clease_nn.export.write import write

__all__ = ["is_weighted", "read_hdf5", "to_atoms", "to_dataframe", "unweighted", "write"]
