"""The command line about data: info, list, settings, doctor."""

import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from penstock.cli_common import FAULT, OK, Flag, Json
from penstock.report import dump_json

settings = App(name="settings", help="Where datasets lie: penstock.toml and PENSTOCK_* variables.")


def info(source: str, *, sample: int = 16, json: Json = False) -> int:
    """Say what a source holds: rows, groups, fields, sizes, problems.

    Parameters
    ----------
    source
        A store, v1 directories included, or a dataset as `READER:PATH[?option=value&...]`:
        `coco-panoptic:/data/coco?split=val` for instance; `READER:` takes the path from the settings.
    sample
        Rows of a dataset to read, spread evenly, to say how large its pictures are; 0 reads none.
    """
    from penstock.describe import describe
    from penstock.registry import open_source

    content = describe(open_source(source), sample=sample)
    if json:
        print(dump_json(content))
        return OK
    states = content.get("states")
    counts = f" ({states['failed']} failed, {states['missing']} missing)" if isinstance(states, dict) else ""
    print(f"{source}: {content['kind']}, {content['rows']} rows{counts} in {content['groups']} groups")
    for field in content["schema"]:  # type: ignore[attr-defined]  # a list of fields
        shape = "x".join("N" if size is None else str(size) for size in field["shape"]) or "scalar"
        print(f"  {field['name']:18} {field['dtype']:8} {shape:14} {field['meaning']}")
    attributes, problems = content["attributes"], content.get("problems", [])
    for name, value in {**attributes, **_rest(content)}.items():  # type: ignore[dict-item]  # a mapping
        print(f"  {name} = {value}")
    for problem in problems[:10]:  # type: ignore[index]  # a list of problems
        print(f"  problem: {problem['path']}: {problem['message']}")
    if len(problems) > 10:  # type: ignore[arg-type]  # a list of problems
        print(f"  ... {len(problems)} problems in all; --json lists them")  # type: ignore[arg-type]
    return OK


_Kind = Literal[
    "readers", "models", "captioners", "proposers", "teachers", "students", "exporters", "stages", "launchers"
]


def listed(what: _Kind, *, json: Json = False) -> int:
    """List what is there by name: readers, models, students, exporters, ...; those of other packages included.

    Parameters
    ----------
    what
        Which names.
    """
    from penstock.registry import describe_names

    found = describe_names(what)
    if json:
        print(dump_json({"command": "list", "status": "ok", what: found}))
        return OK
    for name, about in found.items():
        print(f"{name:20} {about}")
    if not found:
        print(f"no {what} yet", file=sys.stderr)
    return OK


@settings.command
def show(*, json: Json = False) -> int:
    """Print every setting, its value and where it comes from."""
    from penstock.settings import KEYS, load_settings

    loaded = load_settings()
    content = loaded.as_dict()
    if json:
        print(dump_json({"command": "settings show", "status": "ok", **content}))
        return OK
    print(f"file: {loaded.file or 'none; looked for ' + ', '.join(map(str, loaded.searched))}")
    for name, row in content["settings"].items():
        print(f"  {name:22} {row['value'] or '-'}  ({row['origin'] if row['value'] else KEYS[name].meaning})")
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    return OK


@settings.command(name="import")
def import_local(
    local_py: Path, *, output: Path = Path("penstock.toml"), replace: Flag = False, json: Json = False
) -> int:
    """Turn an old local.py into penstock.toml. The file is read, never run.

    What could not be read without running it is listed, with its line; exit 1 if that was everything.

    Parameters
    ----------
    local_py
        For instance lib/train/admin/local.py.
    output
        Where the settings go. A file that is there is not touched, unless `--replace`.
    replace
        Replace a file that is there.
    """
    from penstock.settings import import_local_py, settings_toml, write_settings

    imported = import_local_py(local_py)
    write_settings(settings_toml(imported.values), output, replace=replace)
    empty = bool(imported.problems) and not imported.values
    if json:
        status = "failed" if empty else "partial" if imported.problems else "ok"
        print(dump_json({"command": "settings import", "status": status, "output": str(output), **imported.as_dict()}))
    else:
        print(f"{output}: {len(imported.values)} settings from {local_py}")
        for problem in imported.problems:
            print(f"  left out: {problem}", file=sys.stderr)
        for note in imported.notes:
            print(f"  note: {note}", file=sys.stderr)
    return FAULT if empty else OK


def doctor(*, sample: int = 8, speed: Flag = False, quiet: Flag = False, json: Json = False) -> int:
    """Check this machine and every dataset that the settings name: what is fine, what is not, what to do next.

    Exit 0 if nothing is wrong, 1 otherwise. What is merely not set up (a dataset, an optional package) is said and is no
    fault, unless nothing at all is set up.

    Parameters
    ----------
    sample
        Rows to read of each dataset.
    speed
        Also measure the disks: writes and reads back 256 MiB beside the index cache and in binary_data_dir.
    quiet
        No progress on stderr.
    """
    from penstock.doctor import examine

    def on_progress(what: str) -> None:
        if not (quiet or json):
            print(f"checking {what} ...", file=sys.stderr)

    diagnosis = examine(sample=sample, measure_disks=speed, on_progress=on_progress)
    if json:
        print(dump_json(diagnosis.to_json()))
    else:
        for line in diagnosis.lines():
            print(line)
    return OK if diagnosis.is_sound else FAULT


def _rest(content: dict[str, object]) -> dict[str, object]:
    """What a kind of source adds to its attributes."""
    return {name: content[name] for name in ("parts", "bytes", "sample") if name in content}
