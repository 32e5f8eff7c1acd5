"""Identity of calculators, relaxations and supercells."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from ase.io.jsonio import encode

from clease_nn.energies.calculator.relaxation import Relaxation
from clease_nn.lattice import Lattice

__all__ = [
    "describe_calculator",
    "describe_relaxation",
    "digest",
    "hash_module",
    "lattice_key",
    "parameters_text",
]


def digest(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_calculator(calculator) -> str:
    """Class and parameters of a calculator, with hashes of the torch modules it holds.

    Raises
    ------
    ValueError
        If it has no parameters at all, or they cannot be written as JSON: two different
        calculators of the class could not be told apart.
    """
    name = f"{type(calculator).__module__}.{type(calculator).__qualname__}"
    parameters = getattr(calculator, "parameters", None) or {}
    if not parameters and hasattr(calculator, "todict"):
        parameters = calculator.todict()
    modules = {}
    for key, value in sorted(getattr(calculator, "__dict__", {}).items()):
        several = value if isinstance(value, list | tuple) else [value]
        hashes = [hash_module(m) for m in several if isinstance(m, torch.nn.Module)]
        if hashes:
            modules[key] = "+".join(hashes)
    if not parameters and not modules:
        raise ValueError(
            f"{name} states no parameters by which its energies could be recognised; give "
            "CalculatorEnergy a name= that changes when the energies do"
        )
    try:
        text = encode(dict(sorted(parameters.items())))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the parameters of {name} cannot be written as JSON ({error}); give "
            "CalculatorEnergy a name= that changes when the energies do"
        ) from error
    return f"{name}({text}{modules or ''})"


def parameters_text(calculator) -> str | None:
    """The parameters that a calculator states now, None if they cannot be written as JSON."""
    try:
        return encode(getattr(calculator, "parameters", None))
    except (TypeError, ValueError):
        return None


def describe_relaxation(relax: Relaxation | None) -> str:
    """What of a relaxation decides the energy; the limit on steps does not.

    Raises
    ------
    ValueError
        If optimizer or filter is a lambda or another nameless function.
    """
    if relax is None:
        return "fixed positions"
    return (
        f"relaxed by {_name(relax.optimizer)}, filter {_name(relax.filter)}, "
        f"fmax {relax.fmax!r}, max_strain {relax.max_strain!r}"
    )


def hash_module(module: torch.nn.Module) -> str:
    """Hash of the names, shapes and values of all parameters and buffers."""
    h = hashlib.sha256(type(module).__qualname__.encode())
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            h.update(f"{name}{tensor!r}".encode())
            continue
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(plain.view(torch.uint8).numpy().tobytes() if len(plain) else b"")
    return h.hexdigest()[:16]


def lattice_key(lattice: Lattice) -> str:
    """Identity of a supercell as a calculator sees it.

    Sharper than ``lattice.fingerprint``: positions to 1e-6 angstrom, initial magnetic moments and
    charges, tags, constraints, and plain values of ``info`` (such as a total charge).
    """
    atoms = lattice.template
    h = hashlib.sha256(lattice.fingerprint.encode())
    for part in (
        atoms.cell.array,
        atoms.positions,
        atoms.get_initial_magnetic_moments(),
        atoms.get_initial_charges(),
        atoms.get_tags(),
    ):
        h.update((np.round(np.asarray(part, dtype=float), 6) + 0.0).tobytes())
    h.update(np.ascontiguousarray(lattice.site_indices).tobytes())
    h.update(encode([c.todict() for c in atoms.constraints]).encode())
    plain = [(str(k), v) for k, v in atoms.info.items() if isinstance(v, bool | int | float | str)]
    h.update(repr(sorted(plain)).encode())
    return h.hexdigest()[:16]


def _name(function) -> str:
    if isinstance(function, functools.partial):
        return f"{_name(function.func)}{function.args}{sorted(function.keywords.items())}"
    name = getattr(function, "__qualname__", repr(function))
    if "<" in name:
        raise ValueError(
            f"{name} could be any function, so that energies relaxed with it are not recognised; "
            "use a class, a functools.partial of one, or a function of a module"
        )
    return name
