"""LoRA files in the names of trainers: read whole, and as ComfyUI's own loader reads them.

With every change one family is checked, the others nightly.
"""

import pytest
from comfy_process import figures_of, has_newer_classes

# Family -> files. Those of which diffusers has another class than ComfyUI have twice as many.
FILES = {
    "SD1.5": 40,
    "SD3.5": 72,
    "Flux.1": 72,
    "Flux.2": 72,
    "Chroma": 72,
    "Z-Image": 72,
    "Qwen-Image": 72,
    "AuraFlow": 72,
    "Wan": 72,
    "Wan 2.1 I2V": 72,
    "Cosmos Predict2": 72,
    "LTX-Video": 72,
    "HunyuanVideo": 36,
    "Lumina 2": 36,
    "Chroma Radiance": 36,
}
NEWER = {"Anima": 72, "ERNIE-Image": 72, "LongCat-Image": 72}
if has_newer_classes():
    FILES |= NEWER
EACH_CHANGE = "SD3.5"
ROUNDING = 1e-5


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name == EACH_CHANGE else pytest.mark.nightly)
        for name in FILES
    ],
)
def test_files_of_trainers_are_read_whole_and_as_comfyui_reads_them(family):
    files = figures_of("spelling_checks.py", family)
    assert len(files) == FILES[family]
    for file in files:
        called = (file["names"], file["start"], file["kind"])
        assert "refused" not in file, (*called, file["refused"])
        assert file["unread"] == [], called
        assert file["missed"] == [], called
        assert file["error"] < ROUNDING, called
        assert file.get("taken off", 0) < ROUNDING, (
            called
        )  # the same LoRA, off a model that carries it
    # at least the model's own names, in two styles, are ComfyUI's, too
    assert sum(file["compared"] == file["layers"] for file in files) >= 8
