"""One model of two cells, trained by one process or by several.

    python examples/train_distributed.py
    torchrun --nproc-per-node 2 examples/train_distributed.py
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        examples/train_distributed.py --device cuda

Every process has chains of its own, on the CPU; gradients are averaged after each step, over GPUs
where ``--device cuda`` gives one to each process. The script is the same either way: started
again, it continues from its checkpoint. Ising models of 6 x 6 sites (often) and 12 x 12 sites
(rarely) are learnt together, and ln Z of the larger one is compared with the exact value.
"""

import argparse
import os
import tempfile
import warnings
from pathlib import Path

import torch

from clease_nn import ConditionRange, Lattice, SemiGrandCanonical, sample
from clease_nn.energies.ising import ising_conditions, ising_energy, ising_log_z
from clease_nn.sources import MixedSource
from clease_nn.statistics import log_mean_exp
from clease_nn.training import Stage, fit, process_seed

KT, FIELD = 2.5, 0.1  # in units of the coupling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of training")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, help="of model and checkpoint; default a new one")
    parser.add_argument("--short", action="store_true", help="a few seconds, a poor model")
    args = parser.parse_args()
    first = int(os.environ.get("RANK", "0")) == 0  # as torchrun numbers its processes
    folder = args.folder or Path(tempfile.mkdtemp())
    sizes = (4, 6) if args.short else (6, 12)
    seconds = 2.0 if args.short else args.seconds
    if args.short:
        warnings.simplefilter("ignore")

    cells = [Lattice.square(size) for size in sizes]
    systems = [(SemiGrandCanonical(ising_energy(cell)), cell) for cell in cells]
    low, high = (ising_conditions([kt], [0.0]).temperature.item() for kt in (2.0, 3.5))
    box = ConditionRange((low, high), [-0.3], [0.3], [[-1.0, 1.0]])
    source = MixedSource.tempering(systems, box, shares=[3, 1], seed=process_seed(1))
    ensemble, cell = systems[-1]
    trained = fit(
        ensemble,
        cell,
        box,
        max_seconds=seconds,
        stages=[Stage(source)],
        checkpoint=folder / "run.ckpt",
        device=args.device,
        validation_samples=8 if args.short else 64,
        seed=1,
    )
    if not first:
        return
    trained.save(folder / "ising.nn")
    print(f"{trained.metadata['processes']} processes, {trained.metadata['steps']} steps; {folder}")
    conditions = ising_conditions([KT], [FIELD])
    n = 64 if args.short else 1000
    for size, (ensemble, cell) in zip(sizes, systems, strict=True):
        drawn = sample(trained.model, ensemble, cell, conditions.repeat(n), torch.Generator())
        found = log_mean_exp(drawn.log_weight.numpy())
        exact = ising_log_z(size, size, KT, FIELD)
        print(f"{size} x {size}: ln Z {found}, exact {exact:.3f}")


if __name__ == "__main__":
    main()
