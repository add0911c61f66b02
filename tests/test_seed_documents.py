"""Everything that a document of the original projects names runs here, or stands in docs/differences.md with the reason.

One list per document, `tests/seeds/<document>.toml`, is committed; the documents are not. Where a document is present
(`PENSTOCK_SEEDS`, or `../shared/seeds` beside the repository), the list is compared with it: nothing may be missing in
the list, and nothing in the list may be invented. Kinds of entries:

    path     a file under compat/; with `made`, one that the commands create there, in it `at` where that is not its name;
             with `given`, the reader's own input
    flag     `of` a command, whose --help lists it
    import   a statement that runs with compat/ as working directory
    name     an object of an `import`, a key of the `config`, or words of `prose`
    command  runs and exits 0, after `replace` has put in data; it may make a folder, `makes`
    block    a code block that is no command: it `holds` paths, keys or an error, each an entry of its own; or it is Python,
             `code` without comments and without what is not ASCII, and all of a document's run one after another; with
             `each`, its lines are alternatives, and this stands before each
    error    an exception of the built-in class and with the beginning that the document prints
    size     bytes of a record of a file, and the fields in it
    key      type, shape and dtype of a key of an item; or, with `json`, of a file that the commands create: a value `like` this
    figure   claims of speed and size

Any entry may instead say `differs`: a heading of docs/differences.md, as an anchor; with `also_differs` it runs and is
explained. A new document needs its list and, in `WORLDS`, the data that its commands are run on.
"""

import builtins
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark import ParameterSet

from penstock.testing import encode_picture, make_sample, write_tar

ROOT = Path(__file__).parents[1]
COMPAT = ROOT / "compat"
SEEDS = Path(os.environ.get("PENSTOCK_SEEDS", ROOT.parent / "shared" / "seeds"))

Entry = dict[str, object]

LISTS = {path.stem: tomllib.loads(path.read_text()) for path in sorted((ROOT / "tests" / "seeds").glob("*.toml"))}
KINDS = {"path", "flag", "import", "name", "command", "block", "error", "size", "key", "figure"}


