"""A trained model in the form in which it serves another cell of the same parent lattice."""

from __future__ import annotations

from dataclasses import replace

import torch

from clease_nn.configurations import Configurations
from clease_nn.io import TrainedModel
from clease_nn.lattice import Lattice
from clease_nn.models import WindowedModel

__all__ = ["is_larger", "serving"]


def is_larger(trained: TrainedModel, lattice: Lattice) -> bool:
    """Whether a lattice has more active sites than the cells that a model was trained on."""
    n = trained.metadata.get("n_sites")
    return n is not None and lattice.n_sites > max(n if isinstance(n, (list, tuple)) else [n])


def serving(trained: TrainedModel, lattice: Lattice) -> tuple[TrainedModel, str]:
    """A trained model as it serves a lattice, and what was changed, in words ("": nothing).

    A model of one cell draws a larger one window by window, which changes variance and cost, never
    exactness.

    Raises
    ------
    ValueError
        If it cannot serve the lattice: another parent lattice, other species, or a model of one
        cell whose windows do not fit, or that does not know its cell.
    """
    model, said = trained.model, ""
    try:
        model.check_lattice(lattice)
    except ValueError as error:
        model = _in_windows(trained, lattice, error)
        said = (
            f"the model is one of a cell of {model.small.n_sites} sites: it draws these "
            f"{lattice.n_sites} in windows of that cell, which costs likelihood; a "
            "LatticeConvolution or PaiNN serves larger cells better"
        )
    return (replace(trained, model=model), said) if said else (trained, "")


def _in_windows(trained: TrainedModel, lattice: Lattice, error: ValueError) -> WindowedModel:
    """The model in windows; the error that was met where that is no way out."""
    cell = trained.metadata.get("lattice")
    if cell is None:
        raise error
    small = Lattice.from_dict(cell)
    if small.n_sites >= lattice.n_sites or small.species != lattice.species:
        raise error
    unknown = Configurations.unknown(lattice, trained.range.grid(1, 1)[0])
    try:
        windowed = WindowedModel(trained.model, small)
        windowed.check_lattice(lattice)
        if not windowed.any_order:
            windowed.draw_steps(unknown, torch.Generator())
    except ValueError as other:
        raise ValueError(f"{error}; nor in windows: {other}") from other
    return windowed.eval()
