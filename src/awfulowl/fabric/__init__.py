"""Move frames between the owner and its devices: in one process, through NATS, with faults, or sealed."""