class World:
    """What a document's commands run on: folders under their placeholders, items, and ways to provoke its errors."""

    def __init__(self, root: Path, document: str) -> None:
        self.root = root
        self.document = document
        self.folders: dict[str, Path] = {}
        self.provoke: dict[str, Callable[[], object]] = {}
        self.items: Callable[[], list[Mapping[str, object]]] = list
        self.prelude = ""
        """Python that stands before the document's own: its placeholders."""
        self._done: dict[str, subprocess.CompletedProcess[str]] = {}

    def run(self, command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command line in compat/, once."""
        if command not in self._done:
            filled = {name: self.fill(value) for name, value in (environment or {}).items()}
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            self._done[command] = subprocess.run(
                shlex.split(self.fill(command)),
                cwd=COMPAT,
                env={**os.environ, "PATH": path, "COLUMNS": "200", "TERM": "dumb", **filled},
                capture_output=True,
                text=True,
                timeout=500,
            )
        return self._done[command]

    def fill(self, text: str) -> str:
        """The text with the world's folders in the place of their names in braces."""
        for name, folder in self.folders.items():
            text = text.replace(f"{{{name}}}", str(folder))
        return text

    def made(self, name: str) -> Path:
        """A folder that the document's commands make; they are run first."""
        for entry in LISTS[self.document].get("command", []):
            if entry.get("makes") == name:
                done = self.run(printed(entry), entry.get("environment"))
                assert done.returncode == 0, done.stderr
        return self.folders[name]


def binary_dataset(world: World) -> None:
    """Two samples, one of them without a box, in a TAR of the name that the document gives."""
    shards = world.root / "shards"
    shards.mkdir()
    members = []
    for number in range(2):
        picture, npz, _ = make_sample(number, num_boxes=1 - number)
        members += [(f"sa_{number}.jpg", picture), (f"sa_{number}_features.npz", npz)]
    write_tar(shards / "sa1b_shard_00000.tar", members)
    folders = {"tar": shards / "sa1b_shard_00000.tar", "shards": shards, "empty": world.root / "empty"}
    world.folders = folders | {name: world.root / name for name in ("output", "batch_output")}
    folders["empty"].mkdir()

    def open_set(folder: Path, **options: object) -> object:
        from penstock.compat import BinaryDistillDataset

        return BinaryDistillDataset(str(folder), **options)

    def copied(name: str) -> Path:
        folder = world.root / name
        if not folder.exists():
            folder.mkdir()
            for file in world.made("output").glob("*.*"):
                if file.is_file():
                    (folder / file.name).write_bytes(file.read_bytes())
        return folder

    def open_short() -> None:
        os.truncate(copied("short") / "images.bin", 4_000_000)
        open_set(copied("short"))

    def read_short() -> None:
        dataset = open_set(copied("shortened"))
        os.truncate(copied("shortened") / "images.bin", 4_000_000)
        dataset[1]

    def items() -> list[Mapping[str, object]]:
        dataset = open_set(world.made("output"))
        return [dataset[index] for index in range(len(dataset))]

    world.items = items
    world.provoke = {
        "open a folder without config.json": lambda: open_set(folders["empty"]),
        "open a set whose images were cut short": open_short,
        "read a set whose images were cut short after it was opened": read_short,
        "open a set with another input size": lambda: open_set(world.made("output"), input_size=640),
    }


def sequence_saver(world: World) -> None:
    """One video of 40 small pictures in the layout of LaSOT; what the document's Python leaves to the reader."""
    video = world.root / "lasot" / "cat" / "cat-1"
    (video / "img").mkdir(parents=True)
    for frame in range(40):
        pixels = np.full((48, 64, 3), 4 * frame, np.uint8)
        (video / "img" / f"{frame + 1:08d}.jpg").write_bytes(encode_picture(pixels))
    (video / "groundtruth.txt").write_text("".join(f"{frame + 1},10,12,9\n" for frame in range(40)))
    for name in ("full_occlusion.txt", "out_of_view.txt"):
        (video / name).write_text(",".join("0" * 40))
    world.folders = {name: world.root / name for name in ("lasot", "simple", "real", "example", "code")}
    world.folders["code"].mkdir()
    world.prelude = world.fill("""
import itertools, os, sys
sys.path.insert(0, os.getcwd())
os.chdir("{code}")
from save_sequences_simple import save_sequences_from_sampler
from lib.train.data.sampler import TimingTrackingSampler
your_datasets, your_p_datasets = ["lasot:{lasot}"], [1]
sampler = TimingTrackingSampler(your_datasets, your_p_datasets, 100, 200, 1)
folders = (f"folder_{number}" for number in itertools.count())
""")


def embedding_cache(world: World) -> None:
    """COCO panoptic with the document's two pictures; its Python reads a cache that lies where the document has it."""
    from penstock.compat.embed_script import write_example

    world.folders = {name: world.root / name for name in ("coco", "cache", "first", "small", "code")}
    write_example(world.folders["coco"])
    world.folders["code"].mkdir()
    world.folders["train"] = world.folders["coco"] / "annotations" / "panoptic_train2017.json"
    world.folders["val"] = world.folders["train"].with_name("panoptic_val2017.json")
    world.prelude = world.fill("""
import os
from penstock.compat.embed_script import main
os.chdir("{code}")
flags = "--data_path {coco} --embedder_spec tiny: --device cpu --num_workers 0 --quiet"
assert main(flags.split()) == 0
""")


def mask_refinement(world: World) -> None:
    """Scenes of the document's names for each of its programs."""
    from penstock.compat.refine import write_example

    world.folders = {name: world.root / name for name in ("v1", "v2", "v3", "script", "verbose")}
    for folder in world.folders.values():
        write_example(folder, ("scene1", "scene2"), frames=2)


def dual_loop(world: World) -> None:
    """The document's datasets, Open Images not among them; one file of masklets is damaged, the one that it names."""
    from tests.readers.test_refcoco import write_refcoco
    from tests.readers.test_sa1b import write_sa1b
    from tests.train.dual_loop_data import write_pairs

    world.folders = {name: world.root / name for name in ("npz", "sa1b", "ref_seg", "output")}
    world.folders["bad"] = write_pairs(world.folders["npz"]) / "masklet_data_02481.npz"
    world.folders["bad"].write_bytes(b"torn")
    write_sa1b(world.folders["sa1b"])
    write_refcoco(world.folders["ref_seg"], mmdet=True)


WORLDS: dict[str, Callable[[World], None]] = {
    "binary_dataset": binary_dataset,
    "dual_loop": dual_loop,
    "embedding_cache": embedding_cache,
    "mask_refinement": mask_refinement,
    "sequence_saver": sequence_saver,
}
"""Document -> what fills its world."""


def item_keys(content: Mapping[str, list[Entry]]) -> list[Entry]:
    """Keys of an item, those of files left out."""
    return [entry for entry in content.get("key", []) if "type" in entry]


def code_of(entry: Entry) -> str:
    """The Python of a block as it is run; "" of a block that is none or that differs."""
    code = "" if "differs" in entry else str(entry.get("code", ""))
    if "each" in entry:
        return "".join(f"{entry['each']}\n{line}\n" for line in code.strip().splitlines())
    return code


def plain_code(text: str) -> str:
    """Code without comments, blank lines, and what is not ASCII."""
    lines = (re.sub(r"\s*#.*", "", line).rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if line).encode("ascii", "ignore").decode()


def is_like(value: object, like: object) -> bool:
    """Of the same type, all through; a whole number is like any number, an empty list like any list."""
    if isinstance(like, list):
        return isinstance(value, list) and all(is_like(one, like[0]) for one in value)
    if isinstance(like, int) and not isinstance(like, bool):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(like)


def entries(*kinds: str) -> list[ParameterSet]:
    """Parameters: (document, entry) of these kinds that must run."""
    found = []
    for document, content in LISTS.items():
        for kind in kinds:
            for number, entry in enumerate(content.get(kind, [])):
                if "differs" not in entry:
                    label = next(
                        str(entry[name]) for name in ("name", "statement", "text", "file", "starts") if name in entry
                    )
                    found.append(pytest.param(document, entry, id=f"{document}-{kind}{number}-{label.strip()[:40]}"))
    return found


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, World]:
    """One world per document; commands run when a test asks for what they make."""
    made = {}
    for document in LISTS:
        made[document] = World(tmp_path_factory.mktemp(document), document)
        WORLDS[document](made[document])
    return made


