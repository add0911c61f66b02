"""The seed's test of mask refinement: the three programs on scenes that it makes, with masks that need no weights."""

import sys

from penstock.compat.refine import self_test

if __name__ == "__main__":
    sys.exit(self_test())
