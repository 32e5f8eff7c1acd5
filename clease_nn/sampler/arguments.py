"""What users hand to samplers, checked and brought into the form of the core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
from ase import Atoms

from clease_nn.conditions import ConditionRange
from clease_nn.sampling.routes import ROUTES

__all__ = ["cells_of", "check_route", "check_train", "condition_range"]

_UNWEIGHTED = ("auto", "importance", "refine")


def cells_of(train_on) -> list:
    """The cells of ``train_on`` one by one: a single one, a size, or a list of either.

    Raises
    ------
    ValueError
        If the list is empty.

    Examples
    --------
    >>> cells_of((2, 2, 4)), cells_of([(2, 2, 4), (4, 4, 4)]), cells_of(None)
    ([(2, 2, 4)], [(2, 2, 4), (4, 4, 4)], [])
    """
    if train_on is None:
        return []
    if isinstance(train_on, str) or not isinstance(train_on, Sequence | np.ndarray):
        return [train_on]  # atoms or a calculator; what else it may be, the host refuses
    if isinstance(train_on, Atoms) or (
        len(train_on) == 3 and all(isinstance(n, Integral) for n in train_on)
    ):
        return [train_on]
    if not len(train_on):
        raise ValueError("train_on is empty; leave it out to train on the cell itself")
    return list(train_on)


def check_train(train) -> None:
    """Raise TypeError unless ``train`` of a sampler is a bool or arguments of its ``fit``.

    Examples
    --------
    >>> check_train({"temps": (300, 900), "chem_pots": {"Au": (0, 1)}, "max_seconds": 60})
    """
    if isinstance(train, (bool, np.bool_)):
        return
    if not isinstance(train, Mapping) or not {"temps", "chem_pots"} <= train.keys():
        raise TypeError(
            "train must be True, False or a dict of arguments of fit(), temps and chem_pots among "
            f"them, got {train!r}"
        )


def check_route(route: str, weighted: bool = True) -> None:
    """Raise ValueError unless a route is known and gives weighted, or unweighted, rows.

    Examples
    --------
    >>> check_route("annealing")
    """
    if route not in ("auto", *ROUTES):
        raise ValueError(f"route must be 'auto' or one of {ROUTES}, got {route!r}")
    if weighted and route == "refine":
        raise ValueError(
            "route='refine' gives chains, without weights and ln Z: ask for them with "
            "weighted=False, or take another route"
        )
    if not weighted and route not in _UNWEIGHTED:
        raise ValueError(
            f"route={route!r} gives weighted draws; take weighted=True, or a route of "
            f"{_UNWEIGHTED} for an unweighted chain"
        )


def condition_range(
    temps: tuple[float, float],
    chem_pots: Mapping[str, tuple[float, float]],
    axes: np.ndarray,
    unit: float = 1.0,
) -> ConditionRange:
    """The range of a fit from the form that hosts take.

    Parameters
    ----------
    temps : (low, high)
        K.
    chem_pots : mapping to (low, high)
        eV, along the axes.
    axes : ndarray, shape (len(chem_pots), species)
    unit : float
        K in one unit of ``temps``, for hosts with another Boltzmann constant.

    Raises
    ------
    ValueError
        If something is no pair, or a range is empty or inverted.
    """
    if np.shape(temps) != (2,):
        raise ValueError(
            f"temps must be a pair (low, high) in K, such as (300, 1200), got {temps!r}"
        )
    for name, value in chem_pots.items():
        if np.shape(value) != (2,):
            raise ValueError(f"the range of {name} must be (low, high) in eV, got {value!r}")
    low, high = zip(*chem_pots.values(), strict=True)
    return ConditionRange((unit * temps[0], unit * temps[1]), list(low), list(high), axes)
