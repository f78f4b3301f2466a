"""Where blocks live: rules, plans, who saw what, and the plan file."""
