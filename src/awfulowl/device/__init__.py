"""The untrusted end: holds blocks in memory, multiplies, and runs no code that it is sent."""
