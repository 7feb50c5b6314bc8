"""The map of the papers: what each equation, table, figure and claim became here. Imports no torch."""

from limbeck.papers.entries import KINDS, STATUSES, Entry, Paper, find, load_papers, pointer_kind

__all__ = ["KINDS", "STATUSES", "Entry", "Paper", "find", "load_papers", "pointer_kind"]
