"""Quantising: a model becomes graphs for OpenVINO on a CPU, and what that changes is measured before it is kept."""
