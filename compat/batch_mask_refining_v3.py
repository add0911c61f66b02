"""The seed's mask refinement, v3, recommended: each object is prompted for. `--help` lists its flags."""

import sys

from penstock.compat.refine import main

if __name__ == "__main__":
    sys.exit(main("v3", sys.argv[1:]))
