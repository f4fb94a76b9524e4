"""Run folders, opened as models and saved; published weights; and directions in z."""
