"""Recipes of training: what to train on what, how, and the loop that does it, here or on a fleet."""
