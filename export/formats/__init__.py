"""One kind of exported file a module."""
