"""Run folders: opening them as models, saving models, publishing weights, and directions in z."""
