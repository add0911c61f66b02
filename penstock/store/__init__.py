"""The store: rows of fixed records on disk. See docs/format.md for the bytes.

layout.py    where each field lies in which file      keys.py      keys.txt and its index
rows.py      the ledger: how each row ended           manifest.py  store.json
disk.py      the one seam for writes                  claims.py    who may write
write.py     a worker's side                          sink.py      a driver's side
commit.py    what the two say to each other           seal.py      a part's final form
part.py      reading one part                         store.py     Store, over all parts
direct.py    reads past the page cache                v1.py        the seed's directories
box_format.py  XYXY or XYWH
"""

from penstock.store.bulk import write_store
from penstock.store.sink import StoreSink
from penstock.store.store import Store
from penstock.store.v1 import open_store

__all__ = ["Store", "StoreSink", "open_store", "write_store"]
