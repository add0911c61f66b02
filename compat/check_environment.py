"""The seed's environment check: `penstock doctor`, with its flags. It changes no file and creates none."""

import sys

from penstock.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
