"""Messages and tensors to bytes and back, and the session of owner and device; no I/O, time passed in."""
