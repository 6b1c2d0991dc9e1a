"""The command `iteris demo`: a merge of two LoRAs inside a real, headless ComfyUI."""
