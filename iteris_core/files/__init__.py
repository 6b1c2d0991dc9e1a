"""From a file to an adapter, and back: safetensors in the names of kohya, diffusers and PEFT, the
kinds of LoRAs, block weights, trigger words and metadata; whole files on the disk; and the bounds
of what a stranger's file may hold.
"""
