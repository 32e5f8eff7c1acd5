"""Networks that serve one supercell only: what they were made for, and a refusal of others."""

from __future__ import annotations

from clease_nn.lattice import Lattice

__all__ = ["check_cell"]


def check_cell(cell: str, n_sites: int, lattice: Lattice) -> None:
    """Refuse a lattice that a network bound to one supercell was not made for.

    Parameters
    ----------
    cell : str
        Fingerprint of the lattice the network was made for.
    n_sites : int
        Its number of active sites.
    lattice : Lattice
        The one asked for.

    Raises
    ------
    ValueError
        If it is another one.
    """
    if lattice.fingerprint != cell:
        raise ValueError(
            f"this network was made for the cell {cell} of {n_sites} sites, asked for "
            f"{lattice.fingerprint} of {lattice.n_sites}; use LatticeConvolution or PaiNN, which "
            "serve every supercell, or train another"
        )
