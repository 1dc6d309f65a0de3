"""Run folders: their files, locking, checkpoints, atomic writing."""
