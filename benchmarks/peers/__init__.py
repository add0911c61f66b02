"""The peers, by name, each class with its module; imported only where they run."""

PEERS = {
    "penstock": "penstock_store:PenstockStore",
    "penstock-v1": "penstock_store:PenstockV1",
    "original": "plain:Original",
    "memmap": "plain:Memmap",
    "from_file": "plain:FromFile",
    "spdl": "plain:Spdl",
    "tar-stored": "tars:TarStored",
    "tar-deflated": "tars:TarDeflated",
    "webdataset": "tars:WebDatasetPeer",
    "mosaicml": "shards:Mosaic",
    "litdata": "shards:LitData",
    "tensordict": "shards:TensorDictPeer",
    "grain": "shards:Grain",
    "ffcv": "shards:Ffcv",
    "lmdb": "databases:Lmdb",
    "h5py": "databases:H5py",
    "zarr": "databases:Zarr",
    "tensorstore": "databases:TensorStore",
    "arrow": "tables:ArrowIpc",
    "datasets": "tables:HfDatasets",
    "lance": "tables:Lance",
}
LIMITS = {"take": "limits:Take", "preadv": "limits:Preadv", "memcpy": "limits:Memcpy", "fresh": "limits:Fresh"}
"""Not peers: what the machine allows, run beside them by the same code."""
