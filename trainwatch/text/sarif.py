"""Findings as SARIF 2.1.0, which code hosts show beside a commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainwatch.diagnosis import Diagnosis
from trainwatch.schema import VERSION, Finding
from trainwatch.text import wording

LEVELS = {"info": "note", "warning": "warning", "critical": "error"}


def document(diagnoses: Sequence[Diagnosis], unread: Sequence[str], summaries: Mapping[str, str]) -> dict[str, Any]:
    """One SARIF log; ``unread`` are the sentences about paths that could not be judged, ``summaries`` say of each
    rule in one line what it sees."""
    used = sorted({finding.rule for said in diagnoses for finding in said.findings})
    driver = {
        "name": "trainwatch",
        "rules": [{"id": rule, "shortDescription": {"text": summaries.get(rule) or rule}} for rule in used],
    }
    invocation = {
        "executionSuccessful": not unread,
        "toolExecutionNotifications": [{"level": "error", "message": {"text": why}} for why in unread],
    }
    results = [_result(said, finding) for said in diagnoses for finding in said.findings]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "invocations": [invocation], "results": results}],
    }


def _result(said: Diagnosis, finding: Finding) -> dict[str, Any]:
    key = "/".join(str(part) for part in (said.run, *finding.key))
    where = finding.evidence  # of lint: the place in a file
    region = {"startLine": where.get("line", 1), **({"startColumn": where["column"]} if "column" in where else {})}
    uri = Path(str(where.get("file", said.source))).as_posix()
    place = {"artifactLocation": {"uri": uri}, "region": region}
    text = wording.clean(finding.message) + (f" {wording.clean(finding.advice)}" if finding.advice else "")
    return {
        "ruleId": finding.rule,
        "level": LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [{"physicalLocation": place, "logicalLocations": [{"fullyQualifiedName": finding.subject}]}],
        "partialFingerprints": {f"trainwatch/v{VERSION}": key},
        "properties": {"run": said.run, **finding.to_dict()},
    }
