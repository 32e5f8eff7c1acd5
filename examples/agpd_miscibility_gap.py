"""The miscibility gap of an Ag-Pd model, from one command to the phase diagram.

    python examples/agpd_miscibility_gap.py            # ten minutes
    python examples/agpd_miscibility_gap.py --short    # 16 sites, seconds

The expansion is fitted to ASE's effective medium potential (examples/fit_emt_expansion.py), in
which Ag and Pd demix below about 550 K. The real alloy mixes: this is a test case with a
miscibility gap that is not symmetric, and not a description of Ag-Pd. What is done is in
examples/phase_study.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from phase_study import arguments, study

from clease_nn.hosts.clease.examples import agpd_emt_data


def main(argv: Sequence[str] | None = None) -> dict:
    args = arguments(__doc__.splitlines()[0]).parse_args(argv)
    return study(
        "agpd",
        agpd_emt_data(),
        args,
        temps=(250.0, 800.0),
        c1=(-0.015, 0.015),
        grid=1e-3 * np.array([-15, -10, -7, -5, -4, -3, -2, -1, -0.5, 0, 1, 3, 6, 10, 15]),
        isotherms=[300.0, 450.0, 600.0],
    )


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
