"""Attacks: one file each, and one line each in the catalogue."""
