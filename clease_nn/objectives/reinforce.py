"""REINFORCE: reverse Kullback-Leibler divergence from a model's own draws."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from clease_nn.models import AbstractOccupationModel
from clease_nn.objectives.batches import CompleteBatch
from clease_nn.objectives.groups import group_means, group_sizes

__all__ = ["Reinforce"]

_ADVANTAGES = ("standardized", "leave_one_out", "grand_potential")


@dataclass(frozen=True)
class Reinforce:
    """Score-function gradient of KL(q || p) of rows that the model has just drawn.

    With ``r = ln q(x) - ln f(x)``, ``f`` the Boltzmann weight, the gradient of KL(q || p) at one
    condition is ``E_q[(r - b) grad ln q(x)]`` for any constant b (Williams, Machine Learning 8,
    229 (1992)). All conditions of a batch count alike.

    Parameters
    ----------
    advantage : {"standardized", "leave_one_out", "grand_potential"}
        What stands for ``r - b``, per condition. ``"leave_one_out"``: r minus the mean of the
        other rows, which leaves the gradient unbiased. ``"standardized"``: r minus the mean,
        divided by the standard deviation; hard conditions then count no more than easy ones.
        ``"grand_potential"``: r minus the mean, divided by the estimate ``|mean r|`` of the
        grand potential over kT (Damewood et al., npj Comput. Mater. 8, 61 (2022)); where that is
        below 1 it is not divided.

    Raises
    ------
    ValueError
        If the advantage is unknown.

    Examples
    --------
    >>> Reinforce("leave_one_out")
    Reinforce(advantage='leave_one_out')
    """

    advantage: str = "standardized"

    def __post_init__(self):
        if self.advantage not in _ADVANTAGES:
            raise ValueError(f"advantage must be one of {_ADVANTAGES}, got {self.advantage!r}")

    def __call__(
        self, model: AbstractOccupationModel, batch: CompleteBatch
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss whose gradient is that of the divergence, and what is watched.

        Returns
        -------
        loss : Tensor
            Mean of advantage times ln q; its value means nothing.
        metrics : dict
            ``loss``: mean of ln q - ln f in nats, at least the mean of -ln Z. ``spread``: root
            mean square deviation of ln q - ln f within the conditions, zero for an exact model.

        Raises
        ------
        ValueError
            If the rows are not freshly drawn and scored, or a condition has a single row.
        """
        full = batch.full if isinstance(batch, CompleteBatch) else None
        if full is None or full.log_prob is None or full.log_target is None:
            raise ValueError(
                "Reinforce needs complete configurations that the model has just drawn, with "
                "log_prob and log_target; feed it a GeneratedSource"
            )
        advantage, r, centred = self._advantage(batch)
        log_q = model.log_prob(full, steps=full.step, fields=batch.fields, passes=batch.passes)
        loss = (advantage * log_q).mean()
        metrics = {"loss": float(r.mean()), "spread": float(centred.square().mean().sqrt())}
        return loss, metrics

    def _advantage(self, batch: CompleteBatch) -> tuple[Tensor, Tensor, Tensor]:
        group = batch.group
        n = group_sizes(group, "Reinforce")
        r = (batch.full.log_prob - batch.full.log_target).detach()
        mean = group_means(r, group)
        centred = r - mean
        if self.advantage == "standardized":
            deviation = (group_means(centred.square(), group) * n / (n - 1)).sqrt()
            return centred / deviation.clamp_min(1e-12), r, centred
        if self.advantage == "leave_one_out":
            return centred * n / (n - 1), r, centred
        return centred / mean.abs().clamp_min(1.0), r, centred
