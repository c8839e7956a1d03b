"""What becomes of a run whose workers have failed."""
