"""What the parts cost: commands that print a table of times and write it as JSON."""
