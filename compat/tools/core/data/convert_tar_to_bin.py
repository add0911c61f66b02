"""The seed's converter: `penstock convert sa1b-tar` with `--layout v1` unless another layout is given."""

import sys

from penstock.cli import main

if __name__ == "__main__":
    given = any(argument.split("=")[0] == "--layout" for argument in sys.argv[1:])
    sys.exit(main(["convert", "sa1b-tar", *([] if given else ["--layout", "v1"]), *sys.argv[1:]]))
