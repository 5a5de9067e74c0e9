"""The latency model: a roofline with measured roofs, a learned residual, and its file format."""
