"""One attacked layer between known ones: what enters it, its places, and what can be learned of it anew."""
