"""Which phases are among the states: by their long-range order, then by their composition.

*Order*: every state is compared with the symmetry variants of given ordered structures (or of the
ground states along the line). With ``d`` the deviation of the site occupations from their mean on
every sublattice and ``s`` that of a variant, the long-range order is the largest ``d.s / s.s``
over the variants, 1 for the structure itself and around 0 without order. The structure is the one
of the largest cosine ``d.s / |d||s|``: structures that share composition waves (L1_0 and L1_2)
have long-range order in one another.

A structure's variants are one phase of the infinite crystal each; their number is the phase's
``degeneracy``.

*Composition*: among states of one kind of order, weight against composition of the whole
supercell tells of a miscibility gap where it is not concave: the common tangent touches it twice,
and between these points lies a valley.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from ase.formula import Formula
from ase.units import kB

from clease_nn.errors import NotDeterminedError
from clease_nn.lattice import Lattice
from clease_nn.phases.convex import lower_chain
from clease_nn.phases.labels import UNDECIDED, Phases, mean_compositions
from clease_nn.phases.line import ChemicalPotentialLine, check_temperatures
from clease_nn.phases.projection import Projection, by_amount
from clease_nn.symmetry import structure_variants
from clease_nn.thermodynamics import DensityOfStates
from clease_nn.thermodynamics.long_range import checked, contrast

__all__ = ["CRITICAL_VALLEY", "DISORDERED", "identify"]

DISORDERED = "disordered"
"""Name of the phase without long-range order."""

CRITICAL_VALLEY = float(np.exp(-0.776))
"""Valley over peak at the critical point of three-dimensional Ising systems, 0.46.

