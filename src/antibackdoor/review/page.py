"""What the page of a review shows and answers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from antibackdoor.errors import RunError
from antibackdoor.report.words import printable
from antibackdoor.review.pictures import Picture, Pictures
from antibackdoor.review.session import ReviewSession, Said
from antibackdoor.review.suspects import Evidence, Group, evidence_of

CARDS = 60  # suspects that the page loads at a time


@dataclass(frozen=True)
class Card:
    """One suspect on the page."""

    row: int
    said: str
    evidence: Evidence
    picture: Picture | None


@dataclass(frozen=True, eq=False)
class ReviewPage:
    """The page of one review.

    Attributes:
        session: The decisions.
        pictures: What the suspects look like.
        trigger: What they have in common; None if that is not known.
        title: Name of the run.
        headline: What is suspected, in one sentence.
        notes: What the reader must know besides, such as that some pictures are missing.
        next_step: The command that uses the decisions.
        nonce: Marks the page's own script and style; another one for each review.
    """

    session: ReviewSession
    pictures: Pictures
    trigger: Picture | None
    title: str
    headline: str
    notes: tuple[str, ...]
    next_step: str
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def policy(self) -> str:
        """Nothing but the page's own script and style runs, and nothing is fetched from elsewhere."""
        nonce = f"'nonce-{self.nonce}'"
        return (
            f"default-src 'none'; img-src data:; style-src {nonce}; script-src {nonce}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def html(self) -> str:
        """The page; the suspects follow group by group."""
        groups = [(number, group, self.session.counts(group)) for number, group in enumerate(self.session.groups)]
        n_suspects = sum(len(group.rows) for group in self.session.groups)
        return _render("page.html.j2", page=self, groups=groups, n_suspects=n_suspects)

    def cards(self, number: int, start: int) -> str:
        """The suspects of a group from a position on, as a part of the page.

        Raises:
            RunError: There is no such group.
        """
        group = self._group(number)
        rows = group.rows[max(0, start) : max(0, start) + CARDS].tolist()
        shown = [
            Card(row, self.session.said(row), evidence_of(self.session.table, row), self.pictures(row)) for row in rows
        ]
        return _render("cards.html.j2", cards=shown)

    def decide(self, rows: Sequence[int], decision: str) -> dict[str, Any]:
        """Say one thing of some suspects."""
        return self._answer(self.session.decide(rows, decision))

    def decide_group(self, number: int, decision: str) -> dict[str, Any]:
        """Say one thing of a whole group."""
        return self.decide(self._group(number).rows.tolist(), decision)

    def undo(self) -> dict[str, Any]:
        """Take the last decision back."""
        return self._answer(self.session.undo())

    def _group(self, number: int) -> Group:
        if not 0 <= number < len(self.session.groups):
            raise RunError("there is no such group in this run")
        return self.session.groups[number]

    def _answer(self, changed: Said) -> dict[str, Any]:
        return {"changed": changed, "counts": [self.session.counts(group) for group in self.session.groups]}


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("antibackdoor.review", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["name"] = printable
    return environment.get_template(template).render(**values)
