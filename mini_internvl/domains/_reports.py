"""Radiology reports in plain text: which of their sections describe the images.

A section begins with its name in capitals and a colon (``FINDINGS:``). Findings and impression are what an image can
teach; indication, comparison and technique are not in it. A report with neither gives its last section, which is where
some reports hold both under another name.
"""

from __future__ import annotations

import re

WANTED = ("FINDINGS", "IMPRESSION")
_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ,/&()-]{2,40}):", re.MULTILINE)


def described(report: str) -> str:
    """The sections of a report that describe its images, each with its name; "" where the report is empty."""
    found = list(_HEADING.finditer(report))
    if not found:
        return " ".join(report.split())
    ends = [*(match.start() for match in found[1:]), len(report)]
    sections = [(match[1].strip(), report[match.end() : end]) for match, end in zip(found, ends, strict=True)]
    kept = {name: text for name, text in sections if name in WANTED and text.strip()}
    if not kept:
        return " ".join(next((text for _, text in reversed(sections) if text.strip()), "").split())
    return joined(kept.get("FINDINGS", ""), kept.get("IMPRESSION", ""))


def joined(findings: str, impression: str) -> str:
    """Findings and impression as one text; either may be empty."""
    named = (("Findings", findings), ("Impression", impression))
    return "\n".join(f"{name}: {' '.join(text.split())}" for name, text in named if text.strip())
