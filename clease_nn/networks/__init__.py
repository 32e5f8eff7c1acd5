"""Networks: logits of every site from a partial configuration."""

from clease_nn.named import named_class
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

_CLASSES = (LatticeConvolution, LatticeTransformer, MLP, MaskedMLP, PaiNN)


def network_from_config(config: dict) -> AbstractNetwork:
    """Rebuild a network from :meth:`AbstractNetwork.config` (weights are loaded apart).

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    cls, arguments = named_class(config, _CLASSES, "network class")
    return cls.from_config(arguments)
