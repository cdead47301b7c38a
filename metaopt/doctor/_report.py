"""The doctor's report: rows of (subject, verdict, remark), as text and as HTML."""

from __future__ import annotations

import html
from typing import Literal, NamedTuple

__all__ = ["GOOD", "Report", "Row", "Verdict"]

Verdict = Literal["works", "works by rewrite", "works, slowly", "unsupported", "wrong", "look"]
GOOD = ("works", "works by rewrite", "works, slowly")


class Row(NamedTuple):
    """One finding. ``subject`` is a module's path, a check or a flag."""

    subject: str
    kind: str
    verdict: Verdict
    remark: str = ""


class Report(NamedTuple):
    """What `doctor` found: ``modules``, ``checks`` of the whole loss, and ``flags`` to look at."""

    modules: list[Row]
    checks: list[Row]
    flags: list[Row]

    @property
    def ok(self) -> bool:
        """Tell whether every module and every check works; flags are for a person to judge."""
        return all(row.verdict in GOOD for row in (*self.modules, *self.checks))

    def _tables(self) -> list[tuple[str, list[Row]]]:
        tables = [("module", self.modules), ("check", self.checks), ("look at", self.flags)]
        return [(title, rows) for title, rows in tables if rows]

    def __repr__(self) -> str:
        lines = ["healthy" if self.ok else "not healthy: see what is unsupported or wrong"]
        for title, rows in self._tables():
            header = (title, "", "verdict", "remark")
            columns = list(zip(header, *rows, strict=True))
            widths = [max(len(cell) for cell in column) for column in columns[:3]]
            lines.append("")
            for row in (header, *rows):
                cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
                lines.append("  ".join((*cells, row[3])).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = {"unsupported": "#b00020", "wrong": "#b00020", "look": "#8a6100"}
        parts = [f"<p><b>{'healthy' if self.ok else 'not healthy'}</b></p>"]
        for title, rows in self._tables():
            body = "".join(
                f"<tr><td><code>{html.escape(r.subject)}</code></td><td>{html.escape(r.kind)}</td>"
                f'<td style="color:{colour.get(r.verdict, "#1b5e20")}">{r.verdict}</td>'
                f'<td style="text-align:left">{html.escape(r.remark)}</td></tr>'
                for r in rows
            )
            head = f"<tr><th>{title}</th><th></th><th>verdict</th><th>remark</th></tr>"
            parts.append(f"<table>{head}{body}</table>")
        return "".join(parts)
