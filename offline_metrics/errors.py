"""The one exception of this package."""


class MetricError(Exception):
    """Something the user can put right: one line that says what, where, what was expected and what to do."""
