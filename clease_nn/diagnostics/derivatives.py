"""Responses of a model to its conditions: ln q differentiated through temperature and mu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ase.units import kB
from torch import Tensor

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.models import AbstractOccupationModel, Fields
from clease_nn.statistics import Estimate, weighted_covariance
from clease_nn.thermodynamics import Averages, averages
from clease_nn.thermodynamics.groups import rows_by_condition, stack
from clease_nn.warnings import TrainingWarning

__all__ = ["Responses", "condition_scores", "responses"]

_OTHER_MODEL = 0.5  # nats between ln q as drawn and as scored: beyond any precision
_ROUNDING = 1e-9  # in kB, and in 1/kT, per site: less than this is no response
_SIGMA = 4.0
_RELATIVE = 0.1


@dataclass(frozen=True, eq=False)
class Responses:
    """How averages of the model's own distribution q follow its conditions.

    Where q is the ensemble, both agree with the fluctuation formulas; how far they are from
    ``averages`` tells how far the model has the dependence on its conditions wrong.

    Attributes
    ----------
    heat_capacity : Estimate, shape (conditions,)
        ``d<E - mu.N>_q / dT`` at constant mu, eV/K per supercell.
    susceptibility : Estimate, shape (conditions, species, species)
        ``d<N_a>_q / d mu_b`` at constant T, atoms per eV.
    averages : Averages
        Importance-weighted averages of the same draws, with the fluctuation formulas of the
        ensemble itself: ``heat_capacity`` and ``susceptibility``.
    """

    heat_capacity: Estimate
    susceptibility: Estimate
    averages: Averages

    @property
    def conditions(self) -> Conditions:
        """The conditions, one a row."""
        return self.averages.conditions

    def deviations(self) -> dict[str, np.ndarray]:
        """(model - fluctuations) / combined error, ``heat_capacity`` and ``susceptibility``.

        Both come from the same draws; their correlation is left out, which makes deviations
        rather too small than too large. Where nothing fluctuates they are zero.
        """
        out = {}
        n_sites = np.array([a.n_sites for a in self.averages])
        kT = self.conditions.kT.cpu().numpy()
        units = {"heat_capacity": kB * n_sites, "susceptibility": (n_sites / kT)[:, None, None]}
        for name, unit in units.items():
            own = getattr(self, name)
            other = stack([getattr(a, name) for a in self.averages])
            difference = own.value - other.value
            difference = np.where(np.abs(difference) < _ROUNDING * unit, 0.0, difference)
            out[name] = Estimate(difference, np.hypot(own.error, other.error)).z(0.0)
        return out

    def problems(self) -> list[tuple[type[Warning], str]]:
        """What a user should know, in words, with the class of the warning."""
        out = []
        for name, z in self.deviations().items():
            own = getattr(self, name).value
            other = stack([getattr(a, name) for a in self.averages]).value
            scale = np.abs(other).reshape(len(other), -1).max(1)
            off = np.abs(own - other).reshape(len(other), -1).max(1)
            sure = np.abs(z).reshape(len(other), -1).max(1) > _SIGMA
            wrong = sure & (off > _RELATIVE * scale)
            if wrong.any():
                k = int(np.argmax(np.where(wrong, off / np.maximum(scale, 1e-300), 0.0)))
                at = self.averages[k]
                out.append(
                    (
                        TrainingWarning,
                        f"the model's own {name.replace('_', ' ')} differs from the fluctuation "
                        f"formula at {int(wrong.sum())} of {len(wrong)} conditions (by "
                        f"{off[k] / max(scale[k], 1e-300):.0%} at {at.temperature:.0f} K, mu "
                        f"{np.round(at.mu, 4).tolist()} eV): weighted averages stay right, but "
                        "the model follows its conditions wrongly there; train longer",
                    )
                )
        return out

    def __str__(self) -> str:
        z = self.deviations()
        return ", ".join(
            f"{name.replace('_', ' ')}: model against fluctuations, rms deviation "
            f"{np.sqrt(np.mean(values**2)):.1f} standard errors"
            for name, values in z.items()
        )


def condition_scores(
    model: AbstractOccupationModel,
    full: Configurations,
    *,
    steps: Tensor,
    fields: Fields | None = None,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Derivatives of ln q of every row with respect to its own conditions.

    Parameters
    ----------
    model : AbstractOccupationModel
    full : Configurations
        Without unknown sites.
    steps : Tensor, shape (batch, sites)
        Pass in which each site is drawn, -1 where it is given.
    fields : callable, optional
        ``ensemble.fields``; needed where the model needs them. Derivatives go through them too.
    batch_size : int
        Rows differentiated together; sets the memory.

    Returns
    -------
    temperature : Tensor, shape (batch,), float64
        ``d ln q / dT`` at constant mu, 1/K.
    mu : Tensor, shape (batch, species), float64
        ``d ln q / d mu_b`` at constant T and other mu, 1/eV.

    Raises
    ------
    ValueError
        As ``model.log_prob``, if ``batch_size`` < 1, or inside of ``torch.inference_mode()``.
    """
    _, d_temperature, d_mu = _scores(model, full, steps, fields, batch_size)
    return d_temperature, d_mu


