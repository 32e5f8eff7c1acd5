"""Does a model give symmetry-related configurations the same probability?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clease_nn.configurations import Configurations
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.models import AbstractOccupationModel
from clease_nn.symmetry import site_permutations
from clease_nn.warnings import LostModeWarning, TrainingWarning

__all__ = ["SymmetryCheck", "symmetry_check"]

_ASYMMETRY = 1.0  # nats: a variant is drawn e times too often or too rarely
_SPREAD = 2.0  # nats


@dataclass(frozen=True, eq=False)
class SymmetryCheck:
    """ln q of configurations and of their images under symmetry, in several orders of drawing.

    Attributes
    ----------
    log_prob : ndarray, shape (rows, 1 + images, orders)
        ln q in nats; the configuration as given first, then its images.
    """

    log_prob: np.ndarray

    @property
    def mean_log_prob(self) -> np.ndarray:
        """ln q averaged over orders, shape (rows, 1 + images)."""
        return self.log_prob.mean(2)

    @property
    def rms_difference(self) -> float:
        """Root mean square of ``ln q(image) - ln q(configuration)``, averaged over orders, nats."""
        m = self.mean_log_prob
        return float(np.sqrt(np.mean((m[:, 1:] - m[:, :1]) ** 2)))

    @property
    def r_squared(self) -> float:
        """Coefficient of determination of ln q of images by ln q of the configurations.

        ``1 - <(b - a)^2> / Var``, Var the variance of all of them: 1 where each pair is equal.
        nan where all configurations are equally probable.
        """
        variance = self.mean_log_prob.var()
        # rounding of float32 logits: all are the same
        return float(1 - self.rms_difference**2 / variance) if variance > 1e-10 else float("nan")

    @property
    def order_spread(self) -> float:
        """Standard deviation of ln q over orders of one configuration, nats; 0 for one order."""
        if self.log_prob.shape[2] == 1:
            return 0.0
        return float(np.sqrt(self.log_prob.var(2, ddof=1).mean()))

    def problems(self) -> list[tuple[type[Warning], str]]:
        """What a user should know, in words, with the class of the warning."""
        out = []
        if self.rms_difference > _ASYMMETRY:
            out.append(
                (
                    LostModeWarning,
                    f"symmetry-related configurations differ by {self.rms_difference:.1f} nats "
                    f"in ln q (rms; R^2 {self.r_squared:.2f}): some variants of a structure are "
                    "drawn far too rarely, and NESS may not see it; train longer, or use a network "
                    "with the symmetry of the lattice",
                )
            )
        if self.order_spread > _SPREAD:
            out.append(
                (
                    TrainingWarning,
                    f"ln q of one configuration scatters by {self.order_spread:.1f} nats over "
                    "orders of drawing: the conditionals do not belong to one distribution; train "
                    "longer",
                )
            )
        return out

    def __str__(self) -> str:
        rows, images, orders = self.log_prob.shape
        return (
            f"ln q of symmetry-related configurations: R^2 {self.r_squared:.4f}, rms difference "
            f"{self.rms_difference:.3f} nats, spread over orders {self.order_spread:.3f} nats; "
            f"{rows} configurations x {images - 1} images x {orders} orders"
        )


def symmetry_check(
    model: AbstractOccupationModel,
    ensemble: SemiGrandCanonical,
    c: Configurations,
    rng: torch.Generator,
    *,
    n_images: int = 4,
    n_orders: int = 4,
    batch_size: int = 64,
) -> SymmetryCheck:
    """Score configurations and random images of them under the space group of the supercell.

    The energy is the same for all images, so ln q should be: a model that has lost one of several
    equivalent ordered variants gives it away here. An image is drawn in the image of the order of
    its configuration, so that a network with the symmetry of the lattice agrees exactly, trained
    or not; a model that knows one order alone is scored in that one.

    Parameters
    ----------
    c : Configurations
        Without unknown sites, drawn by the model or by chains. Those of many conditions together
        give R^2 a range to be measured on.
    rng : torch.Generator
        Chooses operations (never the identity where there is another) and orders.
    n_images : int
        Images of every configuration.
    n_orders : int
        Orders of drawing for each; 1 for a model that knows one alone.

    Raises
    ------
    ValueError
        If a site is unknown, a number is below 1, or the lattice has no symmetry.

    Examples
    --------
    >>> from clease_nn.conditions import ConditionRange
    >>> from clease_nn.lattice import Lattice
    >>> from clease_nn.models import AnyOrderARM
    >>> from clease_nn.networks import LatticeConvolution
    >>> lattice = Lattice.square(3)
    >>> box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    >>> model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    >>> zero = SemiGrandCanonical(lambda lattice, x: torch.zeros(len(x)))
    >>> c = Configurations(lattice, box.grid(1, 5), torch.eye(9)[:5])
    >>> print(symmetry_check(model, zero, c, torch.Generator()))  # all states are as probable
    ln q of symmetry-related configurations: R^2 nan, rms difference 0.000 nats, \
spread over orders 0.000 nats; 5 configurations x 4 images x 4 orders
    """
    if min(n_images, n_orders, batch_size) < 1:
        raise ValueError(
            "n_images, n_orders and batch_size must be at least 1, got "
            f"{n_images}, {n_orders}, {batch_size}"
        )
    if len(c) == 0 or not bool(c.known.all()):
        raise ValueError("a symmetry check needs configurations without unknown sites")
    permutations = torch.as_tensor(site_permutations(c.lattice))
    if len(permutations) == 1:
        raise ValueError(
            "the supercell has no symmetry but the identity: there is nothing to compare"
        )
    n_orders = n_orders if model.any_order else 1
    n, sites = c.occupations.shape
    x = c.occupations.cpu()
    empty = Configurations.unknown(c.lattice, c.conditions.repeat(n_orders))
    steps = model.draw_steps(empty, rng).cpu().view(n, 1, n_orders, sites)
    chosen = torch.randint(1, len(permutations), (n, n_images), generator=rng)
    moved = torch.cat([torch.arange(sites).expand(n, 1, sites), permutations[chosen]], 1)
    images = torch.stack([x.gather(1, p) for p in moved.unbind(1)], 1)
    shape = (n, 1 + n_images, n_orders, sites)
    steps = steps.expand(shape)
    if model.any_order:
        steps = steps.gather(3, moved[:, :, None].expand(shape))
    steps = steps.reshape(-1, sites)
    full = Configurations(
        c.lattice,
        c.conditions.repeat(shape[1] * n_orders),
        images[:, :, None].expand(shape).reshape(-1, sites),
    )
    fields = ensemble.fields if model.needs_fields else None
    parts = []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for k in range(0, len(full), batch_size):
                now = slice(k, k + batch_size)
                parts.append(model.log_prob(full[now], steps=steps[now], fields=fields))
    finally:
        model.train(was_training)
    return SymmetryCheck(torch.cat(parts).view(shape[:3]).cpu().numpy())
