"""Custom nodes that make a tiny Wan, its text encoder and a VAE: real ones are large."""

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

        tiny = tiny_hosts.TINY["Wan 2.2 I2V" if "i2v" in unet_name else "Wan"]
        return tiny_hosts.model_of(tiny, seed=seed), tiny_hosts.clip_of(tiny)


class Means:
    """A VAE whose latents are means of colours, one for 8 x 8 pixels of 4 frames."""

    def encode(self, pixels):
        frames = pixels[::4, ::8, ::8].movedim(-1, 0)
        return frames.repeat(6, 1, 1, 1)[None, :16]


class TinyVAE:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "testing"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (Means(),)


NODE_CLASS_MAPPINGS = {"TinyWan": TinyWan, "TinyVAE": TinyVAE}
