"""One question a file; peers are rows."""
