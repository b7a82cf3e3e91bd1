"""One row of results: flat names and numbers, and for every NaN the reason why there is no number."""

from collections.abc import Mapping
from math import isfinite, isinf, isnan, nan

import numpy as np


class Scores(dict[str, float]):
    """Metric name -> value; `notes` tells for a name whose value is NaN why it could not be computed."""

    def __init__(self, values: Mapping[str, float] | None = None, notes: Mapping[str, str] | None = None) -> None:
        super().__init__(values or {})
        self.notes: dict[str, str] = dict(notes or {})

    def add(self, values: Mapping[str, float], reason: str) -> None:
        """Enter values; each that is NaN gets `reason` as its note."""
        for name, value in values.items():
            self[name] = float(value)
            if isnan(self[name]):
                self.notes[name] = reason

    def as_record(self) -> dict[str, float | None | dict[str, str]]:
        """The form kept on disk: the values side by side, null for a value that is not finite, and "notes"."""
        notes = {name: "infinite" for name, value in self.items() if isinf(value)} | self.notes
        return {name: value if isfinite(value) else None for name, value in self.items()} | {"notes": notes}

    @classmethod
    def from_record(cls, record: Mapping) -> "Scores":
        """Inverse of `as_record`, null read as NaN."""
        values = {name: nan if value is None else value for name, value in record.items() if name != "notes"}
        return cls(values, record.get("notes"))

    def as_arrays(self) -> dict[str, np.ndarray]:
        """The exact form: names, values [M] float64 and the note on each, "" for none."""
        names = list(self)
        values = np.array([self[name] for name in names], dtype=np.float64)
        notes = [self.notes.get(name, "") for name in names]
        return {"names": np.array(names), "values": values, "notes": np.array(notes)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Scores":
        """Inverse of `as_arrays`."""
        names, values, notes = (arrays[key].tolist() for key in ("names", "values", "notes"))
        noted = zip(names, notes, strict=True)
        return cls(zip(names, values, strict=True), {name: note for name, note in noted if note})
