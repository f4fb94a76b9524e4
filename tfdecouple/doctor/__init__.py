"""`python -m tfdecouple doctor`: whether every promise holds on this machine, and how fast it is."""
