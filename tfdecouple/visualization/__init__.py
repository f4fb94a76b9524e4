"""Pictures: grids of images, curves of training, codes in the plane, confusion matrices, and photographs."""
