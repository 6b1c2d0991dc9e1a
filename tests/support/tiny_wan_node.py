"""A custom node that makes a tiny Wan and its text encoder: a real one has no small checkpoint."""

import sys

SUPPORT = "folder of this file before it was copied"


class TinyWan:
    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"unet_name": ("STRING", {}), "seed": ("INT", {})}}

    def make(self, unet_name, seed):
        sys.path.append(SUPPORT)
        import tiny_hosts

        tiny = tiny_hosts.TINY["Wan"]
        return tiny_hosts.model_of(tiny, seed=seed), tiny_hosts.clip_of(tiny)


NODE_CLASS_MAPPINGS = {"TinyWan": TinyWan}
