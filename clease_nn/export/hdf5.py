"""Configurations in HDF5, with everything that belongs to them, and back."""

from __future__ import annotations

import io
import json
import os
from dataclasses import fields

import numpy as np
import torch
from ase import Atoms
from ase.io.jsonio import decode, encode

import clease_nn
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.export.extras import optional
from clease_nn.files import replacing
from clease_nn.lattice import Lattice

__all__ = ["read_hdf5", "write_hdf5"]

FORMAT = 1
"""Version of the file format; newer files are refused."""

_COLUMNS = [
    f.name for f in fields(Configurations) if f.name not in ("lattice", "conditions", "provenance")
]


def write_hdf5(path: str | os.PathLike, c: Configurations) -> None:
    """Write configurations whole: lattice, conditions, every column, provenance.

    Datasets, one row a configuration: ``temperature`` (K), ``mu`` (eV), ``occupations`` (index
    into ``lattice.attrs["species"]``, -1 unknown) and the other columns of ``Configurations`` as
    far as they are filled. The group ``lattice`` has the supercell (``cell``, ``pbc``, and the
    arrays of the Atoms object in ``arrays``), ``site_indices``, ``allowed`` and ``sublattices``.

    Raises
    ------
    ImportError
        If h5py is not installed.
    TypeError
        If the provenance is not JSON.
    OSError
        If the file cannot be written.
    """
    h5py = optional("h5py")
    try:
        provenance = json.dumps(dict(c.provenance))
    except TypeError as error:
        raise TypeError(f"the provenance must be JSON to be written: {error}") from error
    image = io.BytesIO()  # a full disk then meets plain bytes, not a half-open HDF5 file
    with h5py.File(image, "w") as f:
        f.attrs.update(kind="configurations", format=FORMAT, clease_nn=clease_nn.__version__)
        f["provenance"] = provenance
        f["temperature"] = c.conditions.temperature.cpu().numpy()
        f["mu"] = c.conditions.mu.cpu().numpy()
        for name in _COLUMNS:
            column = getattr(c, name)
            if column is not None:
                packed = {"compression": "gzip"} if column.ndim > 1 and len(column) else {}
                f.create_dataset(name, data=column.detach().cpu().numpy(), **packed)
        _write_lattice(f.create_group("lattice"), c.lattice)
    with replacing(path) as temporary:
        temporary.write_bytes(image.getbuffer())


def read_hdf5(path: str | os.PathLike) -> Configurations:
    """Read what :func:`clease_nn.export.write` wrote to an ``.h5`` file, bit for bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If h5py is not installed.
    ValueError
        If the file is truncated, not of this package, or written by a newer version.
    """
    h5py = optional("h5py")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}")
    try:
        with h5py.File(path, "r") as f:
            if f.attrs.get("kind") != "configurations":
                raise ValueError(f"{path} is an HDF5 file, but holds no configurations")
            if f.attrs["format"] > FORMAT:
                raise ValueError(
                    f"{path} has format {f.attrs['format']}, written by clease_nn "
                    f"{f.attrs['clease_nn']}; this version reads up to {FORMAT}: update clease_nn"
                )
            return Configurations(
                _read_lattice(f["lattice"]),
                Conditions(torch.tensor(f["temperature"][()]), torch.tensor(f["mu"][()])),
                provenance=json.loads(f["provenance"][()]),
                **{name: torch.tensor(f[name][()]) for name in _COLUMNS if name in f},
            )
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} is truncated or not an HDF5 file of clease_nn ({error}); write it again"
        ) from error


def _write_lattice(group, lattice: Lattice) -> None:
    rest = lattice.template.todict()
    group["cell"], group["pbc"] = np.array(rest.pop("cell")), np.array(rest.pop("pbc"))
    arrays = group.create_group("arrays")
    for name in lattice.template.arrays:
        value = rest.pop(name)
        if value.dtype.kind in "biuf":
            arrays[name] = value
        else:
            rest[name] = value
    group["rest"] = encode(rest)  # info, constraints, labels
    for name in ("site_indices", "allowed", "sublattices"):
        group[name] = getattr(lattice, name)
    group.attrs["species"] = list(lattice.species)
    group.attrs["fingerprint"] = lattice.fingerprint


def _read_lattice(group) -> Lattice:
    parts = {name: v[()] for name, v in group["arrays"].items()}
    parts.update(cell=group["cell"][()], pbc=group["pbc"][()])
    parts.update(decode(group["rest"][()].decode()))
    lattice = Lattice(
        Atoms.fromdict(parts),
        group["site_indices"][()],
        group.attrs["species"].tolist(),
        group["allowed"][()],
        group["sublattices"][()],
    )
    if lattice.fingerprint != group.attrs["fingerprint"]:
        raise KeyError("the lattice is not the one that was written")
    return lattice
