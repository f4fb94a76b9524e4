"""The deployed model, the inference graph of an export: a trained model with weights folded into fewer operations."""
