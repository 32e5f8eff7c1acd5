"""Networks: logits of every site from a partial configuration."""

from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.convolution import LatticeConvolution
from clease_nn.networks.masked_mlp import IncrementalLogits, MaskedMLP
from clease_nn.networks.mlp import MLP
from clease_nn.networks.painn import PaiNN
from clease_nn.networks.transformer import LatticeTransformer

__all__ = [
    "AbstractNetwork",
    "IncrementalLogits",
    "LatticeConvolution",
    "LatticeTransformer",
    "MLP",
    "MaskedMLP",
    "PaiNN",
    "network_from_config",
]

_CLASSES = {c.__name__: c for c in (LatticeConvolution, LatticeTransformer, MLP, MaskedMLP, PaiNN)}


def network_from_config(config: dict) -> AbstractNetwork:
    """Rebuild a network from :meth:`AbstractNetwork.config` (weights are loaded apart).

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    config = dict(config)
    name = config.pop("class", None)
    if name not in _CLASSES:
        raise ValueError(
            f"network class {name!r} is not known to this version of clease_nn "
            f"(known: {sorted(_CLASSES)}); update clease_nn"
        )
    return _CLASSES[name].from_config(config)
