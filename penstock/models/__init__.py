"""Models behind small protocols, one file per family. Heavy packages are imported when a model is opened."""
