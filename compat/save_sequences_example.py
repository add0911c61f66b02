"""The seed's complete example: one sequence saved and loaded again, then several. `--help` lists its flags."""

import sys

from penstock.compat.sequence_scripts import main

if __name__ == "__main__":
    sys.exit(main("example", sys.argv[1:]))
