"""Whole training jobs on a stranger's machine, and the proof that the work was really done (Lab Apex)."""
