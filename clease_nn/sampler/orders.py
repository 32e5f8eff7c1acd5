"""Which moves a model with one order of drawing cannot propose."""

from __future__ import annotations

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel

__all__ = ["check_any_order", "obstacle"]

_ANY = "use a model of any order (AnyOrderARM, MarginalizationModel)"


def check_any_order(model: AbstractOccupationModel, what: str) -> None:
    """Raise ValueError if a model cannot complete any partial configuration; ``what`` needs it."""
    if not model.any_order:
        raise ValueError(f"{what} need conditionals around any sites, but {_one(model)}; {_ANY}")


def obstacle(
    model: AbstractOccupationModel,
    lattice: Lattice,
    free: np.ndarray,
    block_size: int | None = None,
) -> str | None:
    """Why a model cannot redraw some sites around all others; None where it can.

    Parameters
    ----------
    model : AbstractOccupationModel
    lattice : Lattice
    free : ndarray of bool, shape (sites,)
        Sites to be redrawn together; all others are held.
    block_size : int, optional
        Random sets of that many free sites are to be redrawn instead.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import FixedOrderARM
    >>> from clease_nn.networks import MaskedMLP
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = FixedOrderARM(MaskedMLP(lattice, box, width=8))
    >>> obstacle(model, lattice, np.array([False, True, True, True])) is None
    True
    >>> obstacle(model, lattice, np.array([True, True, True, False]))[:44]
    'sites that are held cannot come last: site 3'
    """
    if model.any_order:
        return None
    if block_size is not None:
        return (
            f"a block of {block_size} sites cannot be redrawn around the others, since "
            f"{_one(model)}; leave block_size out, or {_ANY}"
        )
    held = torch.where(torch.as_tensor(free), UNKNOWN, 0)[None]
    conditions = Conditions([300.0], np.zeros((1, lattice.n_species)))
    try:
        model.draw_steps(Configurations(lattice, conditions, held), torch.Generator())
    except ValueError as error:
        return f"sites that are held cannot come last: {error}"
    return None


def _one(model: AbstractOccupationModel) -> str:
    return f"{type(model).__name__} has one order of drawing"
