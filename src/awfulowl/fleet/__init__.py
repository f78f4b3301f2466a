"""A fleet of devices, as its owner holds it: open one, scatter models over it, close it."""
