"""What a node shows; no test without a ComfyUI shows anything."""
