"""Serve PyTorch models on machines you do not trust."""
