"""Check every contract along the chain of artifacts, one line each: kept or
broken, with both values.

  jaxlm check runs/quickstart
  jaxlm check runs/quickstart/tokenizer runs/quickstart/data

Exits with 1 if any is broken.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

from jaxlm.cli.output import Output
from jaxlm.contract import Finding

WRAP: dict[str, Any] = {"drop_whitespace": True, "break_long_words": False, "break_on_hyphens": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm check`."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, tokenizer, data, checkpoint or evaluation")
    parser.add_argument("--quiet", action="store_true", help="print broken contracts only")


def short(value: Any) -> str:
    """A value for a line of text: digests cut to what tells them apart."""
    text = " ".join(re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value)).split())
    return text if len(text) <= 160 else text[:157] + "..."


def values(finding: Finding) -> str:
    """Both values of a kept contract, or the one where they say the same."""
    expected, found = short(finding.expected), short(finding.found)
    return expected if expected == found or expected.endswith(f": {found}") else f"{expected}; found {found}"


def lines(finding: Finding, root: Path) -> list[str]:
    """A finding for a person in one line, its artifact as seen from `root`; on a terminal wrapped to its width."""
    place = finding.artifact.removeprefix(f"{root}{os.sep}") if finding.artifact != str(root) else "."
    if finding.kept:
        line = f"kept    {finding.contract:<11} {place}: {values(finding)}"
    else:
        line = f"BROKEN  {finding.contract:<11} {place}: expected {short(finding.expected)}; found {short(finding.found)}"
        line += f". {' '.join(finding.remedy.split())}" if finding.remedy else ""
    if not sys.stdout.isatty():
        return [line]
    width = max(40, shutil.get_terminal_size().columns)
    return textwrap.wrap(line, width, subsequent_indent=" " * 20, **WRAP)


def run(args: argparse.Namespace, out: Output) -> int:
    """Check."""
    from jaxlm.run import audit

    findings: list[Finding] = []
    for path in map(Path, args.paths):
        found = audit(path)
        shown = [finding for finding in found if not (finding.kept and args.quiet)]
        if shown:
            out.line(str(path))
        for finding in shown:
            for line in lines(finding, path):
                out.line(line)
        findings += found
    broken = [finding for finding in findings if not finding.kept]
    out.line(f"{len(findings) - len(broken)} kept, {len(broken)} broken")

    def listed(kept: bool) -> list[dict[str, Any]]:
        names = ("contract", "artifact", "expected", "found")
        return [{name: str(getattr(f, name)) for name in names} for f in findings if f.kept is kept]

    out.result({"kept": listed(True), "broken": listed(False)})
    return 1 if broken else 0
