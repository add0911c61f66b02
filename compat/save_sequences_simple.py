"""The seed's demonstration: sequences of whole pictures. `--help` lists its flags."""

import sys

from penstock.compat.sequence_scripts import main, save_sequences_from_sampler

__all__ = ["save_sequences_from_sampler"]

if __name__ == "__main__":
    sys.exit(main("simple", sys.argv[1:]))
