"""The physical prior: logits of the known sites' energies, shared by every network.

``logits = network + fields * (fraction known)^3``: exact as the configuration fills, it prevents
rare catastrophic draws at low temperature, and leaves the first draws to the network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clease_nn.configurations import Configurations

__all__ = ["check_fields", "with_prior"]


def check_fields(needs_fields: bool, fields: Tensor | None) -> Tensor | None:
    """``fields`` if the network uses them, else None.

    Raises
    ------
    ValueError
        If they are needed and absent.
    """
    if not needs_fields:
        return None
    if fields is None:
        raise ValueError(
            "this network was made with needs_fields=True; hand it the ensemble's fields"
        )
    return fields


def with_prior(logits: Tensor, c: Configurations, fields: Tensor | None, site=None) -> Tensor:
    """Logits with the physical ones added; as they are where there are no fields.

    Parameters
    ----------
    logits : Tensor, shape (batch, sites, species) or, with ``site``, (batch, species)
    c : Configurations
    fields : Tensor, shape (batch, sites, species), or None
        In units of kT.
    site : Tensor, shape (batch,), optional
        The one site of each row that the logits belong to.
    """
    if fields is None:
        return logits
    share = (c.known.sum(1).to(torch.float32) / c.lattice.n_sites) ** 3
    if site is None:
        return logits + fields * share[:, None, None]
    return logits + fields[torch.arange(len(c), device=site.device), site] * share[:, None]
