"""The seed's mask refinement, v2: automatic masks, penstock's matching, two processes per GPU. `--help` lists its flags."""

import sys

from penstock.compat.refine import main

if __name__ == "__main__":
    sys.exit(main("v2", sys.argv[1:]))
