"""Memory and interrupts; no test without a ComfyUI runs a node that asks for them."""
