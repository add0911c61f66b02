"""The peers, by name, each class with its module; imported only where they run. Quick ones first, for --quick."""

PEERS = {
    "penstock": "penstock_store:PenstockStore",
    "penstock-v1": "penstock_store:PenstockV1",
    "original": "plain:Original",
    "memmap": "plain:Memmap",
    "from_file": "plain:FromFile",
    "spdl": "plain:Spdl",
    "lmdb": "databases:Lmdb",
    "h5py": "databases:H5py",
    "arrow": "tables:ArrowIpc",
    "datasets": "tables:HfDatasets",
    "tar-stored": "tars:TarStored",
    "tar-deflated": "tars:TarDeflated",
    "tensorstore": "databases:TensorStore",
    "lance": "tables:Lance",
    "litdata": "shards:LitData",
    "mosaicml": "shards:Mosaic",
    "ffcv": "shards:Ffcv",
    "webdataset": "tars:WebDatasetPeer",
    "tensordict": "shards:TensorDictPeer",
    "zarr": "databases:Zarr",
    "grain": "shards:Grain",
}
LIMITS = {"take": "limits:Take", "preadv": "limits:Preadv", "memcpy": "limits:Memcpy", "fresh": "limits:Fresh"}
"""Not peers: what the machine allows, run beside them by the same code."""
