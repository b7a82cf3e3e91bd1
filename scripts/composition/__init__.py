"""From options to objects: what a run may be, checked and built. The packages meet here."""
