"""A place where somebody else's code runs without network, secrets or disk, for a limited time, and harms nobody."""
