"""Any batched function of the atomic numbers as energy: a learned potential, a formula."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from clease_nn.energies.atomic_numbers import atomic_numbers, complete_occupations
from clease_nn.energies.calculator.fingerprints import digest, hash_module
from clease_nn.lattice import Lattice

__all__ = ["CallableEnergy"]


class CallableEnergy:
    """Energy of a torch module or function of the atomic numbers.

    Parameters
    ----------
    function : callable
        ``function(numbers) -> (batch,)`` energies in eV per supercell. ``numbers`` (batch, atoms),
        int64, are the atomic numbers of all atoms of the lattice's template in its order, 0 for
        vacancies. What else it needs, such as the edges of a crystal graph, it holds itself.
        A module is evaluated in eval mode without gradients and left in the mode it was in.
    name : str, optional
        Part of the fingerprint. Required for plain functions: change it when the energies change.
    batch_size : int
        Configurations handed over at once.
    device : torch.device or str, optional
        Where the numbers go. Default: to the parameters of a module, else the CPU.

    Raises
    ------
    TypeError
        If ``function`` is not callable.
    ValueError
        If a plain function has no name, or ``batch_size`` is below 1.

    Examples
    --------
    >>> lattice = Lattice.square(2, species=("Cu", "Au"))
    >>> energy = CallableEnergy(lambda z: 0.1 * (z == 79).sum(1), name="0.1 eV per gold atom")
    >>> energy(lattice, torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]], dtype=torch.int8))
    tensor([0.2000, 0.1000], dtype=torch.float64)
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        name: str | None = None,
        batch_size: int = 1024,
        device: torch.device | str | None = None,
    ):
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self._is_module = isinstance(function, torch.nn.Module)
        if not name and not self._is_module:
            raise ValueError(
                "a plain function needs a name= by which its energies are recognised; change it "
                "when the energies change"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if device is None and self._is_module:
            device = next((p.device for p in function.parameters()), None)
        self.function = function
        self.name = name or ""
        self.batch_size = batch_size
        self.device = torch.device(device or "cpu")

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the name and, for modules, of all parameters and buffers when first read."""
        weights = hash_module(self.function) if self._is_module else ""
        return digest(f"{self.name}|{weights}")

    def __call__(self, lattice: Lattice, occupations: Tensor) -> Tensor:
        """Energies in eV per supercell, shape (batch,), float64, where the occupations are.

        Raises
        ------
        ValueError
            If a site is unknown or not allowed, or the function returns another shape or numbers
            that are not finite; the message names the configuration.
        """
        x = complete_occupations(lattice, occupations)
        numbers = torch.from_numpy(atomic_numbers(lattice, x))
        out = torch.empty(len(x), dtype=torch.float64)
        with torch.no_grad(), _eval_mode(self.function):
            for k in range(0, len(x), self.batch_size):
                batch = numbers[k : k + self.batch_size].to(self.device)
                values = torch.as_tensor(self.function(batch))
                if values.shape != (len(batch),):
                    raise ValueError(
                        f"the function returned shape {tuple(values.shape)} for {len(batch)} "
                        f"configurations; it must return one energy each, ({len(batch)},)"
                    )
                out[k : k + self.batch_size] = values.to("cpu", torch.float64)
        bad = ~torch.isfinite(out)
        if bad.any():
            row = int(bad.nonzero()[0])
            species = [lattice.species[a] for a in x[row]]
            raise ValueError(
                f"the function returned {out[row].item()} for configuration {row}, "
                f"{species} ({int(bad.sum())} of {len(x)} are not finite)"
            )
        return out.to(torch.as_tensor(occupations).device)


@contextmanager
def _eval_mode(function):
    """A module in eval mode, its parts left in the modes they were in."""
    if not isinstance(function, torch.nn.Module):
        yield
        return
    modes = [(module, module.training) for module in function.modules()]
    function.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
