"""Data sets of images and labels, and functions that make training and evaluation batches of them (appendix C.1).

>>> from tfdecouple.config import DataConfig
>>> from tfdecouple.data.sources import open_source
>>> source = open_source(DataConfig(source="photographs"), (32, 32, 3))
>>> source.sizes
{'train': 32768, 'validation': 512, 'test': 1000}
"""
