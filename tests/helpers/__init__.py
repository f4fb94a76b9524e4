"""Functions, classes and constants that several test files share; the fixtures are in conftest.py."""
