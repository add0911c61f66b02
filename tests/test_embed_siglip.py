"""SigLIP B/16 through open_clip's real code, with random weights: 768 numbers, and the fast path is the reference path."""

from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)

from penstock.embed import EmbedConfig, embed, open_input
from penstock.embed_verify import verify_sample
from penstock.store import open_store
from tests.test_embed import write_coco


def test_vectors_have_768_numbers_and_both_paths_agree(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", 3)
    config = EmbedConfig(
        data_path=tmp_path / "coco",
        cache_dir=tmp_path / "vectors",
        embedder_spec="openclip:ViT-B-16-SigLIP@random",
        num_workers=0,
        max_segments=8,
    )
    assert embed(config).done == 8
    store = open_store(tmp_path / "vectors")
    assert store[0]["embedding"].shape == (768,)
    verified = verify_sample(store, open_input(config)[0].source, 8)
    assert verified.is_good, (verified.least, verified.median)
