"""What the devices of a pirate see while a model answers, and what that tells of its layers."""
