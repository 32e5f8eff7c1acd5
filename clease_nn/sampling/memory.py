"""How many rows may be drawn together: what they need, and what the machine has."""

from __future__ import annotations

import torch

from clease_nn.compute import available_memory
from clease_nn.lattice import Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.networks import AbstractNetwork

__all__ = ["bytes_per_row", "rows_at_once"]

_DEFAULT = 256  # rows beyond which a pass gets no cheaper a row
_SHARE = 0.5  # of the memory that is free may go to what is chosen here


def bytes_per_row(model: AbstractOccupationModel, lattice: Lattice) -> int:
    """Roughly what drawing one row needs at a time: its networks, conditionals and fields."""
    networks = [m for m in model.modules() if isinstance(m, AbstractNetwork)]
    # float64 conditionals and masks, and some temporaries of the mean field
    own = (32 + (64 if model.needs_fields else 0)) * lattice.n_sites * (lattice.n_species + 1)
    return own + max((n.bytes_per_row(lattice.n_sites) for n in networks), default=0)


def rows_at_once(
    model: AbstractOccupationModel,
    lattice: Lattice,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
) -> int:
    """The number of rows to draw together.

    Parameters
    ----------
    model : AbstractOccupationModel
    lattice : Lattice
    batch_size : int, optional
        As asked for. Default: 256, or fewer where half of the memory that is free has no room
        for them.
    device : str or torch.device
        Where they are drawn.

    Raises
    ------
    ValueError
        If ``batch_size`` < 1.
    MemoryError
        If the memory that is free has no room for ``batch_size`` rows, or for one; the message
        says how many fit.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> rows_at_once(model, lattice)
    256
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    free = available_memory(device)
    if free is None:
        return _DEFAULT if batch_size is None else batch_size
    each = bytes_per_row(model, lattice)
    wanted = 1 if batch_size is None else batch_size
    if wanted * each > free:
        fit = free // each
        remedy = (
            f"{fit} {'fit' if fit > 1 else 'fits'}: use batch_size={fit}, or leave it out"
            if fit
            else "not even one fits: free some, or use a smaller cell or network"
        )
        raise MemoryError(
            f"{wanted} {'rows' if wanted > 1 else 'row'} of {lattice.n_sites} sites drawn together "
            f"need about {_size(wanted * each)}, {_size(free)} are available; {remedy}"
        )
    if batch_size is not None:
        return batch_size
    return int(min(_DEFAULT, max(1, _SHARE * free // each)))


def _size(n: float) -> str:
    """
    >>> _size(3.2e9), _size(5.1e6)
    ('3.2 GB', '5.1 MB')
    """
    unit, name = (1e9, "GB") if n >= 1e9 else (1e6, "MB")
    return f"{n / unit:.1f} {name}"
