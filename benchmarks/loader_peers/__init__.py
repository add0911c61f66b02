"""The loaders of `benchmarks/loaders.py`, by name, each class with its module; imported only where they run."""

PEERS = {
    "penstock": "ours:Ours",
    "grain": "indexed:Grain",
    "mosaicml-streaming": "sharded:Mosaic",
    "litdata": "sharded:LitData",
    "torchdata nodes": "indexed:Nodes",
    "StatefulDataLoader": "indexed:Stateful",
    "webdataset": "sharded:WebDataset",
    "HF datasets (streaming)": "sharded:HfStreaming",
}
