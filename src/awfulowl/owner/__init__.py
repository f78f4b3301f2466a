"""The trusted end: cuts, sends, adds, checks, and finds another device when one fails."""
