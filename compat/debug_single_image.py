"""The seed's look at one picture: `penstock refine --frame IMAGE --ids MAP`, with its flags."""

import sys

from penstock.cli import main

if __name__ == "__main__":
    sys.exit(main(["refine", *sys.argv[1:]]))