def responses(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    drawn: Configurations,
    *,
    batch_size: int = 64,
) -> Responses:
    """Heat capacity and susceptibility of the model by differentiating ln q.

    The score-function identity: for an observable O that does not itself depend on x,
    ``d<O>_q / dx = <(O - <O>) d ln q/dx>_q``, because ``<d ln q/dx>_q = 0``; that constant is
    the baseline which lowers the variance (R. J. Williams, Mach. Learn. 8, 229 (1992)). At
    constant mu, ``E - mu.N`` does not depend on T and ``N_a`` depends on no mu. The derivatives
    are those of the **model's** distribution: the draws are not weighted.

    Parameters
    ----------
    drawn : Configurations
        Draws of this model as :func:`~clease_nn.sampling.sample` gives them, scored, at
        least 10 a condition.

    Returns
    -------
    Responses
        Errors by jackknife.

    Raises
    ------
    ValueError
        If steps, energies or likelihoods are missing, the draws belong to another model, or as
        :func:`~clease_nn.thermodynamics.averages`.

    Warns
    -----
    LowESSWarning
        As :func:`~clease_nn.thermodynamics.averages`.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> from clease_nn.sampling import sample
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.01], [0.01], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> at = Conditions([600.0], [[0.0, 0.0]]).repeat(400)
    >>> drawn = sample(model, zero, lattice, at, torch.Generator().manual_seed(0))

    An untrained model takes no notice of its conditions, the ensemble does:

    >>> found = responses(model, zero, drawn)
    >>> found.susceptibility.value[0, 0, 0] == 0, found.averages[0].susceptibility.value[0, 0] > 10
    (np.True_, np.True_)
    >>> [text[:46] for _, text in found.problems()]
    ["the model's own susceptibility differs from th"]
    """
    missing = [name for name in ("step", "log_prob", "log_target") if getattr(drawn, name) is None]
    if missing:
        raise ValueError(
            f"responses need draws with {', '.join(missing)}; hand it what `sample` returns"
        )
    fields = ensemble.fields if model.needs_fields else None
    log_q, d_temperature, d_mu = _scores(model, drawn, drawn.step, fields, batch_size)
    off = float((log_q - drawn.log_prob).abs().median())
    if off > _OTHER_MODEL:
        raise ValueError(
            f"ln q of the draws differs from this model's by {off:.2g} nats (median): they were "
            "drawn by another model, or this one was trained since; draw them anew"
        )
    weighted = averages(drawn)
    sgc_energy = -drawn.conditions.kT * drawn.log_target
    counts = drawn.counts()
    k = counts.shape[1]
    heat, chi = [], []
    for rows in rows_by_condition(drawn):
        r = torch.as_tensor(rows)
        equal = np.zeros(len(r))
        pair = torch.stack([sgc_energy[r], d_temperature[r]], 1)
        heat.append(weighted_covariance(pair, equal)[0, 1])
        both = weighted_covariance(torch.cat([counts[r], d_mu[r]], 1), equal)
        chi.append(Estimate(both.value[:k, k:], both.error[:k, k:], both.ness))
    return Responses(stack(heat), stack(chi), weighted)


def _scores(model, full, steps, fields, batch_size):
    """ln q (batch,) and its derivatives by T (batch,) and mu (batch, species)."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "inside of torch.inference_mode() nothing can be differentiated; leave the block, or "
            "use torch.no_grad() for it"
        )
    was_training = model.training
    model.eval()
    parts = []
    try:
        for k in range(0, len(full), batch_size):
            c = full[k : k + batch_size]
            temperature = c.conditions.temperature.detach().clone().requires_grad_()
            mu = c.conditions.mu.detach().clone().requires_grad_()
            # gradients of a sum over rows are those of the rows: each has conditions of its own
            at = Configurations(c.lattice, Conditions(temperature, mu), c.occupations)
            with torch.enable_grad():
                log_q = model.log_prob(at, steps=steps[k : k + batch_size], fields=fields)
                total, inputs = log_q.sum(), (temperature, mu)
            if total.requires_grad:
                found = torch.autograd.grad(
                    total, inputs, allow_unused=True, materialize_grads=True
                )
            else:  # nothing of the model depends on anything
                found = torch.zeros_like(temperature), torch.zeros_like(mu)
            parts.append((log_q.detach(), *found))
    finally:
        model.train(was_training)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
