"""Progress bars; no test without a ComfyUI shows one."""
