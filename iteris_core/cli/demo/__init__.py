"""The command `iteris demo`: a merge of LoRAs inside a real, headless ComfyUI."""
