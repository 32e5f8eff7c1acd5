"""What needs a model and data together: is every phase there, and can the weights be trusted?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics.shortfall import FEWEST, Shortfall, shortfall
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling import sample
from clease_nn.statistics import normalized_ess, series_mean
from clease_nn.warnings import LostModeWarning, TrainingWarning

__all__ = ["Validation", "kl_gap", "validate"]

_CATASTROPHE = 10.0  # nats below the median log weight


@dataclass(frozen=True, eq=False)
class Validation:
    """How well a model describes an ensemble, condition by condition.

    Attributes
    ----------
    conditions : Conditions
    n_samples : int
        Draws at each condition.
    log_z, log_z_error : ndarray, shape (conditions,)
        By importance sampling.
    ness : ndarray, shape (conditions,)
        Normalised effective sample size, 0 to 1.
    reverse_kl : ndarray, shape (conditions,)
        KL(q || p) in nats, ``E_q[w - 1 - ln w]`` with ``w = p / q``.
    forward_kl, forward_kl_error : ndarray, shape (conditions,), or None
        KL(p || q) from configurations that no model had a hand in. NESS cannot see a lost mode,
        this can. The error contains the autocorrelation of the chains
        (:func:`~clease_nn.statistics.series_mean`); a single chain of fewer than 10 rows counts
        as one sample.
    lost : ndarray, shape (conditions,), or None
        Share of those configurations that weigh far more (10 nats, or three times
        ``reverse_kl``) than the heaviest draw of the model, 0 where it is a single one. Sees a
        phase that is missing where two coexist, which makes the error of ``forward_kl`` large.
    mean_weight, mean_weight_error : ndarray, shape (conditions,), or None
        ``E_q[w] - 1`` against an independent ln Z; far below zero where a mode is lost.
    catastrophic : ndarray, shape (conditions,)
        Share of draws whose ln w lies more than 10 below the median.
    shortfall : Shortfall or None
        Where and why, if there is a problem of weights or phases.
    """

    conditions: Conditions
    n_samples: int
    log_z: np.ndarray
    log_z_error: np.ndarray
    ness: np.ndarray
    reverse_kl: np.ndarray
    catastrophic: np.ndarray
    forward_kl: np.ndarray | None = None
    forward_kl_error: np.ndarray | None = None
    lost: np.ndarray | None = None
    mean_weight: np.ndarray | None = None
    mean_weight_error: np.ndarray | None = None
    shortfall: Shortfall | None = None

    def _why(self, lost: bool) -> str:
        """The worst region and its phases in words, of those with or without lost phases."""
        if self.shortfall is None:
            return ""
        for category, text in self.shortfall.problems():
            if (category is LostModeWarning) == lost:
                return f". {text}"
        return ""

    def _worst(self, values: np.ndarray, largest: bool) -> str:
        k = int(np.argmax(values) if largest else np.argmin(values))
        mu = (self.conditions.mu[k] - self.conditions.mu[k, -1]).tolist()
        relative = ", ".join(f"{m:+.3f}" for m in mu[:-1])
        return f"{self.conditions.temperature[k].item():.0f} K, relative mu {relative} eV"

    def problems(self) -> list[tuple[type[Warning], str]]:
        """What a user should know, in words, with the class of the warning."""
        out = []
        low = self.ness < 0.3
        if low.any():
            out.append(
                (
                    TrainingWarning,
                    f"NESS is below 0.3 at {int(low.sum())} of {len(low)} conditions (lowest "
                    f"{self.ness.min():.2f} at {self._worst(self.ness, False)}): results there "
                    "stay exact but need more samples; train longer or narrow the range"
                    + self._why(False),
                )
            )
        if self.forward_kl is not None:
            excess = self.forward_kl - 4 * self.forward_kl_error
            lost = excess > np.maximum(1.0, 3 * self.reverse_kl)
            if self.lost is not None:
                lost |= self.lost > 0
            if lost.any():
                out.append(
                    (
                        LostModeWarning,
                        f"independent chain configurations are improbable under the model at "
                        f"{int(lost.sum())} of {len(lost)} conditions (KL(p||q) "
                        f"{self.forward_kl.max():.1f} nats at "
                        f"{self._worst(self.forward_kl, True)}): a phase may be missing from its "
                        "samples, and NESS cannot see that; train longer" + self._why(True),
                    )
                )
        if self.mean_weight is not None:
            off = self.mean_weight + 4 * self.mean_weight_error < -0.02
            if off.any():
                out.append(
                    (
                        LostModeWarning,
                        f"mean weight minus one is {self.mean_weight.min():.2f} at "
                        f"{self._worst(self.mean_weight, False)}: the model misses part of Z",
                    )
                )
        if (self.catastrophic > 0).any():
            out.append(
                (
                    TrainingWarning,
                    f"{self.catastrophic.mean():.1e} of the draws are catastrophic (ln w more "
                    f"than 10 below the median), most at "
                    f"{self._worst(self.catastrophic, True)}; they cost samples, not exactness",
                )
            )
        return out

    def warn(self) -> None:
        """Issue a warning for each of :meth:`problems`."""
        for category, text in self.problems():
            warnings.warn(text, category, stacklevel=2)

    def summary(self) -> dict:
        """JSON-ready figures over all conditions."""
        out = {
            "conditions": len(self.conditions),
            "samples_per_condition": self.n_samples,
            "ness_mean": float(self.ness.mean()),
            "ness_min": float(self.ness.min()),
            "reverse_kl_mean_nats": float(self.reverse_kl.mean()),
            "reverse_kl_max_nats": float(self.reverse_kl.max()),
            "catastrophic_share": float(self.catastrophic.mean()),
        }
        if self.forward_kl is not None:
            out["forward_kl_mean_nats"] = float(self.forward_kl.mean())
            out["forward_kl_max_nats"] = float(self.forward_kl.max())
        return out

    def __str__(self) -> str:
        s = self.summary()
        text = (
            f"NESS mean {s['ness_mean']:.3f}, lowest {s['ness_min']:.3f} "
            f"({self._worst(self.ness, False)}); KL(q||p) {s['reverse_kl_mean_nats']:.3f} nats"
        )
        if self.forward_kl is not None:
            text += f", KL(p||q) {s['forward_kl_mean_nats']:.3f} nats"
        return text + f"; {s['conditions']} conditions x {s['samples_per_condition']} samples"


def kl_gap(log_weight: Tensor, log_z: Tensor) -> Tensor:
    """KL(q || p) of each row of log weights (conditions, n) given ln Z (conditions,), in nats.

    ``E_q[w - 1 - ln w]``, ``w = exp(log_weight - log_z)``: never negative sample by sample and
    of lower variance than ``E_q[-ln w]``, with the same mean where ``E_q[w] = 1``.
    """
    log_w = log_weight - log_z[:, None]
    return (torch.expm1(log_w) - log_w).mean(1)


def validate(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    chains: Configurations | None,
    conditions: Conditions,
    n_samples: int,
    rng: torch.Generator,
    *,
    lattice=None,
    log_z: Tensor | None = None,
) -> Validation:
    """Compare a model with its ensemble in both directions.

    Parameters
    ----------
    chains : Configurations, optional
        Configurations of the ensemble at ``conditions``, drawn without the model: rows of one
        ``chain`` in time order and correlated, rows without ``chain`` independent.
    conditions : Conditions
        Distinct conditions to draw ``n_samples`` at.
    lattice : Lattice, optional
        Default: that of ``chains``.
    log_z : Tensor, shape (conditions,), optional
        Independent ln Z; default the importance sampling estimate itself.

    Raises
    ------
    ValueError
        If ``n_samples`` < 2, or neither chains nor lattice are given.
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2, got {n_samples}")
    if lattice is None and chains is None:
        raise ValueError("validate needs the lattice or configurations of it")
    lattice = chains.lattice if lattice is None else lattice
    n = len(conditions)
    drawn = sample(model, ensemble, lattice, conditions.repeat(n_samples), rng)
    log_w = drawn.log_weight.view(n, n_samples)
    own = torch.logsumexp(log_w, 1) - np.log(n_samples)
    reference = own if log_z is None else log_z.to(own)
    w = torch.exp(log_w - own[:, None])
    mean_w = torch.exp(log_w - reference[:, None])
    out = Validation(
        conditions=conditions,
        n_samples=n_samples,
        log_z=own.numpy(),
        log_z_error=(w.std(1) / np.sqrt(n_samples)).numpy(),
        ness=np.array([normalized_ess(row.numpy()) for row in log_w]),
        reverse_kl=kl_gap(log_w, reference).numpy(),
        catastrophic=(log_w < log_w.median(1, keepdim=True).values - _CATASTROPHE)
        .double()
        .mean(1)
        .numpy(),
    )
    if log_z is not None:
        out = replace(
            out,
            mean_weight=(mean_w.mean(1) - 1).numpy(),
            mean_weight_error=(mean_w.std(1) / np.sqrt(n_samples)).numpy(),
        )
    if chains is not None:
        chains = ensemble.score(chains)
        heavy = log_w.max(1).values.numpy() + np.maximum(_CATASTROPHE, 3 * out.reverse_kl)
        out = replace(out, **_forward(model, ensemble, chains, conditions, reference, heavy, rng))
    if n_samples >= FEWEST and out.problems():
        out = replace(out, shortfall=shortfall(drawn, chains=chains))
    return out


