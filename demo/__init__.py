"""The demo: a small model and three LoRAs, which `iteris demo` merges in a headless ComfyUI; how
they were trained is in `train`.
"""
