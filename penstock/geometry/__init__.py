"""Pure functions on boxes, masks and pictures."""
