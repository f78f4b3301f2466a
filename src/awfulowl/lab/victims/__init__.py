"""Networks that are robbed: what they learn from, how they are trained, and how one is cut behind a layer."""
