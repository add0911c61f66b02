"""The seed's script for real datasets: sequences of the crops that a tracker is trained on. `--help` lists its flags."""

import sys

from penstock.compat.sequence_scripts import main

if __name__ == "__main__":
    sys.exit(main("real", sys.argv[1:]))
