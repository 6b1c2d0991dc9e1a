"""The families that `tests/comfy` checks."""

from comfy_process import has_newer_classes


def numbers(text: str) -> dict[str, int]:
    pairs = (part.split(": ") for part in " ".join(text.split()).split(", "))
    return {name: int(number) for name, number in pairs}


# Family -> layers that a LoRA of all of them changes.
LAYERS = numbers("""SD1.5: 68, SDXL: 96, SDXL v-prediction: 96, SD3.5: 62, Flux.1: 54, Flux.2: 31, Chroma: 29,
    Z-Image: 40, Qwen-Image: 34, AuraFlow: 30, Wan: 27, Wan 2.2 I2V: 27, Wan 2.1 I2V: 33,
    HunyuanVideo: 55, HunyuanVideo I2V: 55, HunyuanVideo 1.5: 33, Lumina 2: 40,
    Cosmos Predict2: 38, LTX-Video: 27, Chroma Radiance: 27, Wan 2.2 5B: 27, Flux.1 Kontext: 54,
    Qwen-Image Edit: 34""")
# Those that ComfyUI 0.3.75 does not have; run on a newer one, see CONTRIBUTING.
NEWER = numbers(
    """Anima: 99, Krea 2: 56, LongCat-Image: 32, ERNIE-Image: 20, Kandinsky 5: 36, Wan CausalAR: 27"""
)
# Those of which `check_spellings` knows what trainers write.
TRAINED = [
    *("SD1.5", "SD3.5", "Flux.1", "Flux.2", "Chroma", "Z-Image", "Qwen-Image", "AuraFlow", "Wan"),
    *("Wan 2.1 I2V", "Cosmos Predict2", "LTX-Video", "HunyuanVideo", "Lumina 2", "Chroma Radiance"),
]
if has_newer_classes():
    LAYERS |= NEWER
    TRAINED += ["Anima", "ERNIE-Image", "LongCat-Image"]
