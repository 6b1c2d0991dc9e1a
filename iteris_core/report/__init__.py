"""The report of a merge: its records, its fidelity and its pictures."""
