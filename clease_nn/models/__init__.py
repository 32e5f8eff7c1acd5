"""Models of configurations with exact likelihoods."""

from clease_nn.models.abstract import AbstractOccupationModel, Fields
from clease_nn.models.any_order import AnyOrderARM
from clease_nn.models.fixed_order import FixedOrderARM
from clease_nn.models.marginalization import MarginalizationModel
from clease_nn.models.orders import AbstractOrder, BySize, Coloured, OneByOne
from clease_nn.models.windowed import WindowedModel
from clease_nn.named import named_class

__all__ = [
    "AbstractOccupationModel",
    "AbstractOrder",
    "AnyOrderARM",
    "BySize",
    "Coloured",
    "Fields",
    "FixedOrderARM",
    "MarginalizationModel",
    "OneByOne",
    "WindowedModel",
    "model_from_config",
]

_CLASSES = (AnyOrderARM, FixedOrderARM, MarginalizationModel, WindowedModel)


def model_from_config(config: dict) -> AbstractOccupationModel:
    """Rebuild a model from its ``config()``; weights are loaded apart.

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    cls, arguments = named_class(config, _CLASSES, "model class")
    return cls.from_config(arguments)
