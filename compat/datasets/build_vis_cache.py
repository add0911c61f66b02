"""The seed's builder of the embedding cache: `penstock embed` with the seed's defaults. `--help` lists its flags."""

import sys

from penstock.compat.embed_script import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
