"""How rows ended and how a run ended: Outcome, Report, and the failure budget."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction

from penstock.errors import UsageError

MAX_LISTED = 10
"""Failures that a report lists in full; all of them are in `_failures.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one row ended, where it did not simply succeed."""

    key: str
    error: str
    """Class name of the error."""
    message: str
    source: str = ""
    """Name of the file that the row comes from."""
    attempt: int = 1

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """How many rows may fail: a count, or a fraction of the rows planned."""

    limit: int | Fraction

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Reads "12" (rows) or "0.5%" (of the rows planned).

        Raises:
            UsageError: neither.
        """
        try:
            if text.endswith("%"):
                share = Fraction(text[:-1]) / 100
                if 0 <= share <= 1:
                    return cls(share)
            elif int(text) >= 0:
                return cls(int(text))
        except (ValueError, ZeroDivisionError):
            pass
        raise UsageError(f"max-failures: expected a count such as 12 or a percentage such as 0.5%, got {text!r}")

    def allows(self, failed: int, planned: int) -> bool:
        """Whether so many failures of so many planned rows are within the budget."""
        return failed <= (self.limit if isinstance(self.limit, int) else self.limit * planned)

    def __str__(self) -> str:
        return str(self.limit) if isinstance(self.limit, int) else f"{float(self.limit) * 100:g}%"


@dataclass(kw_only=True)
class Report:
    """How a run ended. Counts are of the rows that the run was asked for, so they are right after any restart."""

    command: str
    output: str
    planned: int = 0
    """Rows offered by the input: done + failed + missing."""
    done: int = 0
    """Rows that are done now, whether in this run or before."""
    failed: int = 0
    """Rows that failed, in this run or before."""
    skipped: int = 0
    """Of the done and failed rows, those that this run left as it found them."""
    seconds: float = 0.0
    bytes_written: int = 0
    budget: Budget = field(default_factory=lambda: Budget(0))
    interrupted: str = ""
    """Why the run stopped before its end: a signal's name, or a spent budget."""
    failures: list[Outcome] = field(default_factory=list)
    """The first few failures."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Failures of this run by error class."""
    problems: list[dict[str, str]] = field(default_factory=list)
    """Faults of whole input files, beside their rows."""
    notes: dict[str, object] = field(default_factory=dict)
    """What the command adds: repeated ids, ignored members, parts that other drivers hold."""
    report: str = ""
    """Path of report.html, once written."""

    @property
    def missing(self) -> int:
        """Rows neither done nor failed."""
        return self.planned - self.done - self.failed

    def add_failure(self, outcome: Outcome) -> None:
        """Counts a row that failed in this run."""
        self.failed += 1
        self.reasons[outcome.error] += 1
        if len(self.failures) < MAX_LISTED:
            self.failures.append(outcome)

    @property
    def within_budget(self) -> bool:
        """Whether failed rows and faulty input files together are within the budget."""
        return self.budget.allows(self.failed + len(self.problems), max(1, self.planned))

    @property
    def status(self) -> str:
        """ "ok": all done, or within the budget; "partial": some rows are done; "failed": none is."""
        if not self.done:
            return "failed"
        return "ok" if self.within_budget and not self.missing and not self.interrupted else "partial"

    @property
    def exit_code(self) -> int:
        """0 ok; 1 rows failed beyond the budget, rows are missing, or nothing was done."""
        return 0 if self.status == "ok" else 1

    def to_json(self) -> dict[str, object]:
        """The JSON object that every job prints."""
        rows = {n: getattr(self, n) for n in ("planned", "done", "failed", "missing", "skipped")}
        return {
            "command": self.command,
            "status": self.status,
            "rows": rows,
            "seconds": round(self.seconds, 3),
            "bytes_written": self.bytes_written,
            "output": self.output,
            "report": self.report,
            "failures": [failure.to_json() for failure in self.failures],
            "reasons": dict(self.reasons),
            "problems": list(self.problems),
            "max_failures": str(self.budget),
            "interrupted": self.interrupted,
            **self.notes,
        }

    def summary(self) -> str:
        """One line for people."""
        rate = f"{self.bytes_written / 1e6 / self.seconds:.0f} MB/s" if self.seconds and self.bytes_written else ""
        parts = [f"{self.done} of {self.planned} rows done", f"{self.failed} failed", f"{self.missing} missing"]
        if self.skipped:
            parts.append(f"{self.skipped} left as they were")
        tail = f" ({', '.join(part for part in (f'{self.seconds:.1f} s', rate) if part)})"
        return f"{self.output}: {', '.join(parts)}{tail}"


def dump_json(content: Mapping[str, object]) -> str:
    """One line of JSON, non-ASCII kept; escaped only where a file name is no UTF-8."""
    text = json.dumps(content, ensure_ascii=False)
    has_surrogates = not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text)
    return json.dumps(content) if has_surrogates else text
