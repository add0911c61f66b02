"""The seed's training script; see penstock.compat.distill_script."""

import sys

from penstock.compat.distill_script import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
