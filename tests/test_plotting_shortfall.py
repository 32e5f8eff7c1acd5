"""Laws of the figures of a diagnosis: what is outlined and drawn is what the report says."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure

from clease_nn import plotting
from clease_nn.conditions import Conditions
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import shortfall
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.phases import ChemicalPotentialLine

matplotlib.use("Agg")

LATTICE = Lattice.square(4)
T, MU = [600.0, 800.0, 1000.0], [-0.1, 0.0, 0.1, 0.2]
LINE = ChemicalPotentialLine.exchange(LATTICE, "Au", "Cu")
LOW = [5, 6]  # 800 K, mu 0 and 0.1


def report_of(low=LOW, chains=False):
    """Two pure phases that should be equally common; drawn 24 to 1 at ``low``."""
    at = Conditions.grid(T, [[0.0, m] for m in MU])
    parts = []
    for k in range(len(at)):
        every = 25 if k in low else 2
        rich = torch.arange(100) % every == 0
        x = rich[:, None].expand(100, 16).to(torch.int8)
        q = torch.where(rich, 1 / every, 1 - 1 / every).double().log()
        c = Configurations(LATTICE, at[k].repeat(100), x, log_prob=q)
        parts.append(replace(c, energy=16 * at.mu[k, 1] * rich.double()))
    c = Configurations.cat(parts)
    c = replace(c, log_target=SemiGrandCanonical.log_weight(c, c.energy))
    walked = replace(c[400:500], log_prob=None, log_target=None, chain=torch.arange(100) % 5)
    return shortfall(c, chains=walked if chains else None)


@pytest.fixture
def ax():
    """Fresh axes."""
    return Figure(layout="constrained").subplots()


def drawn(ax):
    """The figure must render."""
    ax.figure.savefig("/dev/null", format="png")


def test_the_worst_region_is_outlined(ax):
    """The outline surrounds the cells of the region and nothing else; the map holds the gaps."""
    report = report_of()
    assert report.regions[0].rows.tolist() == LOW
    plotting.gap_map(ax, report, LINE)
    [outline] = [a for a in ax.collections if isinstance(a, LineCollection)]
    corners = np.concatenate(outline.get_segments())
    assert np.allclose(sorted({x.round(9) for x in corners[:, 0]}), [-0.05, 0.05, 0.15])
    assert np.allclose(sorted(set(corners[:, 1])), [700, 900])
    assert len(outline.get_segments()) == 6
    [mesh] = [a for a in ax.collections if isinstance(a, QuadMesh)]
    assert np.allclose(mesh.get_array().reshape(3, 4).ravel(), report.gap)
    drawn(ax)


def test_regions_apart_have_outlines_of_their_own(ax):
    """The one with the largest share of the gap is the thick one."""
    report = report_of([0, 6, 7])
    plotting.gap_map(ax, report, LINE)
    widths = [a.get_linewidths()[0] for a in ax.collections if isinstance(a, LineCollection)]
    assert len(widths) == len(report.regions) == 2 and widths[-1] > widths[0]
    drawn(ax)


@pytest.mark.parametrize("chains", [False, True])
def test_bars_are_the_shares(ax, chains):
    """One bar a phase and source, as long as the share in percent."""
    report = report_of(chains=chains)
    k = report.regions[0].worst
    plotting.phase_shares(ax, report, n=1)
    lengths = sorted(p.get_width() for p in ax.patches)
    kinds = ("drawn", "expected", "chains") if report.phases[k][0].chains else ("drawn", "expected")
    wanted = sorted(100 * getattr(p, kind).value for p in report.phases[k] for kind in kinds)
    assert np.allclose(lengths, wanted)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == [p.name for p in report.phases[k]]
    assert any(t.get_text() == report.where(k) for t in ax.texts)
    drawn(ax)


def test_nothing_to_report_is_said(ax):
    """A perfect model: a map without outline, and words instead of bars."""
    report = report_of([])
    plotting.gap_map(ax, report, LINE)
    assert not [a for a in ax.collections if isinstance(a, LineCollection)]
    other = Figure().subplots()
    plotting.phase_shares(other, report)
    assert "nothing to report" in other.texts[0].get_text()
    drawn(ax)
    drawn(other)


def test_what_does_not_fit_is_refused(ax):
    """A line of another lattice, and no region at all."""
    report = report_of()
    foreign = ChemicalPotentialLine.exchange(
        Lattice.square(4, species=("Ag", "Au", "Cu")), "Au", "Cu"
    )
    with pytest.raises(ValueError, match="species"):
        plotting.gap_map(ax, report, foreign)
    with pytest.raises(ValueError, match="n = 0"):
        plotting.phase_shares(ax, report, n=0)
