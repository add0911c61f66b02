"""The seed's mask refinement, v1, the original's matching: automatic masks, five passes. `--help` lists its flags."""

import sys

from penstock.compat.refine import main

if __name__ == "__main__":
    sys.exit(main("v1", sys.argv[1:]))
