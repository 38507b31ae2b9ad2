"""The report of a run: a page that needs no network, and its figures as files."""
