"""Ordering of a Cu-Au model, from one command to the phase diagram.

    python examples/cuau_ordering.py            # ten minutes
    python examples/cuau_ordering.py --short    # 16 sites, seconds

The expansion is fitted to ASE's effective medium potential (examples/fit_emt_expansion.py), which
orders weakly: AuCu3 up to about 380 K, AuCu below about 190 K, and gold separates from both. The
real alloy has three ordered phases, up to 680 K: this is a test case. What is done is in
examples/phase_study.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from phase_study import arguments, study

from clease_nn.hosts.clease.examples import cuau_emt_data


def main(argv: Sequence[str] | None = None) -> dict:
    args = arguments(__doc__.splitlines()[0]).parse_args(argv)
    return study(
        "cuau",
        cuau_emt_data(),
        args,
        temps=(150.0, 600.0),
        c1=(-0.05, 0.03),
        grid=np.concatenate(
            [
                np.linspace(-0.05, -0.033, 4),
                np.linspace(-0.031, -0.023, 6),
                np.linspace(-0.017, 0.005, 5),
                np.linspace(0.007, 0.012, 6),
                [0.016, 0.022, 0.03],
            ]
        ),
        isotherms=[200.0, 300.0, 450.0],
        order=np.linspace(-0.025, 0.0075, 14),
        ordered="AuCu3",
    )


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
