"""Pictures: grids of images, curves, codes in the plane, confusion matrices."""
