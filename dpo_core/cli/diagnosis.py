"""The command ``diagnose``: what the curves of a training say, as a table."""

from __future__ import annotations

import shutil
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from itertools import zip_longest

from dpo_core.errors import printable
from dpo_core.metrics import History, log_line
from dpo_core.study.diagnose import Finding, diagnose, unasked
from dpo_core.study.logs import read_log

__all__ = ["report", "run_diagnose"]

HEADS = ("found", "by these numbers", "what helps")
SHARES = (0.2, 0.45, 0.35)  # of the width


def run_diagnose(args: Namespace) -> None:
    """Print what ``diagnose`` finds in the log of a training.

    Args:
        args: ``log``, the path.
    """
    log = read_log(args.log)
    print(printable(str(log.file)))
    print(*log.notes, sep="\n", end="\n" if log.notes else "")
    print(report(log.history, min(140, shutil.get_terminal_size((120, 24)).columns)))


def report(history: History, width: int = 120) -> str:
    """Put findings in a table, and say what cannot be known.

    Args:
        history: of a training.
        width: of the table, in characters.

    >>> history = History([{"step": 50, "loss": 5.2}, {"step": 100, "loss": 9.3}])
    >>> print(report(history, 79).split("cannot be known")[0], end="")
    2 rows, to step 100
    step   100 | loss: 9.3000
    <BLANKLINE>
    found          by these numbers                   what helps
    learning rate  a loss of 9.30, above the 0.69 of  divide the learning rate
    too high       a model that was never trained     by 3 to 10, and start
                                                      again from the reference
    <BLANKLINE>
    """
    findings, last = diagnose(history), [row for row in history.rows if "loss" in row][-1]
    last = {name: value for name, value in last.items() if "/" in name or name in ("step", "loss", "eval_loss")}
    lines = [f"{len(history.rows)} rows, to step {history.rows[-1]['step']:.0f}", log_line(last), ""]
    lines += table(findings, width) if findings else ["nothing is found that is known to go wrong"]
    missing = unasked(history)
    if missing:
        lines += ["", "cannot be known, as these metrics were not logged:"]
        lines += [f"  {name}: {', '.join(metrics)}" for name, metrics in missing.items()]
        lines += ["evaluations give those that begin with eval_; with dpo_core, watch(trainer, prompts) gives the rest"]
    lines += ["", "whether the labels are right no curve tells: read answers"]
    return "\n".join(lines)


def table(findings: Sequence[Finding], width: int) -> list[str]:
    """Set findings in three columns.

    Args:
        findings: at least one.
        width: of all columns, in characters.
    """
    widths = [max(12, int(share * width)) for share in SHARES]
    rows = [HEADS, *((f.name + " (a note)" * f.note, f.evidence, f.remedy) for f in findings)]
    lines = []
    for row in rows:
        cells = [textwrap.wrap(printable(text), size - 2) for text, size in zip(row, widths)]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append("".join(part.ljust(size) for part, size in zip(parts, widths)).rstrip())
    return lines
