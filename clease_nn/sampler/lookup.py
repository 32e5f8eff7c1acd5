"""Saved models: where they are looked for, and which serves an energy at some conditions."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from clease_nn.conditions import Conditions
from clease_nn.io import ModelFileError, TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.sampler.scaling import serving

__all__ = ["find_model", "model_folders"]


def model_folders() -> list[Path]:
    """Folders searched for models (``*.nn``).

    Those of the environment variable ``CLEASE_NN_MODELS`` (separated as in PATH), or else
    ``~/.cache/clease_nn/models``; then the working directory.
    """
    given = os.environ.get("CLEASE_NN_MODELS")
    folders = given.split(os.pathsep) if given else [Path.home() / ".cache/clease_nn/models"]
    return [Path(f) for f in folders if f] + [Path.cwd()]


def find_model(
    key: str,
    conditions: Conditions,
    lattice: Lattice,
    folders: Iterable[os.PathLike | str] | None = None,
) -> TrainedModel | None:
    """A saved model of an expansion whose range contains the conditions, or None.

    Parameters
    ----------
    key : str
        Parent fingerprint of the bare expansion (``metadata["parent_fingerprint"]``).
    conditions : Conditions
        All of them must lie in the trained range.
    lattice : Lattice
        Of any size: models of other cells of the parent lattice serve it too, those that were
        made for one cell in windows (:func:`~clease_nn.sampler.scaling.serving`).
    folders : iterable of paths, optional
        Default :func:`model_folders`. The newest file wins; the first folder goes first.

    Notes
    -----
    Files that are not readable models are passed over.
    """
    for folder in model_folders() if folders is None else map(Path, folders):
        files = folder.glob("*.nn") if folder.is_dir() else ()
        for path in sorted(files, key=_modified, reverse=True):
            try:
                trained = TrainedModel.load(path)
            except (ModelFileError, OSError):
                continue
            if trained.metadata.get("parent_fingerprint") != key:
                continue
            try:
                serving(trained, lattice)
                if bool(trained.range.contains(conditions).all()):
                    return trained
            except ValueError:  # another cell, or a range for another number of species
                continue
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
