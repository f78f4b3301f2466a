"""The pirate lab: what a stolen share of a model is worth, measured against what it costs to do without."""
