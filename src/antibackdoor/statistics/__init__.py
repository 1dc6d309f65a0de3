"""Arrays in, arrays out; nothing here imports torch."""