@pytest.mark.parametrize("document", LISTS)
def test_list_is_well_formed_and_its_differences_are_explained(document: str) -> None:
    content = LISTS[document]
    assert set(content) <= KINDS | {"document"}
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "differences.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for kind in KINDS:
        for entry in content.get(kind, []):
            used = {entry[name] for name in ("differs", "also_differs") if name in entry}
            assert used <= anchors, f"{entry}: docs/differences.md has no such heading; it has {sorted(anchors)}"
    assert all("differs" in entry for entry in content.get("figure", []))


@pytest.mark.parametrize(("document", "entry"), entries("path"))
def test_path(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    world = worlds[document]
    if "given" in entry:
        assert world.folders[str(entry["given"])].name == Path(str(entry["name"])).name
        return
    folder = world.made(str(entry["made"])) if "made" in entry else COMPAT
    assert (folder / str(entry.get("at", entry["name"]))).exists()


@pytest.mark.parametrize(("document", "entry"), entries("flag"))
def test_flag(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    shown = worlds[document].run(f"{entry['of']} --help")
    assert shown.returncode == 0, shown.stderr
    flags = {flag.replace("_", "-") for flag in re.findall(r"--[a-z][\w-]*", shown.stdout)}
    assert str(entry["name"]).replace("_", "-") in flags


@pytest.mark.parametrize(("document", "entry"), entries("import", "name"))
def test_import_or_name(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    world = worlds[document]
    if "config" in entry:
        assert entry["name"] in json.loads((world.made("output") / "config.json").read_bytes())
    elif "prose" not in entry:
        pytest.importorskip("torch", reason="the seeds' datasets need torch")
        done = world.run(f"python -c {shlex.quote(str(entry.get('statement') or entry['import']))}")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("document", "entry"), entries("command"))
def test_command(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    if "makes" in entry:
        assert any(worlds[document].made(str(entry["makes"])).iterdir())
    else:
        done = worlds[document].run(printed(entry), entry.get("environment"))  # type: ignore[arg-type]  # a table
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("document", [name for name, content in LISTS.items() if any(map(code_of, content["block"]))])
def test_code(worlds: Mapping[str, World], document: str) -> None:
    pytest.importorskip("torch", reason="the seeds' datasets need torch")
    world = worlds[document]
    code = "\n".join([world.prelude, *(code_of(entry) for entry in LISTS[document]["block"])])
    done = subprocess.run([sys.executable, "-c", code], cwd=COMPAT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("document", "entry"), [one for one in entries("key") if "json" in one.values[1]])
def test_key_of_a_file(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    content = json.loads((worlds[document].made(str(entry["made"])) / str(entry["json"])).read_bytes())
    listed = [one["name"] for one in LISTS[document]["key"] if one.get("json") == entry["json"]]
    assert list(content) == listed
    assert is_like(content[entry["name"]], entry["like"])


@pytest.mark.parametrize(("document", "entry"), entries("error"))
def test_error(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    pytest.importorskip("torch", reason="the seeds' datasets need torch")
    name, _, text = str(entry["text"]).partition(": ")
    begins = re.escape(text.removesuffix("...")).replace("X:", r"\d+:")
    with pytest.raises(getattr(builtins, name), match=f"^{begins}.+"):
        worlds[document].provoke[str(entry["provoke"])]()


@pytest.mark.parametrize(("document", "entry"), entries("size"))
def test_size(worlds: Mapping[str, World], document: str, entry: Entry) -> None:
    folder = worlds[document].made("output")
    shapes: dict[str, list[int]] = entry["fields"]  # type: ignore[assignment]  # a table of the list
    values = sum(int(np.prod(shape, dtype=int)) for shape in shapes.values())
    assert values * np.dtype(str(entry["dtype"])).itemsize == entry["bytes"]
    rows = json.loads((folder / "config.json").read_bytes())["total_samples"]
    assert (folder / str(entry["file"])).stat().st_size == rows * int(str(entry["bytes"]))
    from penstock import open_store

    fields = [f for f in open_store(folder).schema.fields if f"{f.file}.bin" == entry["file"]]
    assert [field.name for field in fields] == list(shapes)
    for field in fields:
        assert np.prod(field.item_shape) == np.prod(shapes[field.name])
        assert field.dtype == entry["dtype"]


@pytest.mark.parametrize("document", [name for name, content in LISTS.items() if item_keys(content)])
def test_keys(worlds: Mapping[str, World], document: str) -> None:
    torch = pytest.importorskip("torch", reason="the seeds' datasets need torch")
    types = {"torch.Tensor": torch.Tensor, "np.ndarray": np.ndarray}
    counts = set()
    for item in worlds[document].items():
        bound: set[int] = set()
        for entry in item_keys(LISTS[document]):
            value = item[entry["name"]]
            assert type(value) is types.get(entry["type"], getattr(builtins, entry["type"], None)), entry["name"]
            if "shape" in entry:
                assert len(value.shape) == len(entry["shape"]), entry["name"]
                for found, expected in zip(value.shape, entry["shape"], strict=True):
                    bound |= {found} if expected == "N" else set()
                    assert expected in ("N", found), entry["name"]
                assert str(value.dtype).removeprefix("torch.") == entry["dtype"], entry["name"]
        assert len(bound) == 1
        counts |= bound
    assert counts == {0, 1}, "an item with boxes and one without"


@pytest.mark.parametrize("document", LISTS)
def test_list_covers_the_document_and_invents_nothing(document: str) -> None:
    path = SEEDS / LISTS[document]["document"]
    if not path.exists():
        pytest.skip(f"{path} is not there; set PENSTOCK_SEEDS to the folder of the seed documents")
    text, content = path.read_text(), LISTS[document]
    named = {kind: {str(entry.get("name", "")) for entry in content.get(kind, [])} for kind in KINDS}
    short = {str(entry["short"]) for entry in content["path"] if "short" in entry}
    paths = named["path"] | short
    blocks = [strip_block(block) for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)]
    commands = {one_line(entry["text"]) for entry in content.get("command", [])}
    starts = {entry["starts"] for entry in content.get("block", []) if "starts" in entry}
    codes = {plain_code(entry["code"]) for entry in content.get("block", []) if "code" in entry}
    for block in blocks:
        is_listed = one_line(block) in commands or block.splitlines()[0] in starts or plain_code(block) in codes
        assert is_listed, f"code block not in the list:\n{block}"
    assert codes <= set(map(plain_code, blocks)), "code in the list, but not in the document"
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    known = paths | set().union(*(named[kind] for kind in ("flag", "name", "key")))
    missing = {span for span in re.findall(r"`([^`\n]+)`", prose) if span not in known}
    missing |= set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - named["flag"]
    missing |= set(re.findall(r"[\w./-]*\w\.(?:py|sh|json|bin|txt|tar|npy|npz|pth|tsv|yaml|md)\b", text)) - paths
    missing |= {name for block in blocks for name in re.findall(r'^\s*"(\w+)":', block, re.MULTILINE)} - named["key"]
    figures = {figure for entry in content.get("figure", []) for figure in entry["texts"]}
    missing |= set(re.findall(r"\d[\d.-]*(?:%| MB/s)|\d[\d.-]*(?= \u500d)", text)) - figures
    assert not missing, f"not in the list: {sorted(missing)}"
    flat = one_line(text)
    printed_ones = [entry for kind in ("path", "flag", "name", "key") for entry in content.get(kind, [])]
    said = {str(entry["name"]) for entry in printed_ones if "unprinted" not in entry}
    said |= commands | starts | figures | {entry["text"] for entry in content.get("error", [])}
    said |= {f"{entry['bytes']:,} bytes" for entry in content.get("size", [])}
    assert not {words for words in said if words not in flat}, "in the list, but not in the document"


@pytest.mark.parametrize("document", [name for name, content in LISTS.items() if item_keys(content)])
def test_shapes_of_the_list_are_those_of_the_document(document: str) -> None:
    path = SEEDS / LISTS[document]["document"]
    if not path.exists():
        pytest.skip(f"{path} is not there; set PENSTOCK_SEEDS to the folder of the seed documents")
    lines = dict(re.findall(r'^\s*"(\w+)": (.+)$', path.read_text(), re.MULTILINE))
    for entry in item_keys(LISTS[document]):
        line = lines[entry["name"]]
        assert line.startswith(f"{entry['type']},")
        if "shape" in entry:
            shape = ", ".join(str(size) for size in entry["shape"])
            assert f"({shape})" in line or f"({shape},)" in line
            assert entry["dtype"] in line


def printed(entry: Mapping[str, object]) -> str:
    """The command on one line, with data in the place of what a reader fills in."""
    text = one_line(str(entry["text"]))
    replacements: Mapping[str, str] = entry.get("replace", {})  # type: ignore[assignment]  # a table of the list
    for old, new in replacements.items():
        assert old in text, f"{old} is not in the command {text}"
        text = text.replace(old, new)
    return text


def one_line(text: str) -> str:
    """Without line continuations and with single blanks."""
    return " ".join(text.replace("\\\n", " ").split())


def strip_block(block: str) -> str:
    """A code block without blank lines around it."""
    return block.strip("\n")
