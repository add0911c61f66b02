"""How a script of the seeds ends: flags with `_` or `-`, errors as one line, exit codes as the command line's."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from penstock.cli_common import EVERY_FLAG, FAULT, MISUSE, OK, dashed
from penstock.errors import PenstockError, UsageError


def run_script(app: App, argv: Sequence[str]) -> int:
    """Runs a script's application.

    Returns:
        What its command returns; 0 if that is no number; 1 for an error of penstock; 2 for misuse.
    """
    app.default_parameter = EVERY_FLAG
    try:
        code = app([dashed(word) for word in argv], exit_on_error=False, print_error=True)
    except CycloptsError:
        return MISUSE
    except PenstockError as error:
        sys.stderr.write(f"penstock: {error}\n")
        return MISUSE if isinstance(error, UsageError) else FAULT
    return code if isinstance(code, int) else OK
