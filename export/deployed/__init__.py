"""The deployed model: the inference arithmetic of a trained model, with weights folded into fewer operations."""
