"""Tensors of checkpoints: safetensors read and written, masks, fused experts."""