Tsypin and Bloete, Phys. Rev. E 62, 73 (2000): P(m) ~ exp[-(m^2/m0^2 - 1)^2 (0.158 m^2/m0^2 +
0.776)] in periodic cubes, whatever their size. A deeper valley separates two phases.
"""

_THRESHOLD = 0.5  # a state is nearer to the structure than to disorder above it
_BAND = 0.05  # of long-range order, about the threshold
_SIMILAR = 0.8  # cosine above which two ground states have one kind of order
_FEWEST = 20.0  # effective states an amount needs to be looked at
_CHUNK = 8192


def identify(
    dos: DensityOfStates,
    line: ChemicalPotentialLine,
    temperatures: Sequence[float] | None = None,
    *,
    structures: Mapping[str, np.ndarray] | None = None,
    threshold: float | None = None,
) -> Phases:
    """Find the phases along a line of chemical potentials by the structure of the states.

    Parameters
    ----------
    dos : DensityOfStates
        With ``occupations``.
    line : ChemicalPotentialLine
    temperatures : sequence of float, optional
        K; which are looked at. Default: those that were sampled.
    structures : mapping of str to array_like, shape (sites,), optional
        Occupations of the ordered phases by name, in the supercell of the states. Default: the
        ground states among the states along the line, where they are ordered and repeat within
        the supercell; a phase that is stable at high temperature only must be given.
    threshold : float, optional
        Long-range order, between 0 and 1, above which a state counts as ordered. Default: where
        the weight over the conditions looked at is least between order and disorder, 0.5 if there
        is no valley; ``reasons`` tells it, and how much weight lies about it. Boundaries depend
        on it as far as there is some, in a small supercell or near a continuous transition, and
        no statistical error knows: identify with 0.05 more and 0.05 less, and quote the change.

    Returns
    -------
    Phases
        Disordered states are ``"disordered"``; where a miscibility gap parts them, the parts are
        named by the species the line adds (``"Au-poor"``, ``"Au-rich"``). A given structure that
        no state has stays in the names, without states.

    Raises
    ------
    ValueError
        If there are no temperatures, a structure does not fit the lattice, or the threshold is
        not between 0 and 1.
    NotDeterminedError
        If the states carry no occupations, or no temperature is supported by the data.

    Examples
    --------
    >>> from clease_nn.energies.ising import ising_energy
    >>> from clease_nn.ensemble import SemiGrandCanonical
    >>> lattice = Lattice.square(4)
    >>> states = SemiGrandCanonical(ising_energy(lattice, 0.02)).enumerate(lattice)
    >>> line = ChemicalPotentialLine.exchange(lattice, "Au", "Cu")
    >>> identify(DensityOfStates.exact(states), line, [400.0]).names
    ('Au-poor', 'Au-rich')
    """
    if dos.occupations is None:
        raise NotDeterminedError(
            "these states carry no occupations, so their structure is unknown; label them with "
            "Phases.given"
        )
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"the threshold of long-range order must be in (0, 1), got {threshold}")
    temperatures = _temperatures(dos, temperatures)
    pooled = _pooled_weights(dos, line, temperatures)
    reasons: list[str] = []
    if structures is None:
        structures = _ground_states(dos, line, temperatures[0], reasons)
        found = ", ".join(structures) or "none"
        reasons.append(
            f"ordered structures from the lowest states along the line at {temperatures[0]:g} K: "
            f"{found}"
        )
    structures = {k: _checked(dos.lattice, k, v) for k, v in structures.items()}
    if DISORDERED in structures:
        raise ValueError(f"the name {DISORDERED!r} is kept for states without order")
    variants = {k: structure_variants(dos.lattice, v) for k, v in structures.items()}
    eta, cosine = _compare(dos.occupations, dos.lattice, variants)
    kinds = np.zeros(len(dos), dtype=np.int64)
    if structures:
        nearest = cosine.argmax(1)
        own = eta[np.arange(len(dos)), nearest]
        for k, name in enumerate(structures):
            of = nearest == k
            above, why = threshold, "which was given"
            if above is None:
                above = _valley_of_order(own[of], pooled[of], dos, np.flatnonzero(of))
                why = "where the weight is least"
            if above is None:
                above, why = _THRESHOLD, "for there is no valley over the conditions looked at"
            hit = of & (own > above)
            kinds[hit] = k + 1
            if not hit.any():
                reasons.append(f"{name} was never sampled: no state has long-range order of it")
                continue
            unsure = pooled[of & (np.abs(own - above) < _BAND)].sum()
            share = unsure / max(pooled[hit].sum(), 1e-300)
            reasons.append(
                f"states count as {name} above a long-range order of {above:.2f}, {why}; the "
                f"weight within {_BAND} of it is {share:.1%} of that of the phase"
            )
    kind_names = (DISORDERED, *structures)
    degeneracy = [1, *map(len, variants.values())]
    labels, names, kind_of = _split_by_composition(
        dos, line, temperatures, kinds, kind_names, reasons
    )
    if len(names) == 1:
        reasons.append("one phase only: neither order nor a miscibility gap was found")
    composition = mean_compositions(dos, labels, len(names), pooled)
    return Phases(
        names=tuple(names),
        labels=labels,
        composition=composition,
        degeneracy=np.array([degeneracy[k] for k in kind_of]),
        kinds=np.array(kind_of),
        order=eta,
        structures=structures,
        reasons=tuple(reasons),
    )


# ------------------------------------------------------------------ parts
def _compare(occupations, lattice: Lattice, variants: Mapping[str, np.ndarray]):
    """Largest ``d.s / s.s`` and ``d.s / |d||s|`` over the variants of every structure.

    Both of shape (rows, structures); the first is
    :func:`~clease_nn.thermodynamics.long_range_order`.
    """
    occupations = torch.as_tensor(occupations).cpu().numpy()
    order = np.zeros((len(occupations), len(variants)))
    cosine = np.zeros_like(order)
    contrasts = [_deviations(v, lattice) for v in variants.values()]
    for start in range(0, len(occupations) if contrasts else 0, _CHUNK):
        rows = slice(start, start + _CHUNK)
        d = _deviations(occupations[rows], lattice)
        norm = np.sqrt((d**2).sum(1))
        for k, s in enumerate(contrasts):
            square = float((s[0] ** 2).sum())
            largest = (d @ s.T).max(1)
            order[rows, k] = largest / square
            cosine[rows, k] = largest / np.maximum(norm * np.sqrt(square), 1e-12)
    return order, cosine


def _deviations(occupations: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Occupations minus their mean on every sublattice, (rows, sites * species), float32."""
    return contrast(occupations, lattice).reshape(len(occupations), -1).astype(np.float32)


def _checked(lattice: Lattice, name: str, x) -> np.ndarray:
    """Occupations of an ordered structure, int8."""
    x = x.cpu().numpy() if torch.is_tensor(x) else np.asarray(x)
    x = checked(x[None], lattice, f"structure {name!r}")[0]
    if not (contrast(x[None], lattice) ** 2).sum() > 1e-9:
        raise ValueError(
            f"structure {name!r} has no order: every sublattice carries one species; phases that "
            "differ in composition only are found without it"
        )
    return x


def _temperatures(dos: DensityOfStates, temperatures) -> np.ndarray:
    if temperatures is None:
        if dos.sampled is None:
            raise ValueError("say at which temperatures [K] to look: temperatures=[...]")
        temperatures = dos.sampled.temperature.cpu().numpy()
    return check_temperatures(temperatures)


