"""The faces: the demo, the documentation, the benchmarks, and the house itself."""
