"""Runners that cheat, each knowing the checks."""