def _forward(model, ensemble, chains, conditions, log_z, heavy, rng) -> dict:
    """Forward KL at each condition from configurations drawn without the model."""
    steps = model.draw_steps(
        replace(chains, occupations=torch.full_like(chains.occupations, -1)), rng
    )
    fields = ensemble.fields if model.needs_fields else None
    with torch.no_grad():
        log_q = model.log_prob(chains, steps=steps, fields=fields)
    labels = torch.arange(len(chains)) if chains.chain is None else chains.chain
    kl, error, lost = np.full((3, len(conditions)), np.nan)
    for k in range(len(conditions)):
        rows = (chains.conditions.temperature == conditions.temperature[k]) & (
            chains.conditions.mu == conditions.mu[k]
        ).all(1)
        log_w, label = (chains.log_target - log_q)[rows].numpy(), labels[rows].numpy()
        d = log_w - log_z[k].item()
        if len(d) > 1:
            estimate = series_mean([d[label == c] for c in np.unique(label)])
            kl[k], error[k] = estimate.value, estimate.error
            heavier = int((log_w > heavy[k]).sum())
            lost[k] = heavier / len(d) if heavier > 1 else 0.0
    if np.isnan(kl).any():
        raise ValueError(
            "validate needs at least 2 chain configurations at every condition; hand it chains "
            "at the same conditions"
        )
    return {"forward_kl": kl, "forward_kl_error": error, "lost": lost}
