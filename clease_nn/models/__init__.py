"""Models of configurations with exact likelihoods."""

from clease_nn.models.abstract import AbstractOccupationModel, Fields
from clease_nn.models.any_order import AnyOrderARM
from clease_nn.models.fixed_order import FixedOrderARM
from clease_nn.models.marginalization import MarginalizationModel
from clease_nn.models.orders import AbstractOrder, BySize, Coloured, OneByOne
from clease_nn.models.windowed import WindowedModel

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

_CLASSES = {
    c.__name__: c for c in (AnyOrderARM, FixedOrderARM, MarginalizationModel, WindowedModel)
}


def model_from_config(config: dict) -> AbstractOccupationModel:
    """Rebuild a model from its ``config()``; weights are loaded apart.

    Raises
    ------
    ValueError
        If the class is not one of this package.
    """
    config = dict(config)
    name = config.pop("class", None)
    if name not in _CLASSES:
        raise ValueError(
            f"model class {name!r} is not known to this version of clease_nn (known: "
            f"{sorted(_CLASSES)}); update clease_nn"
        )
    return _CLASSES[name].from_config(config)
