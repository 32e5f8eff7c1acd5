"""Laws of the validation: correlated configurations promise no more than they are worth."""

from dataclasses import replace

import torch

from clease_nn.conditions import ConditionRange
from clease_nn.configurations import Configurations
from clease_nn.diagnostics import validate
from clease_nn.ensemble import SemiGrandCanonical
from clease_nn.lattice import Lattice
from clease_nn.models import AnyOrderARM
from clease_nn.networks import LatticeConvolution


def test_rows_that_repeat_within_a_chain_do_not_shrink_the_error():
    """Chains that stay where they are give one row a chain; as independent rows they claim more."""
    torch.manual_seed(0)
    lattice = Lattice.square(3)
    box = ConditionRange((300, 900), [-0.1], [0.1], [[-1.0, 1.0]])
    model = AnyOrderARM(LatticeConvolution(lattice, box, needs_fields=False))
    ensemble = SemiGrandCanonical(lambda lattice, x: 0.02 * x.double().sum(1))
    at = box.grid(1, 1)
    n_chains, length = 20, 16
    rows = torch.randint(2, (n_chains, 9), generator=torch.Generator().manual_seed(1))
    chains = Configurations(
        lattice,
        at.repeat(n_chains * length),
        rows.repeat_interleave(length, 0),
        chain=torch.arange(n_chains).repeat_interleave(length),
    )
    errors = [
        validate(model, ensemble, c, at, 8, torch.Generator().manual_seed(2)).forward_kl_error[0]
        for c in (chains, replace(chains, chain=None))
    ]
    # sqrt(length) = 4 where every chain counts as one sample, within the windowed estimate
    assert 2.5 < errors[0] / errors[1] < 6
