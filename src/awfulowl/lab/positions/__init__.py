"""What searches for the positions of blocks are made of."""
