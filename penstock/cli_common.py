"""What the modules of the command line share: exit codes and the flags of every command."""

from collections.abc import Sequence
from typing import Annotated, Any, get_args

from cyclopts import Parameter, Token, convert

OK, FAULT, MISUSE = 0, 1, 2
"""Exit codes: done within the budget; rows failed beyond it or a check found a fault; wrong flag, path or extra."""

Json = Annotated[bool, Parameter(help="Print one JSON object on stdout, and nothing else there.", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def dashed(argument: str) -> str:
    """`--max_samples=5` as `--max-samples=5`: in every flag `_` and `-` are the same."""
    name, equals, value = argument.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if argument.startswith("--") else argument


def _converted(hint: Any, tokens: Sequence[Token]) -> Any:
    """As cyclopts converts a flag's words, which takes 1.5 for 2 where a whole number is wanted."""
    if hint is int or (int in get_args(hint) and float not in get_args(hint)):
        for token in tokens:
            if _is_fraction(token.value):
                raise ValueError(f"expected a whole number, got {token.value}")
    return convert(hint, tokens)


def _is_fraction(text: str) -> bool:
    try:
        return not float(text).is_integer()
    except ValueError:  # no number at all, or 0x10: cyclopts says it
        return False


EVERY_FLAG = Parameter(converter=_converted)
"""What holds for the flags of every command."""
