"""The result of a scan in the formats that pipelines read: SARIF 2.1.0 and JUnit's XML."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from antibackdoor.errors import spelled_out
from antibackdoor.report.words import Facts, suspected_labels, verdict
from antibackdoor.runs.samples_table import SamplesTable

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_RESULTS = 25_000  # GitHub's limit for one run of a SARIF file
RULES = {
    "poisoned-data": "The data set is very probably poisoned.",
    "suspicious-sample": "The sample looks poisoned and is not trained on under its given label.",
}


def sarif(table: SamplesTable, metrics: Facts, root: str) -> dict[str, Any]:
    """A SARIF log: one result for the data set if it is poisoned, one for each sample that was isolated.

    Args:
        table: The verdict on N samples.
        metrics: What stands in `metrics.json`.
        root: Name of the data, such as `photos`; the samples' ids are paths below it.

    Returns:
        JSON's types. Of more than 25,000 suspects the most suspicious are listed; the message of the data set has
        the full number.
    """
    answer = verdict(metrics)
    results: list[dict[str, Any]] = []
    if metrics.get("poisoned"):
        results.append(_result("poisoned-data", "error", f"{answer.title} {' '.join(answer.sentences)}", root))
    for row in _suspects(table)[: MOST_RESULTS - 1]:
        results.append(_result("suspicious-sample", "warning", _about(table, row), f"{root}/{table.ids[row]}"))
    driver = {
        "name": "antibackdoor",
        "version": version("antibackdoor"),
        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in RULES.items()],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def junit(table: SamplesTable, metrics: Facts) -> str:
    """JUnit's XML: one test case a label, which fails if the label is suspected."""
    suspected = set(suspected_labels(metrics))
    unexamined = set(map(str, metrics.get("unexamined_labels") or []))
    suite = ElementTree.Element("testsuite", name="antibackdoor")
    counts = {"failures": 0, "skipped": 0}
    for number, name in enumerate(table.class_names):
        case = ElementTree.SubElement(suite, "testcase", classname="antibackdoor", name=_xml(name))
        isolated = int((table.isolated & (table.given_label == number)).sum())
        if str(name) in suspected:
            counts["failures"] += 1
            message = f"{isolated} samples of this label look poisoned"
            ElementTree.SubElement(case, "failure", message=message)
        elif str(name) in unexamined:
            counts["skipped"] += 1
            ElementTree.SubElement(case, "skipped", message="too few distinct samples to examine this label")
    suite.set("tests", str(len(table.class_names)))
    for key, n in counts.items():
        suite.set(key, str(n))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _suspects(table: SamplesTable) -> list[int]:
    rows = np.flatnonzero(table.isolated)
    worst_first: list[int] = rows[np.argsort(-table.suspicion[rows], kind="stable")].tolist()
    return worst_first


def _about(table: SamplesTable, row: int) -> str:
    given = table.class_names[table.given_label[row]]
    text = f"Labeled '{given}', suspicion {table.suspicion[row]:.3f}, {table.status[row]}"
    suggested = int(table.verdict.suggested_label[row])
    if suggested != int(table.given_label[row]):
        text += f"; it looks like '{table.class_names[suggested]}'"
    return text + "."


def _result(rule: str, level: str, message: str, path: str) -> dict[str, Any]:
    uri = quote(spelled_out(path), safe="/")
    location = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    return {"ruleId": rule, "level": level, "message": {"text": spelled_out(message)}, "locations": [location]}


def _xml(name: object) -> str:
    """Text that XML can hold: control characters and lone surrogates become visible codes."""
    return spelled_out(str(name))
