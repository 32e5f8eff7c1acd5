"""Samples of many conditions put next to each other, and what resampled data would have been."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.cost import Cost, merge_provenance
from clease_nn.lattice import UNKNOWN
from clease_nn.statistics import log_mean_exp
from clease_nn.thermodynamics.groups import Group, autocorrelation_time, groups, to_numpy
from clease_nn.thermodynamics.resampling import bootstrap_factors, chain_blocks, common_blocks
from clease_nn.warnings import LowESSWarning

__all__ = ["Pool", "SampleSet"]

_SHARPEST = 3.0  # error of ln Z times effective samples
_TYPICAL = 0.9  # share of the chains of a run whose autocorrelation time its blocks must cover


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples of one condition from one source.

    Attributes
    ----------
    condition : Conditions
        One row.
    rows : ndarray of int
        Their places in the pool.
    weight : ndarray, shape (rows,)
        Of sum one.
    tau : float
        Samples in one independent sample.
    blocks : ndarray of int, shape (rows,)
        Rows of one block are resampled together.
    inflation : float
        Factor on the variance of means over blocks.
    run : int
        Sets of one run that share their blocks; -1: resampled on its own.
    log_z, error : float
        ln of the mean weight with its error; nan and infinity for chains.
    """

    condition: Conditions
    rows: np.ndarray
    weight: np.ndarray
    tau: float
    blocks: np.ndarray
    inflation: float = 1.0
    run: int = -1
    log_z: float = np.nan
    error: float = np.inf

    @property
    def effective(self) -> float:
        """Effective number of samples."""
        return float(1.0 / ((self.weight**2).sum() * self.tau))

    @property
    def precision(self) -> float:
        """Inverse variance of ln Z, bounded: more is of no use to so few samples."""
        return max(self.error, _SHARPEST / self.effective) ** -2


