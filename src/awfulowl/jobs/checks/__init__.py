"""What a verifier checks: the founding paper's checks as printed, and sound ones."""
