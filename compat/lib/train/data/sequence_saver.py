"""The seed's saver; see penstock.compat."""

from penstock.compat import SequenceSaver

__all__ = ["SequenceSaver"]