class Pool:
    """All samples, row by row as given.

    Parameters
    ----------
    parts : list of Configurations
        Of one lattice, scored, each weighted or chains.

    Attributes
    ----------
    lattice : Lattice
    sets : list of SampleSet
    energy : ndarray, shape (rows,)
    counts : ndarray, shape (rows, species)
    occupations : Tensor, shape (rows, sites)
    provenance : dict
        Costs, those of slices of one result once, and the numbers of rows and parts.

    Raises
    ------
    TypeError, ValueError
        As :func:`~clease_nn.thermodynamics.density_of_states`.
    """

    def __init__(self, parts: list[Configurations]):
        for p in parts:
            if not isinstance(p, Configurations):
                raise TypeError(f"expected Configurations, got {type(p).__name__}")
        parts = [p for p in parts if len(p)]
        if not parts:
            raise ValueError("there are no configurations to combine")
        if any(p.lattice.fingerprint != parts[0].lattice.fingerprint for p in parts):
            raise ValueError(
                "configurations of different lattices do not combine: a density of states belongs "
                "to one supercell; combine each separately"
            )
        _check_given(parts)
        self.lattice = parts[0].lattice
        self.sets: list[SampleSet] = []
        start = 0
        for run, p in enumerate(parts):
            with warnings.catch_warnings():
                # few samples of one condition are no fault where neighbours help
                warnings.simplefilter("ignore", LowESSWarning)
                found = groups(p, scored=True)
            sets = _weighted(found) if p.chain is None else _chains(p, found, run)
            self.sets += [replace(s, rows=s.rows + start) for s in sets]
            start += len(p)
        self.energy = np.concatenate([to_numpy(p.energy) for p in parts])
        self.counts = np.concatenate([p.counts().cpu().numpy() for p in parts])
        self.occupations = torch.cat([p.occupations.cpu() for p in parts])
        cost = Cost.from_provenance(merge_provenance([p.provenance for p in parts]))
        self.provenance = {"rows": start, "parts": len(parts)} | cost.to_dict()

    @classmethod
    def of(cls, c: Configurations | Sequence[Configurations]) -> Pool:
        """The pool of one batch or of several."""
        if isinstance(c, Configurations):
            return cls([c])
        if isinstance(c, str | Mapping) or not isinstance(c, Iterable):
            raise TypeError(
                f"expected Configurations or a sequence of them, got {type(c).__name__}"
            )
        return cls(list(c))

    @property
    def conditions(self) -> Conditions:
        """Of every set."""
        return Conditions.cat(s.condition for s in self.sets)

    def of_rows(self, values) -> np.ndarray:
        """Spread one value a set, or one a row of a set, over the rows of the pool."""
        out = np.empty(len(self.energy))
        for s, v in zip(self.sets, values, strict=True):
            out[s.rows] = v
        return out

    def resampled(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Factors on the weights of rows, and ln Z of the sets, that other samples would give.

        Returns
        -------
        factors : ndarray, shape (rows, n), float32
            Times the weights of a set they have sum one.
        log_z : ndarray, shape (sets, n)
        """
        factors = np.empty((len(self.energy), n), dtype=np.float32)
        log_z = np.empty((len(self.sets), n))
        shared: dict[int, np.ndarray] = {}
        for k, s in enumerate(self.sets):
            if s.run not in shared:
                b = bootstrap_factors(s.blocks, s.inflation, n, rng)
                if s.run >= 0:
                    shared[s.run] = b
            else:
                b = shared[s.run]
            mean = s.weight @ b
            log_z[k] = s.log_z + np.log(mean)
            if s.error < np.inf:
                # the weight expected beyond the largest one seen is not in resampled weights
                unseen = np.sqrt(max(s.error**2 - log_z[k].var(), 0.0))
                log_z[k] += unseen * rng.standard_normal(n)
            factors[s.rows] = b / mean.astype(np.float32)
        return factors, log_z


def _check_given(parts: list[Configurations]) -> None:
    """All rows must be of one ensemble: drawn around the same given sites, if around any."""
    weighted = [p for p in parts if p.log_prob is not None and p.chain is None]
    if not weighted:
        return
    given = weighted[0].given[0].cpu()
    if not all(bool((p.given.cpu() == given).all()) for p in weighted):
        raise ValueError(
            "rows were completed from different given sites, and these are different ensembles; "
            "combine every set of given sites separately (Configurations.by_given)"
        )
    held = given != UNKNOWN
    for p in parts:
        if p.chain is not None and not bool((p.occupations.cpu()[:, held] == given[held]).all()):
            raise ValueError(
                "the weighted draws hold species on some sites, where these chains carry others; "
                "run chains with these sites clamped (Chains(clamped=)), or combine separately"
            )


def _weighted(found: list[Group]) -> list[SampleSet]:
    sets = []
    for g in found:
        log_z = log_mean_exp(g.log_w)
        w = np.exp(g.log_w - g.log_w.max())
        sets.append(
            SampleSet(
                g.condition,
                g.rows,
                w / w.sum(),
                1.0,
                np.arange(len(w)),
                log_z=float(log_z.value),
                error=float(log_z.error),
            )
        )
    return sets


def _chains(p: Configurations, found: list[Group], run: int) -> list[SampleSet]:
    taus = [autocorrelation_time(p, g) for g in found]
    lengths = {len(x) for g in found for x in g.pieces}
    common = len(found) > 1 and len(lengths) == 1 and all(len(g.pieces) == 1 for g in found)
    if common:
        # perhaps the chains exchanged configurations
        rows = np.stack([g.rows[g.pieces[0]] for g in found], 1)
        series = [to_numpy(p.energy)[rows]]
        series += list(np.moveaxis(p.counts().cpu().numpy()[rows], -1, 0))
        blocks, inflation = common_blocks(series, float(np.quantile(taus, _TYPICAL)))
    sets = []
    for g, tau in zip(found, taus, strict=True):
        if not common:
            blocks, inflation = chain_blocks([len(x) for x in g.pieces], tau)
        n = len(g.rows)
        sets.append(
            SampleSet(
                g.condition,
                g.rows[np.concatenate(g.pieces)],
                np.full(n, 1 / n),
                tau,
                blocks,
                inflation,
                run if common else -1,
            )
        )
    return sets
