"""Check every contract along the chain of artifacts: one line a contract, kept or broken, with both values.

  jaxlm check runs/quickstart
  jaxlm check runs/quickstart/tokenizer runs/quickstart/data

Exits with 1 if any is broken.
"""

from __future__ import annotations

import argparse
from typing import Any

from jaxlm.cli.output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `jaxlm check`."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, tokenizer, data, checkpoint or evaluation")
    parser.add_argument("--quiet", action="store_true", help="print broken contracts only")


def short(value: Any) -> str:
    """A value for a line of text: digests cut to what tells them apart."""
    words = [word[:12] if len(word) == 64 and word.isalnum() else word for word in str(value).split()]
    text = " ".join(words)
    return text if len(text) <= 160 else text[:157] + "..."


def run(args: argparse.Namespace, out: Output) -> int:
    """Check."""
    from jaxlm.run import audit

    findings = [finding for path in args.paths for finding in audit(path)]
    for finding in findings:
        if finding.kept and not args.quiet:
            expected, found = short(finding.expected), short(finding.found)
            values = found if expected == found else f"{expected}; found {found}"
            out.line(f"kept    {finding.contract:<11} {finding.artifact}: {values}")
        elif not finding.kept:
            out.line(f"BROKEN  {finding.contract:<11} {finding.artifact}")
            out.line(f"        expected {short(finding.expected)}")
            out.line(f"        found    {short(finding.found)}")
            if finding.remedy:
                out.line(f"        {finding.remedy}")
    broken = [finding for finding in findings if not finding.kept]
    out.line(f"{len(findings) - len(broken)} kept, {len(broken)} broken")

    def listed(kept: bool) -> list[dict[str, Any]]:
        names = ("contract", "artifact", "expected", "found")
        return [{name: str(getattr(f, name)) for name in names} for f in findings if f.kept is kept]

    out.result({"kept": listed(True), "broken": listed(False)})
    return 1 if broken else 0
