"""Say whether an answer is right, from secrets much smaller than the weights and at a stated miss rate."""
