"""Functions that draw grids of images and plots (curves, codes, histograms), and that edit full-size photographs."""
