"""From photographs with masks to vectors that can be searched. Run: python examples/03_embed.py [FOLDER [SPEC]]"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from panoptic_layout import write_layout

from penstock import open_source, open_store
from penstock.cli import main
from penstock.search import neighbours
from penstock.search_page import Page, Section, write_search_page
from penstock.search_query import hits
from penstock.search_vectors import Vectors
from penstock.search_zero_shot import zero_shot

ASKED = ("cat_1", "owl_1", "chair_00000001_1")


def run(folder: Path, spec: str = "tiny:") -> None:
    """A vector per segment, checked, searched, shown on a page."""
    coco, cache = folder / "coco", folder / "vectors"
    pictures = write_layout(coco)
    model = f"{spec}, a small double of a network: it sees colours and edges, no meaning" if spec == "tiny:" else spec
    print(f"1. {pictures} pictures with masks, in the layout of COCO panoptic: {coco}; the model is {model}")

    print("2. penstock embed, the same again, verify, search, zero-shot")
    make = ["embed", "--data-path", coco, "--cache-dir", cache, "--embedder-spec", spec, "--num-workers", 0, "--quiet"]
    for step in (make, make, ["verify", cache, "--quiet"], ["search", cache, "--like", ASKED[0], "--top", 4]):
        code = main([str(word) for word in step])
        if code:
            sys.exit(code)

    store = open_store(cache)
    vectors, found = Vectors(store), zero_shot(store)
    rows = np.array([store.find(key) for key in ASKED])
    nearest, scores = neighbours(vectors, vectors.unit(rows), top=4)
    sections = [
        Section(title=f"like {key}", hits=hits(store, *one)) for key, *one in zip(ASKED, nearest, scores, strict=True)
    ]
    judged = [
        {"category": one.category, "segments": one.rows, "nearest mean is right": one.right} for one in found.categories
    ]
    facts = {
        "model": model,
        "vectors": f"{len(store)} of {vectors.dim} numbers",
        "zero-shot": f"{found.top1:.3f}, {found.method}",
    }
    page = Page(title="Segments that look alike", sections=sections, facts=facts, table=judged)
    write_search_page(page, folder / "search.html", open_source(f"coco-panoptic:{coco}"))
    print(f"3. zero-shot by {found.method}: {found.top1:.3f}")
    print(f"Look at {folder / 'search.html'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        target.mkdir(parents=True, exist_ok=True)
        run(target, *sys.argv[2:3])
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name))
