"""The seed's test of the embedding cache, on data that it makes, with a model that needs no download."""

import sys

from penstock.compat.embed_script import self_test

if __name__ == "__main__":
    sys.exit(self_test())
