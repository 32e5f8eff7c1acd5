"""What icet and mchammer do not document, read here only, for versions that are known."""

from __future__ import annotations

from collections.abc import Mapping

import icet
import numpy as np
from ase import Atoms
from mchammer import DataContainer
from mchammer.calculators import ClusterExpansionCalculator

__all__ = [
    "check_version",
    "property_scaling",
    "structure_of",
    "trajectory",
    "write_last_state",
]

SUPPORTED = (4, 5)
"""Major versions of icet: from the first, below the second."""


def check_version() -> None:
    """Raise ImportError unless the installed icet is one that this package can read."""
    major = icet.__version__.split(".")[0]
    low, high = SUPPORTED
    if not major.isdigit() or not low <= int(major) < high:
        raise ImportError(
            f"icet {icet.__version__} is installed, but its cluster expansions and containers are "
            f"read from versions >={low},<{high} only; pip install 'icet>={low},<{high}'"
        )


def property_scaling(calculator: ClusterExpansionCalculator) -> float:
    """What a calculator multiplies the cluster expansion with."""
    check_version()
    return float(calculator._property_scaling)


def structure_of(calculator: ClusterExpansionCalculator) -> Atoms:
    """A copy of the structure that a calculator was made for."""
    check_version()
    return calculator.sublattices._structure.copy()


def trajectory(container: DataContainer) -> list[Mapping]:
    """Rows of a container that have occupations, in order."""
    check_version()
    return [row for row in container._data_list if "occupations" in row]


def write_last_state(
    container: DataContainer, step: int, occupations: np.ndarray, random_state: tuple
) -> None:
    """Note where an ensemble that is given this container is to go on."""
    check_version()
    container._update_last_state(
        last_step=int(step),
        occupations=occupations.tolist(),
        accepted_trials=0,
        random_state=random_state,
    )
