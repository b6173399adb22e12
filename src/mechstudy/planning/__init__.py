"""What a study will need, from shapes alone; nothing is run."""
