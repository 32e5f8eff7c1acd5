"""Networks: logits of every site from a partial configuration."""

from clease_nn.networks.abstract import AbstractNetwork
from clease_nn.networks.convolution import LatticeConvolution

__all__ = ["AbstractNetwork", "LatticeConvolution", "network_from_config"]


def network_from_config(config: dict) -> AbstractNetwork:
    """Rebuild a network from :meth:`AbstractNetwork.config` (weights are loaded apart).

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    classes = {"LatticeConvolution": LatticeConvolution}
    config = dict(config)
    name = config.pop("class", None)
    if name not in classes:
        raise ValueError(
            f"network class {name!r} is not known to this version of clease_nn "
            f"(known: {sorted(classes)}); update clease_nn"
        )
    return classes[name].from_config(config)
