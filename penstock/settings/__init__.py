"""Where datasets lie: `penstock.toml` and `PENSTOCK_*` variables, read into frozen `Settings`.

A value comes from the first of these that names it: a `PENSTOCK_*` variable, the settings file, the default. One file is
read, the first found of: the path given, `PENSTOCK_SETTINGS`, `penstock.toml` in the working folder and in those above it
(up to the home folder or the root), `penstock/penstock.toml` in the XDG configuration folder.

`import_local_py` reads the settings of the original systems, without running them.
"""

from penstock.settings.file import parse_settings, settings_toml, write_settings
from penstock.settings.keys import KEYS, Key, Settings, reader_path
from penstock.settings.load import Loaded, default_cache_dir, load_settings
from penstock.settings.local_py import ImportedLocal, Unread, import_local_py

__all__ = [
    "KEYS",
    "ImportedLocal",
    "Key",
    "Loaded",
    "Settings",
    "Unread",
    "default_cache_dir",
    "import_local_py",
    "load_settings",
    "parse_settings",
    "reader_path",
    "settings_toml",
    "write_settings",
]
