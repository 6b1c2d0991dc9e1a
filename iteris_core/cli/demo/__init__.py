"""`iteris demo`: a merge of two LoRAs inside a real, headless ComfyUI, end to end, with one
command.
"""
