"""From photographs to training batches: a shard, a store, a check, a loader. Run: python examples/01_distill.py [FOLDER]"""

import sys
import tempfile
import time
from pathlib import Path

from stand_in_teacher import MODEL_TYPE, write_shard

from penstock import Epochs, Loader, open_store
from penstock.cli import main

SAMPLES = 12


def run(folder: Path) -> None:
    """Every step of the distillation set, on photographs that ship with the examples."""
    photos = sorted((Path(__file__).parent / "photos").glob("*.jpg"))
    shard, output = folder / "sa1b_shard_00000.tar", folder / "distill_set"
    print(f"1. {SAMPLES} samples from {len(photos)} photographs, features from a {MODEL_TYPE}: {shard}")
    write_shard(shard, photos, SAMPLES)

    print("2. penstock convert sa1b-tar")
    arguments = [
        "convert",
        "sa1b-tar",
        "--tar-path",
        str(shard),
        "--output-dir",
        str(output),
        "--model-type",
        MODEL_TYPE,
    ]
    code = main([*arguments, "--quiet"])
    print("3. penstock verify")
    code = code or main(["verify", str(output), "--quiet"])
    if code:
        sys.exit(code)

    print("4. penstock.Loader")
    store = open_store(output)
    fields = ["image", "P4_S16", "edge_256x256", "fg_map_64x64", "bg_map_64x64"]
    loader = Loader(store, batch_size=4, fields=fields, sampler=Epochs(len(store), seed=1), epochs=20)
    batch = next(iter(loader))
    print("   " + ", ".join(f"{name} {batch[name].shape} {batch[name].dtype}" for name in batch))
    started, size = time.perf_counter(), 0
    for batch in loader:
        size += sum(batch[name].nbytes for name in batch)
    print(
        f"   {size / 1e9 / (time.perf_counter() - started):.1f} GB/s over 20 shuffled epochs (warm: the set is small)"
    )
    print(f"Look at {output / 'report.html'}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        target = Path(sys.argv[1])
        target.mkdir(parents=True, exist_ok=True)
        run(target)
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name))
