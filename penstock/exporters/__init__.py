"""Saved sequences in other layouts: one module per layout, `export` runs any of them."""

from penstock.exporters.run import export as export
