"""Findings as documents: a self-contained HTML page, Markdown, SARIF."""
