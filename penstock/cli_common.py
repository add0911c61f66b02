"""What the modules of the command line share: exit codes and the flags of every command."""

from typing import Annotated

from cyclopts import Parameter

OK, FAULT, MISUSE = 0, 1, 2
"""Exit codes: done within the budget; rows failed beyond it or a check found a fault; wrong flag, path or extra."""

Json = Annotated[bool, Parameter(help="Print one JSON object on stdout, and nothing else there.", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def dashed(argument: str) -> str:
    """`--max_samples=5` as `--max-samples=5`: in every flag `_` and `-` are the same."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if argument.startswith("--") else argument
