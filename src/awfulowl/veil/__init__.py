"""Defences between owner and devices: one file each, and a catalogue."""
