"""The arithmetic of a trained model as it is deployed."""
