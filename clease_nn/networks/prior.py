"""The physical prior: logits of the known sites' energies, shared by every network.

``logits = network + fields * (fraction known)``, with the unknown sites at their mean field: exact
as the configuration fills, it prevents rare catastrophic draws at low temperature, and leaves the
first draws to the network. A network may add a gate of its own to the fraction.
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


def with_prior(
    logits: Tensor, c: Configurations, fields: Tensor | None, site=None, gate: Tensor | None = None
) -> Tensor:
    """Logits with the physical ones added; as they are where there are no fields.

    Parameters
    ----------
    logits : Tensor, shape (batch, sites, species) or, with ``site``, (batch, species)
    c : Configurations
    fields : Tensor, shape (batch, sites, 2 * species), or None
        Of ``SemiGrandCanonical.fields``; those of the mean field are added.
    site : Tensor, shape (batch,), optional
        The one site of each row that the logits belong to.
    gate : Tensor, shape (batch,), optional
        Times the fraction unknown, it is added to the fraction known. Default: none.
    """
    if fields is None:
        return logits
    share = c.known.sum(1).to(torch.float32) / c.lattice.n_sites
    weight = share if gate is None else share + (1 - share) * gate
    k = logits.shape[-1]
    if site is None:
        return logits + fields[:, :, :k] * weight[:, None, None]
    own = fields[torch.arange(len(c), device=site.device), site, :k]
    return logits + own * weight[:, None]
