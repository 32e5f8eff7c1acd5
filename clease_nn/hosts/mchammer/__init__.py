"""mchammer as a host: icet's expansions as fast energies, its ensembles with neural moves."""

try:
    import icet  # noqa: F401
    import mchammer  # noqa: F401
except ImportError as error:
    raise ImportError("this needs icet and mchammer: pip install 'clease_nn[icet]'") from error

from clease_nn.hosts.mchammer.ensemble import NeuralSGCEnsemble
from clease_nn.hosts.mchammer.extraction import energy, lattice, parent_fingerprint
from clease_nn.hosts.mchammer.wang_landau import wang_landau

__all__ = ["NeuralSGCEnsemble", "energy", "lattice", "parent_fingerprint", "wang_landau"]
