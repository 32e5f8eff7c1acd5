"""Structures: sampled configurations, and ground states on their hull."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.visualize.plot import plot_atoms
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from clease_nn.configurations import Configurations
from clease_nn.phases import Hull
from clease_nn.plotting.style import BLUE, chemical, clean

__all__ = ["hull", "structures"]

# dark and light in turn, so that neighbours differ in grey
SPECIES_COLOURS = ("#0072B2", "#F0E442", "#D55E00", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
BACKGROUND = "#D0D0D0"


def hull(ax: Axes, found: Hull, *, species: str, space_groups: bool = True) -> Axes:
    """Formation energies against composition, with the hull and the names of its vertices.

    Dots are the lowest energy at each composition.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
    found : Hull
        Whose compositions differ in one number: two species exchange.
    species : str
        Whose share of the active sites is the horizontal axis.
    space_groups : bool
        Whether the space group stands below the formula.

    Raises
    ------
    ValueError
        If the lattice has no such species, or its share does not tell the compositions apart.
    """
    if species not in found.lattice.species:
        raise ValueError(f"species {species!r} is none of {found.lattice.species}")
    column = found.lattice.species.index(species)
    counts = np.asarray(found.counts, dtype=float)
    if np.linalg.matrix_rank(counts - counts[0]) > 1:
        raise ValueError(
            f"compositions of {'/'.join(found.lattice.species)} differ in more than one number, "
            "which a curve cannot show; restrict the data to one line of compositions"
        )
    if len(counts) > 1 and not np.ptp(counts[:, column]) > 0:
        raise ValueError(f"the share of {species} is the same in all data; take another species")
    x, y = found.composition[:, column], 1e3 * np.asarray(found.formation_energy)
    order = np.argsort(x)
    above = {"color": "0.55", "marker": "o", "ls": "", "ms": 4, "mfc": "white", "zorder": 2}
    ax.plot(x[order], y[order], label="lowest energy", **above)
    vertices = sorted(found.vertices, key=lambda v: v.composition[column])
    vx = np.array([v.composition[column] for v in vertices])
    vy = 1e3 * np.array([v.formation_energy for v in vertices])
    ax.plot(vx, vy, color=BLUE, marker="s", ms=6, lw=1.6, label="hull", zorder=3)
    low, high = min(y.min(), 0.0), max(y.max(), 0.0)
    span = (high - low) or 1.0
    ax.set(
        xlabel=f"site fraction of {species}",
        ylabel="formation energy (meV per site)",
        xlim=(vx[0] - 0.06 * (np.ptp(vx) or 1), vx[-1] + 0.06 * (np.ptp(vx) or 1)),
        ylim=(
            low - (0.3 if space_groups else 0.18) * span,
            high + (0.28 if space_groups else 0.18) * span,
        ),
    )
    slopes = np.diff(vy) / np.diff(vx)
    width = 72 * ax.get_position().width * ax.figure.get_size_inches()[0] / np.ptp(ax.get_xlim())
    reach = np.full(3, -np.inf)  # right end of the last name in each of three tiers, points
    for k, v in enumerate(vertices):
        text = _name(v, space_groups)
        style = {"textcoords": "offset points", "fontsize": 8.5, "linespacing": 1.25}
        if k in (0, len(vertices) - 1):  # the line falls from the ends: there is room above
            ax.annotate(text, (vx[k], vy[k]), (0, 7), ha="center", va="bottom", **style)
            continue
        # away from a line that passes through: to the side on which it is above
        through = np.sign(slopes[k - 1]) if slopes[k - 1] * slopes[k] > 0 else 0
        ha = {-1: "right", 0: "center", 1: "left"}[int(through)]
        long = 5.2 * max(len(_plain(line)) for line in text.split("\n"))
        left = vx[k] * width + 4 * through - {"left": 0, "center": 0.5, "right": 1}[ha] * long
        fits = reach + 4 < left
        tier = int(np.argmax(fits)) if fits.any() else int(reach.argmin())
        reach[tier] = left + long
        below = -7 - tier * (24 if space_groups else 13)
        ax.annotate(text, (vx[k], vy[k]), (4 * through, below), ha=ha, va="top", **style)
    ax.legend(frameon=False, fontsize="small", loc="upper center", ncols=2)
    return clean(ax)


def structures(
    axes: Sequence[Axes],
    configurations: Configurations | Sequence[Atoms],
    *,
    titles: Sequence[str] = (),
    rotation: str | None = None,
    cell: bool = True,
) -> Sequence[Axes]:
    """Configurations as balls, one in each of the axes, with a legend of the species.

    Parameters
    ----------
    axes : sequence of matplotlib.axes.Axes
        As many as configurations or more; the rest is left empty.
    configurations : Configurations or sequence of Atoms
        Background atoms of configurations are small and grey.
    titles : sequence of str
        Above each; none, or one each.
    rotation : str, optional
        As ase's, such as ``"-80x,12y,0z"``. Default: slightly from above, and straight from above
        for cells that are not periodic along z.
    cell : bool
        Whether the unit cell is drawn.

    Raises
    ------
    ValueError
        If there are no configurations, more than axes, titles of another number, or a site is
        unknown.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots(1, 2)
    >>> drawn = structures(axes, [bulk("Cu", cubic=True), bulk("Au", cubic=True)])
    >>> [text.get_text() for text in axes[1].get_legend().get_texts()]
    ['Au', 'Cu']
    """
    axes = list(np.ravel(axes))
    images, species, active = _images(configurations)
    if not images:
        raise ValueError("there are no configurations to draw")
    if len(images) > len(axes):
        raise ValueError(f"{len(images)} configurations need as many axes, got {len(axes)}")
    if len(titles) not in (0, len(images)):
        raise ValueError(f"{len(images)} configurations need as many titles, got {len(titles)}")
    colours = {s: SPECIES_COLOURS[k % len(SPECIES_COLOURS)] for k, s in enumerate(species)}
    for k, atoms in enumerate(images):
        symbols = atoms.get_chemical_symbols()
        shown = np.ones(len(atoms), bool) if active is None else active
        flat = not atoms.pbc[2]
        plot_atoms(
            atoms,
            axes[k],
            rotation=("" if flat else "-82x,14y,2z") if rotation is None else rotation,
            radii=_radius(atoms) * np.where(shown, 1.0, 0.5),
            colors=[colours[s] if a else BACKGROUND for s, a in zip(symbols, shown, strict=True)],
            show_unit_cell=2 if cell else 0,
        )
        if titles:
            axes[k].set_title(titles[k], fontsize="medium")
    for ax in axes:
        ax.set_axis_off()
    ball = {"ls": "", "marker": "o", "ms": 8, "mec": "black"}
    handles = [Line2D([], [], color=c, label=s, **ball) for s, c in colours.items()]
    if active is not None and not active.all():
        handles.append(Line2D([], [], color=BACKGROUND, label="background", **{**ball, "ms": 5}))
    last = axes[len(images) - 1]
    last.legend(
        handles=handles,
        frameon=False,
        fontsize="small",
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        handletextpad=0.2,
    )
    return axes


# ------------------------------------------------------------------ pieces
def _images(configurations):
    """Atoms, species named in the legend, and which atoms are active (None: all)."""
    if isinstance(configurations, Configurations):
        lattice = configurations.lattice
        images = [lattice.atoms(row) for row in configurations.occupations.cpu().numpy()]
        active = np.zeros(len(lattice.template), dtype=bool)
        active[lattice.site_indices] = True
        return images, tuple(lattice.species), active
    images = list(configurations)
    return images, tuple(sorted({s for a in images for s in a.get_chemical_symbols()})), None


def _radius(atoms: Atoms) -> float:
    """A little less than half the shortest distance, so that rows behind stay visible."""
    if len(atoms) < 2:
        return 0.35 * atoms.cell.lengths().max() or 1.0
    distance = atoms.get_all_distances(mic=True)
    return 0.42 * distance[distance > 1e-3].min()


def _name(vertex, space_groups: bool) -> str:
    """Formula, and the space groups of its structures below."""
    formula = chemical(vertex.structures[0].formula)
    if not space_groups:
        return formula
    names = dict.fromkeys(s.space_group().split(" ")[0] for s in vertex.structures)
    return f"{formula}\n{', '.join(_symbol(n) for n in names)}"


def _symbol(name: str) -> str:
    """``Pm-3m`` in the crystallographers' type.

    >>> _symbol("Pm-3m")
    '$Pm\\\\bar{3}m$'
    """
    return "$" + re.sub(r"-([0-9])", r"\\bar{\1}", name) + "$"


def _plain(text: str) -> str:
    return re.sub(r"\\bar|[${}_]", "", text)
