"""The seed's dual-loop training. `--help` lists its flags; torchrun starts it on several GPUs."""

import sys

from penstock.compat import build_datasets, train_epoch
from penstock.compat.dual_loop import main

__all__ = ["build_datasets", "train_epoch"]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
