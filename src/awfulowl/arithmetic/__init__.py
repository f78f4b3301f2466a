"""Number systems: float32 needs nothing of this; exact integers are quantised, multiplied and packed here."""
