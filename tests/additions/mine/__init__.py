"""Additions to tfdecouple, one of each kind: the recipes of docs/extending.md."""
