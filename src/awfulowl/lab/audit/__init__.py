"""The audit: cells of work, who works on them, and the tables that come of it."""
