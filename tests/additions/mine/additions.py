"""Registers the additions of this package, without importing them."""

from tfdecouple import register

register("transform", "skewed", "mine.transforms:SKEWED")
register("transform", "power", "mine.transforms:POWER")
register("layer", "reflection", "mine.networks:Reflection")
register("conditioner", "far", "mine.networks:FarNet")
register("encoder", "patches", "mine.networks:make_patch_encoder")
register("prior", "gaussian", "mine.networks:make_gaussian_prior")
register("source", "stripes", "mine.data:Stripes")
register("source", "array:PATH", "mine.data:Arrays")
register("schedule", "cosine", "mine.training:fall_by_cosine")
register("logger", "lines", "mine.training:Lines")
register("diagnostic", "largest_v", "mine.training:measure_largest_v")
register("picture", "differences", "mine.training:draw_differences")
register("metric", "brightness", "mine.evaluation:Brightness")
register("endpoint", "reconstruct", "mine.exports:make_reconstruct")
register("format", "weights", "mine.exports:Weights")
register("format", "graphs", "mine.exports:Graphs")
