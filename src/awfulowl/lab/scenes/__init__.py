"""Scenes: what a pirate is assumed to have, what it drew, and how right it was."""
