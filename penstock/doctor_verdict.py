"""One line of the doctor's."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Verdict:
    """What was looked at, and what was found."""

    section: str
    name: str
    status: Literal["ok", "warn", "fail", "off"]
    """"off": not set up, and nothing wrong."""
    message: str
    next_step: str = ""
    """What to do; empty where there is nothing to do."""
    is_absent: bool = False
    """The folder holds nothing of the kind looked for; another reader may find its own there."""


def ok(section: str, name: str, message: str) -> Verdict:
    """Fine."""
    return Verdict(section, name, "ok", message)


def warn(section: str, name: str, message: str, next_step: str = "") -> Verdict:
    """Works, but look at it."""
    return Verdict(section, name, "warn", message, next_step)


def fail(section: str, name: str, message: str, next_step: str, *, absent: bool = False) -> Verdict:
    """Does not work."""
    return Verdict(section, name, "fail", message, next_step, absent)


def off(section: str, name: str, message: str, next_step: str = "") -> Verdict:
    """Not set up."""
    return Verdict(section, name, "off", message, next_step)
