"""Short descriptions of a value for a prompt and for a notebook: a title, and a table of names and texts."""

import html
from collections.abc import Mapping


def format_summary(title: str, facts: Mapping[str, str]) -> str:
    """Return ``title`` and one indented line per fact, with the texts in one column."""
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in facts.items())])


def format_summary_html(title: str, facts: Mapping[str, str]) -> str:
    """Return the summary as an HTML table for a notebook."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(name)}</th>'
        f'<td style="text-align: left">{html.escape(text)}</td></tr>'
        for name, text in facts.items()
    )
    return f"<div><strong>{html.escape(title)}</strong><table><tbody>{rows}</tbody></table></div>"
