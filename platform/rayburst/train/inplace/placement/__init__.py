"""Where the workers of a group that is rebuilt in place are held."""
