"""docs/masks.md lists all functions of the modules that it names."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {"boxes", "masks", "id_maps", "id_pngs", "rle", "rle_many", "polygons", "images", "channel_order", "crops"}


def test_the_tables_name_every_public_function_of_their_modules_and_no_other() -> None:
    tables = (ROOT / "docs" / "masks.md").read_text("utf-8").partition("## All functions")[2].split("\n\n")
    seen = set()
    for rows in (table.splitlines() for table in tables if table.startswith("| `")):
        named = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in rows]
        public = set()
        for module in named[0]:
            nodes = ast.parse((ROOT / "penstock" / "geometry" / f"{module}.py").read_text("utf-8")).body
            public |= {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
        assert set().union(*named[1:]) == public
        seen |= named[0]
    assert seen >= MODULES
