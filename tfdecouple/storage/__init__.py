"""Files that a run keeps: written whole or not at all, and opened again."""
