"""Programs that measure: how fast, how large, and how both grow. Each prints its figures as JSON."""
