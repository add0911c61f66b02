"""Settings: where a value comes from, what is refused, what an old local.py says without being run, no file overwritten."""

import ast
import dataclasses
import json
import os
import pickle
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import OutputRefused, SourceNotFound, UsageError
from penstock.settings import (
    KEYS,
    Settings,
    import_local_py,
    load_settings,
    parse_settings,
    reader_path,
    settings_toml,
    write_settings,
)

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"
READERS = [
    *["sa1b", "sa1b-tar", "sav", "masklets", "coco-panoptic", "coco-instances", "refcoco", "openimages", "lasot"],
    *["got10k", "trackingnet", "imagenet-vid", "lasot-lmdb", "got10k-lmdb", "trackingnet-lmdb", "coco-lmdb"],
    *["imagenet-vid-lmdb", "youtube-vis", "davis", "scenes"],
]
NAMES = sorted(KEYS)

paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
absolute = paths.map(lambda text: "/" + text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and a working folder two below it; nothing is set."""
    folder = tmp_path / "home"
    (folder / "project" / "deep").mkdir(parents=True)
    monkeypatch.chdir(folder / "project" / "deep")
    return folder


def env(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), **more}


def write(path: Path, lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[paths]\n{lines}\n", encoding="utf-8")
    return path


def refusal(kind: type[Exception], text: str, folder: Path, lines: bytes, environ: Mapping[str, str]) -> None:
    """Loads a file that has to be refused with all the words of the text, its own path among them."""
    file = folder / "penstock.toml"
    file.write_bytes(lines)
    with pytest.raises(kind) as caught:
        load_settings(file, environ)
    assert [word for word in [str(file), *text.split()] if word not in str(caught.value)] == []


# keys


def test_keys_are_the_fields_of_settings_in_order() -> None:
    assert list(KEYS) == [one.name for one in dataclasses.fields(Settings)]
    assert all(key.meaning and key.variable == f"PENSTOCK_{name.upper()}" for name, key in KEYS.items())


def test_every_attribute_of_the_original_has_its_key() -> None:
    page = SHARED / "reference" / "distill_and_sequence_formats.md"
    if not page.exists():
        pytest.skip("the reference document is not here")
    sentence = re.search(r"class `EnvironmentSettings` with: (.*?)\.\n", page.read_text())
    assert sentence is not None
    plain = re.findall(r"\b\w+_dir\b|pretrained_networks", sentence[1].partition(", and ")[0])
    lmdb = [f"{name}_lmdb_dir" for name in ("lasot", "got10k", "trackingnet", "coco", "imagenet")]
    assert len(plain) == 17
    assert {*plain, *lmdb, "binary_data_dir"} <= KEYS.keys()


def test_every_reader_but_folder_has_a_key() -> None:
    assert {reader for key in KEYS.values() for reader in key.readers} == set(READERS)


def test_settings_are_frozen_pickle_and_hold_paths_only() -> None:
    settings = Settings(lasot_dir=Path("/a"))
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lasot_dir = None  # type: ignore[misc]
    with pytest.raises(UsageError, match="lasot_dir: expected a Path or None, got str"):
        Settings(lasot_dir="/a")  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_without_a_path_takes_its_key_or_says_what_to_set(reader: str) -> None:
    key = next(key for key in KEYS.values() if reader in key.readers)
    assert reader_path(Settings(**{key.name: Path("/data")}), reader) == Path("/data")
    with pytest.raises(UsageError) as caught:
        reader_path(Settings(), reader)
    assert key.name in str(caught.value)
    assert key.variable in str(caught.value)
    assert "penstock.toml" in str(caught.value)


def test_got10k_means_its_train_folder() -> None:
    both = Settings(got10k_dir=Path("/g/train"), got10k_val_dir=Path("/g/val"))
    assert reader_path(both, "got10k") == Path("/g/train")


def test_a_reader_without_a_key_needs_a_path() -> None:
    with pytest.raises(UsageError, match="folder:PATH"):
        reader_path(Settings(), "folder")


# where values come from


def test_nothing_set_gives_nothing_but_the_cache(home: Path) -> None:
    loaded = load_settings(environ=env(home))
    assert loaded.settings == Settings(cache_dir=home / ".cache" / "penstock")
    assert loaded.file is None
    assert loaded.searched[0] == home / "project" / "deep" / "penstock.toml"
    assert loaded.searched[2:] == (home / "penstock.toml", home / ".config" / "penstock" / "penstock.toml")
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.notes == ()


def test_the_first_file_found_is_the_only_one_read(home: Path) -> None:
    config = write(home / ".config/penstock/penstock.toml", "lasot_dir = '/config'\ncoco_dir = '/config'")
    assert load_settings(environ=env(home)).file == config
    parent = write(home / "project/penstock.toml", "lasot_dir = '/parent'")
    loaded = load_settings(environ=env(home))
    assert (loaded.file, loaded.settings.lasot_dir, loaded.settings.coco_dir) == (parent, Path("/parent"), None)
    here = write(home / "project/deep/penstock.toml", "lasot_dir = '/here'")
    assert load_settings(environ=env(home)).file == here
    named = write(home / "elsewhere.toml", "lasot_dir = '/named'")
    assert load_settings(environ=env(home, PENSTOCK_SETTINGS="~/elsewhere.toml")).file == named
    assert load_settings(environ=env(home, PENSTOCK_SETTINGS="")).file == here
    given_file = write(home / "given.toml", "lasot_dir = '/given'")
    assert load_settings(given_file, env(home, PENSTOCK_SETTINGS=str(named))).file == given_file


def test_no_file_above_the_home_folder_is_looked_for(home: Path) -> None:
    write(home.parent / "penstock.toml", "lasot_dir = '/above'")
    assert load_settings(environ=env(home)).file is None
    found = load_settings(environ=env(home.parent / "other")).file
    assert found == home.parent / "penstock.toml"


def test_xdg_folders_are_used_when_absolute(home: Path) -> None:
    file = write(home / "xdg/penstock/penstock.toml", "lasot_dir = '/a'")
    loaded = load_settings(environ=env(home, XDG_CONFIG_HOME=str(home / "xdg"), XDG_CACHE_HOME="relative"))
    assert loaded.file == file
    assert loaded.settings.cache_dir == home / ".cache/penstock"
    loaded = load_settings(environ=env(home, XDG_CACHE_HOME="/cache", PENSTOCK_CACHE_DIR=""))
    assert loaded.settings.cache_dir == Path("/cache/penstock")


@given(
    in_file=st.dictionaries(st.sampled_from(NAMES), absolute),
    in_environ=st.dictionaries(st.sampled_from(NAMES), st.just("") | absolute),
)
def test_a_variable_goes_before_the_file(
    tmp_path_factory: pytest.TempPathFactory, in_file: dict[str, str], in_environ: dict[str, str]
) -> None:
    file = tmp_path_factory.mktemp("p") / "penstock.toml"
    file.write_text(settings_toml(in_file), encoding="utf-8")
    variables = {KEYS[name].variable: text.replace("$", "$$") for name, text in in_environ.items()}
    loaded = load_settings(file, {"HOME": "/home/u", **variables})
    for name in NAMES:
        text = {**in_file, **in_environ}.get(name, "")
        default = Path("/home/u/.cache/penstock") if name == "cache_dir" else None
        assert getattr(loaded.settings, name) == (Path(text) if text else default)
        origin = KEYS[name].variable if name in in_environ else str(file) if name in in_file else "default"
        assert loaded.origins[name] == origin
    assert json.loads(json.dumps(loaded.as_dict()))["settings"].keys() == KEYS.keys()


def test_values_are_expanded_and_relative_ones_count_from_the_file(home: Path) -> None:
    file = write(
        home / "conf/penstock.toml",
        "lasot_dir = '~/lasot'\ncoco_dir = '$DATA/coco'\nsav_dir = '${DATA}_2'\nscenes_dir = 'scenes'\nsbd_dir = ''\n"
        "davis_dir = '/a/$$x'\necssd_dir = '~'\nlvis_dir = '$EMPTY'",
    )
    settings = load_settings(file, env(home, DATA="/d", EMPTY="", PENSTOCK_MASKLETS_DIR="m")).settings
    assert settings.lasot_dir == home / "lasot"
    assert settings.coco_dir == Path("/d/coco")
    assert settings.sav_dir == Path("/d_2")
    assert settings.scenes_dir == home / "conf/scenes"
    assert settings.masklets_dir == home / "project/deep/m"
    assert settings.davis_dir == Path("/a/$x")
    assert settings.ecssd_dir == home
    assert settings.sbd_dir is None
    assert settings.lvis_dir is None


def test_an_unknown_variable_is_a_note_with_the_nearest_name(home: Path) -> None:
    notes = load_settings(environ=env(home, PENSTOCK_LASOTDIR="/a", PENSTOCK_CACHE_DIR="/c")).notes
    assert len(notes) == 1
    assert "PENSTOCK_LASOTDIR" in notes[0]
    assert "did you mean PENSTOCK_LASOT_DIR?" in notes[0]


# what is refused


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (b"[paths]\n\nlasot_dirr = '/a'\n", ":3: lasot_dirr did you mean lasot_dir?"),
        (b"[paths]\nqqq = '/a'\n", ":2: qqq"),
        (b"lasot_dir = '/a'\n", ":1: lasot_dir [paths]"),
        (b"[datasets]\nlasot = '/a'\n", ":1: datasets [paths]"),
        (b"paths = 3\n", ":1: expected a table got 3"),
        (b"[paths]\nlasot_dir = 3\n", ":2: lasot_dir: expected a path in quotes, got int 3"),
        (b"[paths]\nlasot_dir = ['/a']\n", ":2: got list"),
        (b"[paths]\nlasot_dir = /a\n", "TOML line 2"),
        (b"[paths]\nlasot_dir = '/a'\nlasot_dir = '/b'\n", "TOML line 3"),
        (b"[paths]\nlasot_dir = " + b"[" * 3000, "too deep"),
        (b"[paths]\nlasot_dir = '/\xff'\n", "byte 22 UTF-8"),
        (b"[paths]\nlasot_dir = '$NOWHERE/a'\n", ":2: lasot_dir NOWHERE is not set"),
        (b"[paths]\nlasot_dir = '~no-such-user-here/a'\n", ":2: lasot_dir no user"),
        (b'[paths]\nlasot_dir = "/a\\u0000"\n', ":2: lasot_dir zero byte"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(home: Path, lines: bytes, words: str) -> None:
    refusal(UsageError, words, home, lines, env(home))


def test_a_file_with_a_byte_order_mark_is_read(home: Path) -> None:
    (home / "penstock.toml").write_bytes(b"\xef\xbb\xbf[paths]\nlasot_dir = '/a'\n")
    assert load_settings(environ=env(home)).settings.lasot_dir == Path("/a")


def test_a_named_file_has_to_be_there(home: Path) -> None:
    with pytest.raises(SourceNotFound, match="PENSTOCK_SETTINGS"):
        load_settings(environ=env(home, PENSTOCK_SETTINGS="gone.toml"))
    with pytest.raises(SourceNotFound, match=r"gone\.toml"):
        load_settings("gone.toml", env(home))
    Path("penstock.toml").symlink_to("gone.toml")
    with pytest.raises(SourceNotFound, match="symbolic link"):
        load_settings(environ=env(home))


def test_a_removed_working_folder_is_refused(home: Path) -> None:
    Path.cwd().rmdir()
    with pytest.raises(UsageError, match="working folder was removed"):
        load_settings(environ=env(home))


def test_a_folder_in_place_of_the_file_is_refused(home: Path) -> None:
    Path("penstock.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_settings(environ=env(home))


# writing


@given(values=st.dictionaries(st.sampled_from(NAMES), paths))
def test_a_written_file_reads_back_as_the_same_values(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]
) -> None:
    text = settings_toml(values)
    assert text == settings_toml(dict(reversed(values.items())))
    file = write_settings(text, tmp_path_factory.mktemp("w") / "penstock.toml")
    found = parse_settings(file.read_text(encoding="utf-8"), file)
    assert found == {name: value.replace("$", "$$") for name, value in values.items() if value}
    assert sorted(file.parent.iterdir()) == [file]


def test_unset_keys_stand_as_comments() -> None:
    text = settings_toml({"lasot_dir": "/a"})
    assert [name for name in KEYS if f'# {name} = ""' not in text] == ["lasot_dir"]
    with pytest.raises(UsageError, match="did you mean lasot_dir"):
        settings_toml({"lasot_dirs": "/a"})


@pytest.mark.parametrize("kind", ["file", "link", "dead link", "folder"])
def test_nothing_that_is_there_is_overwritten(tmp_path: Path, kind: str) -> None:
    target, other = tmp_path / "penstock.toml", tmp_path / "other"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(other)
        if kind == "link":
            other.write_text("mine")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OutputRefused, match=r"penstock\.toml"):
        write_settings(settings_toml({}), target)
    assert sorted(tmp_path.iterdir()) == before
    assert kind not in ("file", "link") or target.read_text() == "mine"
    assert kind != "link" or target.is_symlink()


def test_replace_keeps_permissions_and_links(tmp_path: Path) -> None:
    file, link = tmp_path / "real.toml", tmp_path / "penstock.toml"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_settings(settings_toml({"lasot_dir": "/a"}), link, replace=True)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert load_settings(file, {"HOME": "/"}).settings.lasot_dir == Path("/a")
    with pytest.raises(OutputRefused, match="folder"):
        write_settings(settings_toml({}), tmp_path, replace=True)


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    texts = [settings_toml({"lasot_dir": f"/{number}"}) for number in range(8)]

    def attempt(text: str) -> str:
        try:
            write_settings(text, tmp_path / "penstock.toml")
        except OutputRefused:
            return ""
        return text

    with ThreadPoolExecutor(8) as pool:
        won = [text for text in pool.map(attempt, texts) if text]
    assert won == [(tmp_path / "penstock.toml").read_text()]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("replace", [False, True])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    target = tmp_path / "penstock.toml"
    if replace:
        target.write_text("mine")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputRefused, match="No space left"):
        write_settings(settings_toml({}), target, replace=replace)
    assert [path.read_text() for path in tmp_path.iterdir()] == (["mine"] if replace else [])


def test_a_wrong_text_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_settings("[paths]\nlasot = 1\n", tmp_path / "penstock.toml")
    assert list(tmp_path.iterdir()) == []


def test_folders_above_are_made_and_a_file_among_them_is_refused(tmp_path: Path) -> None:
    assert write_settings(settings_toml({}), tmp_path / "a/b/penstock.toml").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputRefused, match="cannot be written"):
        write_settings(settings_toml({}), tmp_path / "file" / "penstock.toml")


# an old local.py


def local_py(folder: Path, body: str, before: str = "") -> Path:
    """A local.py whose `__init__` has these lines."""
    lines = "".join(f"        {line}\n" for line in body.split("\n") if line)
    file = folder / "local.py"
    file.write_text(f"{before}\nclass EnvironmentSettings:\n    def __init__(self):\n{lines}", encoding="utf-8")
    return file


def executed(file: Path) -> dict[str, str]:
    """What running the file gives: the attributes that are keys and hold something, as texts."""
    names: dict[str, object] = {"__file__": str(file), "__name__": "local"}
    exec(compile(file.read_bytes(), str(file), "exec"), names)
    settings = names["EnvironmentSettings"]()  # type: ignore[operator]
    return {name: str(getattr(settings, name)) for name in KEYS if getattr(settings, name, None)}


def literal(text: str) -> st.SearchStrategy[str]:
    """Ways to write a text in Python."""
    whole = [repr(text), ascii(text), json.dumps(text, ensure_ascii=False), f"({text!r})"]
    half = len(text) // 2
    return st.sampled_from([*whole, f"{text[:half]!r} {text[half:]!r}", f"{text[:half]!r} + {text[half:]!r}"])


@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(NAMES), paths.flatmap(literal), st.sampled_from(["=", "+=", ": str ="])), max_size=8
    )
)
def test_assignments_of_texts_import_as_they_run(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str, str]]
) -> None:
    assigned: set[str] = set()
    lines = []
    for name, code, sign in pairs:
        lines.append(f"self.{name} {sign if name in assigned or sign != '+=' else '='} {code}")
        assigned.add(name)
    file = local_py(tmp_path_factory.mktemp("l"), "\n".join(["pass", *lines]))
    found = import_local_py(file)
    assert found.values == executed(file)
    assert found.problems == ()


DERIVED = """
root = '/data'
other = root2 = '/mnt'
one, two = '/1', ('/2')
self.workspace_dir = os.path.join(root, 'work')
self.tensorboard_dir = self.workspace_dir + '/tensorboard'
self.pretrained_networks = f'{root}/nets/{other}{2}!'
self.lasot_dir = Path(root) / 'lasot'
self.got10k_dir = str(Path(root).joinpath('got10k', 'train'))
self.got10k_val_dir = str(Path(self.got10k_dir).parent / 'val')
self.trackingnet_dir = BASE + 'trackingnet'
self.coco_dir = osp.normpath(osp.join(osp.dirname(__file__), '..', 'coco'))
self.imagenet_dir = os.path.expanduser('~/vid')
self.lvis_dir = self.sbd_dir = ''
self.imagenetdet_dir = one + two
self.ecssd_dir = root2 + os.sep + 'e'
self.hkuis_dir: str = '/h'
self.msra10k_dir = root
self.msra10k_dir += '/msra'
self.davis_dir = Path(__file__).resolve().parents[1] / 'davis'
self.youtubevos_dir = 'a' / Path('b')
self.lasot_lmdb_dir = None
self.got10k_lmdb_dir = self.SHARED + '/g'
self.coco_lmdb_dir = pathlib.Path.home().as_posix()
root = '/changed'
self.imagenet_lmdb_dir = root
"""
BEFORE = "import os, pathlib\nimport os.path as osp\nfrom pathlib import Path\nBASE = '/base/'\n"


def test_what_follows_from_texts_is_worked_out(tmp_path: Path) -> None:
    file = local_py(tmp_path, DERIVED, BEFORE)
    text = file.read_text().replace("Settings:\n", "Settings:\n    '''Paths.'''\n    SHARED = '/shared'\n", 1)
    file.write_text(text)
    found = import_local_py(file)
    assert found.values == executed(file)
    assert len(found.values) == 18
    assert [one.reason for one in found.problems] == ["SHARED is no setting"]
    assert len(found.notes) == 1
    assert "youtubevos_dir" in found.notes[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("self.lasot_dir = os.environ['DATA']", "not followed"),
        ("self.lasot_dir = os.environ.get('DATA', '/d')", "not run"),
        ("self.lasot_dir = Path.cwd() / 'a'", "not run"),
        ("self.lasot_dir = Path('a').resolve()", "working folder"),
        ("self.lasot_dir = find('lasot')", "find is not assigned before"),
        ("self.lasot_dir = self.nothing + 'a'", "self.nothing is not assigned before"),
        ("self.lasot_dir = '/a' if True else '/b'", "not followed"),
        ("self.lasot_dir = '{}/a'.format('b')", "not followed"),
        ("self.lasot_dir = ROOT + '/a'", "it needs ROOT of line"),
        ("self.lasot_dir = paths.LASOT", "paths.LASOT is another module's"),
        ("self.lasot_dir = 7", "expected a path, got int"),
        ("self.lasot_dir = '/a\\0b'", "zero byte"),
        ("self.lasot_dir = '/a\\ud800'", "half a character"),
        ("if 1: self.lasot_dir = '/a'", "`if` is not followed"),
        ("for name in ['a']: self.lasot_dir = name", "`for` is not followed"),
        ("setattr(self, 'lasot_dir', '/a')", "a call is not run"),
        ("self.update({'lasot_dir': '/a'})", "a call is not run"),
        ("self.lasott_dir = '/a'", "lasott_dir is no setting; did you mean lasot_dir?"),
        ("self.sub.lasot_dir = '/a'", "not followed"),
        ("self.lasot_dir, *rest = '/a', '/b'", "not followed"),
        ("del self.lasot_dir", "`delete` is not followed"),
    ],
)
def test_what_only_running_would_tell_is_reported_with_its_line(tmp_path: Path, line: str, reason: str) -> None:
    before = "import os, paths\nfrom pathlib import Path\nROOT = open('/etc/root').read()\n"
    file = local_py(tmp_path, f"self.coco_dir = '/coco'\n{line}", before)
    found = import_local_py(file)
    assert found.values == {"coco_dir": "/coco"}
    assert found.problems
    assert {one.source for one in found.problems} == {line}
    assert {one.line for one in found.problems} == {8}
    assert any(reason in one.reason for one in found.problems)
    assert json.loads(json.dumps(found.as_dict()))["problems"][0]["line"] == 8


@pytest.mark.parametrize(
    "body",
    [
        "a = '/old'\nif True:\n    a = '/new'\nself.lasot_dir = a",
        "a = '/old'\nself.coco_dir = (a := '/new')\nself.lasot_dir = a",
        "a = '/old'\ntry:\n    a = '/new'\nexcept OSError as b:\n    pass\nself.lasot_dir = a",
        "self.lasot_dir = '/old'\nwhile self.lasot_dir == '/old':\n    self.lasot_dir = '/new'",
        "if True:\n    return\nself.lasot_dir = '/old'",
        "import os\nos = fake\nself.lasot_dir = os.path.join('/old', 'a')",
        "global BASE\nself.lasot_dir = BASE",
        "match '/new':\n    case BASE:\n        pass\nself.lasot_dir = BASE",
    ],
)
def test_a_value_that_a_branch_may_have_changed_is_not_guessed(tmp_path: Path, body: str) -> None:
    found = import_local_py(local_py(tmp_path, body, "BASE = '/old'\nfake = None\n"))
    assert found.values == {}
    assert found.problems


def test_a_local_py_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    touch = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    (tmp_path / "evil.py").write_text(touch)
    before = f"import os, sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport evil\nfrom evil import *\n{touch}\n"
    before += f"os.system('touch {mark}')\ndef f(x={touch}): pass\n@f\n"
    body = f"{touch}\nself.lasot_dir = {touch}\nself.coco_dir = f\"{{{touch}}}\"\nself.sbd_dir = [{touch} for x in '1']"
    found = import_local_py(local_py(tmp_path, f"{body}\nself.sav_dir = '/s'", before))
    assert not mark.exists()
    assert found.values == {"sav_dir": "/s"}
    assert {one.source for one in found.problems} >= set(body.splitlines())


def test_the_guard_for_scripts_and_print_are_passed_over(tmp_path: Path) -> None:
    file = local_py(tmp_path, "'''Doc.'''\nprint('hello')\nassert True\nself.lasot_dir = '/a'")
    with file.open("a") as out:
        out.write("\nif __name__ == '__main__':\n    print(EnvironmentSettings().lasot_dir)\n")
    found = import_local_py(file)
    assert (found.values, found.problems) == ({"lasot_dir": "/a"}, ())


def test_what_a_base_class_or_a_property_gives_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "local.py"
    file.write_text(
        "class EnvironmentSettings(Base):\n    coco_dir = '/c'\n"
        "    @property\n    def lasot_dir(self): return '/a'\n    def helper(self): pass\n"
    )
    found = import_local_py(file)
    assert found.values == {"coco_dir": "/c"}
    assert [one.line for one in found.problems] == [1, 4]


EVALUATION = """
from lib.test.evaluation.environment import EnvSettings

def local_env_settings(root='/data'):
    settings = EnvSettings()
    settings.davis_dir = ''
    settings.got10k_path = root + '/got10k'
    settings.lasot_path = root + '/lasot'
    settings.lasot_lmdb_path = ''
    settings.otb_path = ''
    settings.prj_dir = '/project'
    settings.trackingnet_path = settings.prj_dir + '/trackingnet'
    settings.youtubevos_dir = '/y'
    return settings
"""


def test_the_form_of_the_evaluation_side_is_read(tmp_path: Path) -> None:
    file = tmp_path / "local.py"
    file.write_text(EVALUATION)
    found = import_local_py(file)
    assert found.values["trackingnet_dir"] == "/project/trackingnet"
    assert found.values == {**found.values, "lasot_dir": "/data/lasot", "youtubevos_dir": "/y"}
    assert len(found.values) == 3
    assert [(one.line, one.reason.partition(" ")[0]) for one in found.problems] == [(7, "got10k_path"), (11, "prj_dir")]
    assert "got10k_dir" in found.problems[0].reason


def test_two_forms_that_differ_are_reported(tmp_path: Path) -> None:
    file = local_py(tmp_path, "self.lasot_dir = '/a'\nself.coco_dir = '/c'")
    file.write_text(file.read_text() + EVALUATION)
    found = import_local_py(file)
    assert found.values["lasot_dir"] == "/a"
    assert any(one.reason == "lasot_dir has another value before" for one in found.problems)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"class EnvironmentSettings:\n    def __init__(self):\n        self.x = '\n", ":3: no Python"),
        (b"x = '/a'\n", "class EnvironmentSettings local_env_settings"),
        (b"", "found neither"),
        (b"a\0b", "Python"),
        (b"# coding: latin-1x\n", "Python"),
        (b"x = " + b"(" * 3000 + b")" * 3000, "Python"),
    ],
)
def test_what_is_no_local_py_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "local.py"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        import_local_py(file)
    assert [word for word in [str(file), *words.split()] if word not in str(caught.value)] == []


def test_a_local_py_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        import_local_py(tmp_path / "local.py")
    with pytest.raises(UsageError, match="directory"):
        import_local_py(tmp_path)


def test_backslashes_and_other_encodings_are_read_as_python_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "local.py"
    text = "# coding: latin-1\nclass EnvironmentSettings:\n    def __init__(self):\n        self.lasot_dir = 'D:\\study\\d\xe9'\n"
    file.write_bytes(text.encode("latin-1"))
    assert import_local_py(file).values == {"lasot_dir": "D:\\study\\d\xe9"}


@given(body=st.text(st.sampled_from("ab='/\n self.lasot_dir+(){}f\\#:if"), max_size=80))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, body: str) -> None:
    file = tmp_path_factory.mktemp("f") / "local.py"
    file.write_text(f"class EnvironmentSettings:\n  def __init__(self):\n   pass\n   {body}\n")
    try:
        ast.parse(file.read_text())
    except SyntaxError:
        with pytest.raises(UsageError, match=re.escape(str(file))):
            import_local_py(file)
    else:
        assert set(import_local_py(file).values) <= {"lasot_dir"}


# the page


def test_every_key_is_in_the_page() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = {row.split("|")[1].strip(" `"): row for row in page.splitlines() if row.startswith("| `")}
    for name, key in KEYS.items():
        readers = ", ".join(f"`{reader}`" for reader in key.readers)
        assert rows[name] == f"| `{name}` | {key.meaning} | {readers} |"
