"""`python -m tfdecouple doctor`: tests every promise of the project on this machine, and times the model."""