def _pooled_weights(dos: DensityOfStates, line, temperatures) -> np.ndarray:
    """(states,) mean probability over the temperatures and over t that the data support."""
    part = by_amount(line.amount(dos), dos.log_g, np.arange(len(dos)))
    rows, _, bins = part
    out = np.zeros(len(dos))
    for temperature in temperatures:
        log_w = dos.log_weights(line.at(temperature, 0.0))
        kT = kB * temperature
        p = Projection(dos, *part, log_w, np.zeros((len(dos), 0)), kT)
        t = np.linspace(*line.span(dos, temperature), 65)
        t = t[p.ess(t) >= _FEWEST]
        if len(t):
            # exp(t a / kT) / Z(t) summed over t depends on the amount alone
            shift = np.exp(t[:, None] * p.amount / kT - p.log_z(t)[:, None] + p.log_weight)
            out[rows] += shift.mean(0)[bins] * np.exp(log_w[rows] - p.log_weight[bins])
    if not out.sum() > 0:
        raise NotDeterminedError(
            "at none of the temperatures do the data support any point of the line; sample along "
            "the line first"
        )
    return out / out.sum()


def _ground_states(dos: DensityOfStates, line, temperature: float, reasons: list[str]):
    """Ordered states, by name, on the lower convex hull of energy against amount.

    A state that repeats nowhere within the supercell may be any fluctuation or a structure with
    a defect, whose variants are no domains.
    """
    if np.ptp(line.amount(dos)) == 0:
        return {}
    energy = dos.energy - dos.counts @ line.origin
    # rows by amount, then by energy; the first of every amount is its lowest state
    rows = np.flatnonzero(np.isfinite(dos.log_g))
    rounded = np.round(line.amount(dos), 9)
    rows = rows[np.lexsort((energy[rows], rounded[rows]))]
    amount, first = np.unique(rounded[rows], return_index=True)
    lowest = rows[first]
    low, high = line.span(dos, temperature)
    chain = lower_chain(amount, energy[lowest])
    slopes = np.diff(energy[lowest][chain]) / np.diff(amount[chain])
    edges = np.concatenate([[-np.inf], slopes, [np.inf]])
    width = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
    occupations = dos.occupations.cpu().numpy()
    found: dict[str, np.ndarray] = {}
    variants: dict[str, np.ndarray] = {}
    for k in np.argsort(-width):
        x = occupations[lowest[chain[k]]]
        if width[k] <= 0 or not (_deviations(x[None], dos.lattice) ** 2).sum() > 1e-9:
            continue
        if found:
            _, cosine = _compare(x[None], dos.lattice, variants)
            if cosine.max() > _SIMILAR:
                continue
        name = _formula(dos.lattice, x, found)
        translations = dos.lattice.translations
        if len(np.unique(x[translations], axis=0)) == len(np.unique(translations, axis=0)):
            reasons.append(
                f"the lowest state of composition {name} repeats nowhere within the supercell and "
                "is not taken for a phase; give it in structures= if it is one"
            )
            continue
        found[name], variants[name] = x, structure_variants(dos.lattice, x)
    order = sorted(found, key=lambda name: line.direction[found[name]].sum())
    return {name: found[name] for name in order}


def _formula(lattice: Lattice, x: np.ndarray, taken) -> str:
    counts = {s: int((x == a).sum()) for a, s in enumerate(lattice.species)}
    counts = {s: n for s, n in counts.items() if n}
    name = base = str(Formula.from_dict(counts).reduce()[0])
    k = 2
    while name in taken:
        name, k = f"{base} ({k})", k + 1
    return name


def _valley_of_order(order, weights, dos: DensityOfStates, rows) -> float | None:
    """Where the pooled weight is least between order and disorder; None if there is no valley.

    The middle of all that noise does not tell from the least.
    """
    edges = np.linspace(-0.2, 1.4, 161)
    centres = (edges[1:] + edges[:-1]) / 2
    # one atom changes order by about 2 / sites: wide enough to see no steps
    width = max(0.04, 1.4 / dos.lattice.n_sites)
    kernel = np.exp(-0.5 * ((centres[:, None] - centres) / width) ** 2)
    h = kernel @ np.histogram(order, edges, weights=weights)[0]
    error = np.zeros_like(h)
    if not dos.is_exact:
        tau = 1.0 if dos.inefficiency is None else dos.inefficiency[rows]
        square = np.histogram(order, edges, weights=weights**2 * tau)[0]
        error = np.sqrt(np.maximum(kernel**2 @ square, 0.0))
    inside = np.flatnonzero((centres > 0.25) & (centres < 0.8))
    k = int(inside[h[inside].argmin()])
    left, right = h[: k + 1].max(), h[k:].max()
    if not right > 0 or h[k] + error[k] > CRITICAL_VALLEY * min(left, right):
        return None
    like = h[inside] <= h[k] * (1 + 1e-9) + np.hypot(error[inside], error[k])
    first, last = k, k
    while like[first - 1 - inside[0]] and first > inside[0]:
        first -= 1
    while last < inside[-1] and like[last + 1 - inside[0]]:
        last += 1
    return float((centres[first] + centres[last]) / 2)


