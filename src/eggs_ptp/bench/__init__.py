"""Benchmarks of packed against dense on this machine: products of chosen shapes, and text generation."""
