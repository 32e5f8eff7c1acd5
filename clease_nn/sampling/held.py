"""In-painting: partial configurations with some sites held, for :func:`~clease_nn.complete`.

What is held and what is then drawn define a restricted ensemble: the mean weight of the completed
rows is its partition function ``Z_c``, the sum over all completions of ``exp(-(E - mu.N)/kT)``,
and every function of :mod:`clease_nn.thermodynamics` reads them.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lgamma

import numpy as np
import torch
from ase import Atoms
from ase.geometry import find_mic

from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import UNKNOWN, Lattice
from clease_nn.models import AbstractOccupationModel
from clease_nn.sampling.draw import complete

__all__ = ["complete_with_numbers", "held"]

_SUM = 1e-6  # by which shares may miss a sum of one

Occupant = str | Mapping[str, float]


def held(
    lattice: Lattice,
    conditions: Conditions,
    *,
    atoms: Atoms | Mapping[int, Occupant] | None = None,
    keep=None,
    sites: Mapping[int, Occupant] | None = None,
    sublattices: Mapping[int, Occupant] | None = None,
    rng: torch.Generator | None = None,
) -> Configurations:
    """Partial configurations: some sites held, all others unknown, one row a condition.

    An *atom* is numbered as in ``lattice.template`` (and in the Atoms of a host), a *site* by its
    place among the active sites, ``lattice.site_indices[site]`` being its atom. The two differ
    where there are background atoms.

    Parameters
    ----------
    lattice : Lattice
    conditions : Conditions
        (batch,) conditions; ``conditions.repeat(n)`` asks for ``n`` completions at each.
    atoms : ase.Atoms or mapping of atom index to occupant, optional
        An Atoms object of this supercell, of which the atoms named by ``keep`` are held, in the
        order of the template; or what to hold on single atoms.
    keep : array_like, optional
        With Atoms: a boolean mask over all atoms, or atom indices. A mask may cover background
        atoms, which are there anyway; an index must belong to an active site.
    sites : mapping of site number to occupant, optional
    sublattices : mapping of sublattice (of ``lattice.sublattices``) to occupant, optional
        The same occupant on every site of it.
    rng : torch.Generator, optional
        Needed where an occupant is uncertain.

    An occupant is a symbol, ``"Cu"``, or the shares of several, ``{"Cu": 0.8, "Au": 0.2}``, as
    refined from diffraction: every row then draws its own species there, independently of all
    other sites and of the energy (quenched disorder). Rows with different held species belong to
    different restricted ensembles; their weights are conditional on what each holds. Read them
    apart, ``[averages(part) for part in completed.by_given()]``, and average the results over the
    realisations. To complete one realisation ``n`` times repeat its row:
    ``partial[torch.arange(len(partial)).repeat_interleave(n)]``. Where the *number* of each
    species is known instead and the arrangement is to relax, use :func:`complete_with_numbers`.

    Returns
    -------
    Configurations
        Hand them to :func:`~clease_nn.complete`.

    Raises
    ------
    TypeError
        If ``atoms`` is neither Atoms nor a mapping, or a symbol is no text.
    ValueError
        If nothing is to be held, a species is not allowed where it is to be held, an index or a
        sublattice does not exist, an atom is background, two occupants are asked for one site,
        atoms are in another order, or shares do not add up to one. The message names the atom,
        the species and what is allowed.

    Examples
    --------
    >>> from ase.build import bulk
    >>> lattice = Lattice.uniform(bulk("Au", cubic=True), ["Au", "Cu"])
    >>> at = Conditions([300.0], [[0.0, 0.0]])
    >>> held(lattice, at, sites={0: "Cu", 3: "Au"}).occupations.tolist()
    [[1, -1, -1, 0]]
    >>> lower_plane = bulk("Cu", cubic=True)
    >>> mask = lattice.template.positions[:, 2] < 1
    >>> held(lattice, at, atoms=lower_plane, keep=mask).occupations.tolist()
    [[1, -1, -1, 1]]
    """
    found: dict[int, Occupant] = {}
    if isinstance(atoms, Atoms):
        chosen = _kept(lattice, atoms, keep)
        _add(lattice, found, chosen)
    elif atoms is None or isinstance(atoms, Mapping):
        if keep is not None:
            raise ValueError("keep names atoms of an Atoms object; hand one over as atoms")
        _add(lattice, found, {_site_of(lattice, i): s for i, s in (atoms or {}).items()})
    else:
        raise TypeError(
            "atoms must be an ase.Atoms object or a mapping of atom indices to symbols, got "
            f"{type(atoms).__name__}"
        )
    _add(lattice, found, {_site(lattice, i): s for i, s in (sites or {}).items()})
    for label, occupant in (sublattices or {}).items():
        where = np.flatnonzero(lattice.sublattices == label)
        if not len(where):
            raise ValueError(
                f"there is no sublattice {label!r}; this lattice has "
                f"{np.unique(lattice.sublattices).tolist()}"
            )
        _add(lattice, found, dict.fromkeys(where.tolist(), occupant))
    if not found:
        raise ValueError(
            "nothing is to be held; name atoms, sites or sublattices, or draw all sites with "
            "sample()"
        )
    occupations = np.full((len(conditions), lattice.n_sites), UNKNOWN, dtype=np.int8)
    uncertain = {}
    for site, occupant in found.items():
        if isinstance(occupant, Mapping):
            uncertain[site] = _shares(lattice, site, occupant)
        else:
            occupations[:, site] = _species(lattice, site, occupant)
    if uncertain:
        if rng is None:
            raise ValueError(
                "species held with shares are drawn for every row: hand over rng, a torch.Generator"
            )
        cumulative = np.cumsum(list(uncertain.values()), axis=1)
        u = torch.rand(len(conditions), len(uncertain), generator=rng, dtype=torch.float64).numpy()
        drawn = (u[:, :, None] * cumulative[:, -1:] >= cumulative).sum(-1)
        occupations[:, list(uncertain)] = drawn.astype(np.int8)
    device = conditions.mu.device
    return Configurations(lattice, conditions, torch.from_numpy(occupations).to(device))


def complete_with_numbers(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    partial: Configurations,
    numbers: Sequence[tuple[Sequence[int], Mapping[str, int]]],
    rng: torch.Generator,
    *,
    batch_size: int | None = None,
    threads: int = 1,
    precision: str = "float32",
    executor=None,
    progress: bool = False,
) -> Configurations:
    """Complete configurations in which groups of sites carry given numbers of each species.

    For a partial occupation known from experiment (8 of 10 sites of a sublattice are copper, say).
    The target is the ensemble restricted to these numbers, ``exp(-(E - mu.N)/kT)`` for every
    arrangement. Each row draws one of the ``M`` arrangements uniformly, the model the other sites;
    ``log_prob = -ln M + ln q`` is exact, so that the mean weight is the restricted partition
    function. Uniform arrangements describe strongly ordered ones badly: watch NESS.

    Parameters
    ----------
    partial : Configurations
        With the sites of all groups unknown: from :func:`held`, or ``Configurations.unknown``.
    numbers : sequence of (sites, {species: number})
        Site numbers (``numpy.flatnonzero(lattice.sublattices == 1)``) and how many of them carry
        each species, all of them together; the groups have no site in common.
    rng : torch.Generator
        On the CPU; its state fixes the result.
    model, ensemble, batch_size, threads, precision, executor, progress
        As for :func:`~clease_nn.sampling.sample`.

    Returns
    -------
    Configurations
        Scored. ``step`` is 0 on the sites of the groups and counts the passes of the model from
        1; it is -1 where a site was held.

    Raises
    ------
    ValueError
        If numbers do not fill their sites, a site is named twice or known, or a species is not
        allowed on one of them.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(2)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> flat = SemiGrandCanonical(lambda lattice, occupations: torch.zeros(len(occupations)))
    >>> partial = Configurations.unknown(lattice, Conditions([600.0] * 3, [[0.0, 0.0]] * 3))
    >>> one_of_three = [([0, 1, 2], {"Cu": 1, "Au": 2})]
    >>> c = complete_with_numbers(model, flat, partial, one_of_three, torch.Generator())
    >>> c.log_weight.exp().round()  # every weight is Z: 3 arrangements x 2 states of the last site
    tensor([6., 6., 6.], dtype=torch.float64)
    """
    lattice = partial.lattice
    occupations = partial.occupations.clone()
    placed = torch.zeros(lattice.n_sites, dtype=torch.bool)
    log_arrangements = 0.0
    for sites, wanted in numbers:
        chosen = torch.tensor([_site(lattice, i) for i in sites], dtype=torch.long)
        counts = [_number(s, n) for s, n in wanted.items()]
        if sum(counts) != len(chosen):
            raise ValueError(
                f"the numbers {dict(wanted)} make {sum(counts)}, but there are {len(chosen)} "
                "sites; give the number of every species, a share times the number of sites"
            )
        taken = placed[chosen] | partial.known[:, chosen].any(0).cpu()
        if len(torch.unique(chosen)) < len(chosen) or bool(taken.any()):
            raise ValueError(
                "a site of numbers is named twice or already held; groups must have no site in "
                "common with each other or with what is held"
            )
        index = [
            {_species(lattice, int(i), s) for i in chosen}.pop()
            for s, n in zip(wanted, counts, strict=True)
            if n
        ]
        filled = torch.tensor(np.repeat(index, [n for n in counts if n]), dtype=torch.int8)
        order = torch.rand(len(partial), len(chosen), generator=rng, dtype=torch.float64).argsort(1)
        occupations[:, chosen] = filled[order].to(occupations.device)
        placed[chosen] = True
        log_arrangements += lgamma(len(chosen) + 1) - sum(lgamma(n + 1) for n in counts)
    c = complete(
        model,
        ensemble,
        replace(partial, occupations=occupations),
        rng,
        batch_size=batch_size,
        threads=threads,
        precision=precision,
        executor=executor,
        progress=progress,
    )
    steps = torch.where(c.step < 0, c.step, c.step + 1)
    steps[:, placed] = 0
    return replace(c, step=steps, log_prob=c.log_prob - log_arrangements)


# ------------------------------------------------------------------ what is meant
def _kept(lattice: Lattice, atoms: Atoms, keep) -> dict[int, str]:
    """Site numbers and symbols of the atoms to be held."""
    n = len(lattice.template)
    if len(atoms) != n:
        raise ValueError(
            f"atoms has {len(atoms)} atoms, the supercell of this lattice {n}; use that supercell"
        )
    if keep is None:
        raise ValueError(
            "say which atoms are held: keep=, a boolean mask over all atoms or atom indices"
        )
    keep = np.asarray(keep)
    if keep.dtype == bool:
        if keep.shape != (n,):
            raise ValueError(f"a mask must have shape ({n},), one an atom, got {keep.shape}")
        index = np.flatnonzero(keep)
        background = np.setdiff1d(index, lattice.site_indices)
        for i in background:
            if atoms.numbers[i] != lattice.template.numbers[i]:
                raise ValueError(
                    f"background atom {i} is {atoms.symbols[int(i)]}, the lattice has "
                    f"{lattice.template.symbols[int(i)]} there and nothing else"
                )
        index = np.setdiff1d(index, background)
    else:
        index = np.atleast_1d(keep) if keep.size else np.empty(0, dtype=int)
        index = np.array([_atom(lattice, i) for i in index], dtype=int)
    sites = {_site_of(lattice, i): atoms.symbols[int(i)] for i in index}
    if len(index):
        _check_positions(lattice, atoms, index)
    return sites


def _check_positions(lattice: Lattice, atoms: Atoms, index: np.ndarray) -> None:
    """Held atoms are matched by index: another order of the atoms would be silently wrong."""
    template = lattice.template
    cell = template.cell.complete()
    # strained and relaxed cells are fine: compare in units of the cell
    own = atoms.cell.complete().scaled_positions(atoms.positions[index])
    shift = (own - cell.scaled_positions(template.positions[index])) @ cell
    distance = find_mic(shift, cell, template.pbc)[1]
    apart = lattice.pair_shells(1)
    limit = 0.5 * min((d for _, _, d in apart), default=np.inf)
    far = np.flatnonzero(distance > limit)
    if len(far):
        k = int(far[0])
        raise ValueError(
            f"atom {index[k]} of atoms lies {distance[k]:.2f} angstrom from atom {index[k]} of the "
            f"lattice (limit {limit:.2f}): atoms of another cell or in another order; bring them "
            "into the order of lattice.template"
        )


def _whole(i, what: str) -> int:
    if isinstance(i, bool | np.bool_):
        raise ValueError(f"{what} are whole numbers, got {i}; a mask belongs to keep")
    try:
        return operator.index(i)
    except TypeError as error:
        raise ValueError(f"{what} are whole numbers, got {i!r}") from error


def _atom(lattice: Lattice, i) -> int:
    i, n = _whole(i, "atom indices"), len(lattice.template)
    if not 0 <= i < n:
        raise ValueError(
            f"there is no atom {i}: the supercell of this lattice has atoms 0 to {n - 1}"
        )
    return i


def _site_of(lattice: Lattice, i) -> int:
    """Site number of an atom index."""
    i = _atom(lattice, i)
    where = np.flatnonzero(lattice.site_indices == i)
    if not len(where):
        raise ValueError(
            f"atom {i} ({lattice.template.symbols[i]}) is background and never changes; active "
            f"sites are the {lattice.n_sites} atoms of lattice.site_indices"
        )
    return int(where[0])


def _site(lattice: Lattice, i) -> int:
    i = _whole(i, "site numbers")
    if not 0 <= i < lattice.n_sites:
        raise ValueError(
            f"there is no site {i}: active sites are numbered 0 to {lattice.n_sites - 1}; for "
            "indices of atoms use atoms="
        )
    return i


def _place(lattice: Lattice, site: int) -> str:
    atom = int(lattice.site_indices[site])
    return f"atom {atom}" if atom == site else f"atom {atom} (site {site})"


def _add(lattice: Lattice, found: dict, more: Mapping[int, Occupant]) -> None:
    for site, occupant in more.items():
        if site in found and found[site] != occupant:
            raise ValueError(
                f"{_place(lattice, site)} is to hold {found[site]!r} and {occupant!r}; choose one"
            )
        found[site] = occupant


def _species(lattice: Lattice, site: int, symbol) -> int:
    """Index of a species on a site that may carry it."""
    if not isinstance(symbol, str):
        raise TypeError(
            f"{_place(lattice, site)} holds a symbol such as 'Cu' or a mapping of symbols to "
            f"shares, got {symbol!r}"
        )
    allowed = [s for s, ok in zip(lattice.species, lattice.allowed[site], strict=True) if ok]
    if symbol not in allowed:
        raise ValueError(
            f"{_place(lattice, site)} cannot hold {symbol!r}: it may carry only {allowed}"
        )
    return lattice.species.index(symbol)


def _shares(lattice: Lattice, site: int, shares: Mapping[str, float]) -> np.ndarray:
    """(species,) probabilities on a site."""
    out = np.zeros(lattice.n_species)
    for symbol, share in shares.items():
        if not (np.isfinite(share) and share >= 0):
            raise ValueError(
                f"{_place(lattice, site)} holds {symbol!r} with share {share}; shares are 0 to 1"
            )
        out[_species(lattice, site, symbol)] = share
    if abs(out.sum() - 1) > _SUM:
        raise ValueError(
            f"the shares of {_place(lattice, site)}, {dict(shares)}, add up to {out.sum():.6g} "
            "instead of 1; name every species"
        )
    return out / out.sum()


def _number(symbol: str, n) -> int:
    n = _whole(n, f"numbers of {symbol!r}")
    if n < 0:
        raise ValueError(f"the number of {symbol!r} must not be negative, got {n}")
    return n