def _split_by_composition(dos, line, temperatures, kinds, kind_names, reasons):
    """Cut kinds of order where a miscibility gap parts them.

    Gaps are looked for in the weight of all states: alone, a kind has a hole wherever another
    takes its place.
    """
    amount = line.amount(dos)
    part = by_amount(amount, dos.log_g, np.arange(len(dos)))
    of_kind = (kinds[:, None] == np.arange(len(kind_names))).astype(float)
    cuts: list[dict] = [{} for _ in kind_names]
    for temperature in temperatures[::-1]:
        log_w = dos.log_weights(line.at(temperature, 0.0))
        p = Projection(dos, *part, log_w, of_kind, kB * temperature)
        low, high = line.span(dos, temperature)
        for bottom, left, right, t in _gaps(p):
            ends = np.searchsorted(p.amount, [left - 1e-6, right - 1e-6])
            first, second = p.mean[ends].argmax(1)
            new = not any(left < c < right for c in cuts[first])
            if first == second and low <= t <= high and new:
                cuts[first][bottom] = temperature
    rows = [np.flatnonzero(kinds == k) for k in range(len(kind_names))]
    labels = np.full(len(dos), UNDECIDED, dtype=np.int64)
    names: list[str] = []
    kind_of: list[int] = []
    for k, kind in enumerate(kind_names):
        if not len(rows[k]) and k == 0:
            continue
        edges = np.array([-np.inf, *sorted(cuts[k]), np.inf])
        for j in range(len(edges) - 1):
            inside = (amount[rows[k]] > edges[j] + 1e-6) & (amount[rows[k]] < edges[j + 1] - 1e-6)
            labels[rows[k][inside]] = len(names)
            kind_of.append(k)
            names.append(_part_name(line.species, kind, j, len(edges) - 1))
        reasons += [
            f"{kind} has a miscibility gap up to about {t:g} K, {_where_cut(dos, line, amount, c)}"
            for c, t in cuts[k].items()
        ]
    return labels, names, kind_of


def _where_cut(dos, line, amount, cut: float) -> str:
    """In words, with the states that belong to neither side."""
    at = np.abs(amount - cut) < 1e-6
    text = f"cut at amount {cut:g} of the line"
    if dos.lattice.n_species == 2:  # one composition to an amount
        known, first = np.unique(amount, return_index=True)
        text = f"cut at a site fraction of {line.species} of "
        text += f"{np.interp(cut, known, line.composition(dos)[first]):.3f}"
    return f"{text}; {at.sum()} states at the cut are in neither phase" if at.any() else text


def _part_name(species: str, kind: str, part: int, parts: int) -> str:
    if parts == 1:
        return kind
    share = f"{species}-poor" if part == 0 else f"{species}-rich"
    if 0 < part < parts - 1:
        share = f"{species}-middle" if parts == 3 else f"{species}-middle {part}"
    return share if kind == DISORDERED else f"{kind} {share}"


def _gaps(p: Projection) -> list[tuple[float, float, float, float]]:
    """(bottom, left, right, t) of every gap: amounts of valley and tangent points, and slope."""
    known = np.flatnonzero(p.ess_of_amounts >= _FEWEST)
    if len(known) < 3:
        return []
    a, y = p.amount[known], p.log_weight[known]
    with np.errstate(over="ignore"):
        error = 1 / np.sqrt(p.ess_of_amounts[known])
    chain = lower_chain(a, -y)
    out = []
    for i, j in pairwise(chain):
        if j - i < 2:
            continue
        inside = np.arange(i + 1, j)
        slope = (y[j] - y[i]) / (a[j] - a[i])
        depth = y[i] + slope * (a[inside] - a[i]) - y[inside]
        deepest = int(depth.argmax())
        noise = np.hypot(error[inside[deepest]], max(error[i], error[j]))
        # amounts that noise does not tell from the deepest: cut in their middle
        ties = inside[depth >= depth[deepest] - noise - 1e-9]
        if depth[deepest] - 2 * noise > -np.log(CRITICAL_VALLEY):
            where = float(a[ties].mean())
            out.append((where, float(a[i]), float(a[j]), float(-slope * p.kT)))
    return out
