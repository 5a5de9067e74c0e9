"""What the user sees: measured networks, tables, pictures."""
