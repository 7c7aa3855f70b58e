"""A comparison as text: terminal, Markdown, CSV and LaTeX."""
