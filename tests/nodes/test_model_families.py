"""Which models can be measured, told by ComfyUI's class; the others are refused with their reason."""

import re
from types import SimpleNamespace

import pytest
from iteris_pack.nodes.host.families import HOST_FAMILIES, REFUSED, row_of

from iteris_core import IterisError


def model(kind, model_type="EPS", **unet_config):
    """Return a MODEL of a class of ComfyUI's, with settings of its diffusion model."""
    config = type(kind, (), {"unet_config": unet_config})()
    return SimpleNamespace(
        model=SimpleNamespace(model_config=config, model_type=SimpleNamespace(name=model_type))
    )


def refusal(*arguments, **unet_config):
    with pytest.raises(IterisError) as error:
        row_of(model(*arguments, **unet_config))
    return str(error.value)


@pytest.mark.parametrize("kind", HOST_FAMILIES)
def test_a_plain_model_of_each_class_has_its_row(kind):
    row = HOST_FAMILIES[kind]
    channels = {} if row.channels is None else dict([row.channels])
    assert row_of(model(kind, **channels)) is row


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("SDXLRefiner", "is the SDXL refiner, .* Connect the SDXL checkpoint"),
        (
            "FluxInpaint",
            r"inpainting, editing or control model of Flux\.1: .* plain Flux\.1 model;",
        ),
        ("SDXL_instructpix2pix", "editing or control model of SDXL: .* on a plain SDXL model;"),
        ("WAN21_Camera", "reads more than text and a first picture, .* on Wan's model of that"),
        ("WAN22_T2V", r"is Wan 2\.2 5B, .* is not tested\. Merge LoRAs of Wan 2\.1, or of Wan"),
        ("HiDream", "whose experts see a part of the tokens each, .* a model without experts"),
        ("SSD1B", "was cut down, on which merging is not tested. Merge on a whole SDXL checkpoint"),
        ("SD20", r"of the SD2\.x kind, .* Merge LoRAs of SD1\.5 or SDXL"),
        ("Stable_Cascade_B", "is one stage of Stable Cascade, .* a model that draws the picture"),
        ("LTXV", "draws videos, and merging on it is not tested. Merge on a model of pictures"),
        ("StableAudio", "makes sound, and calibration is made of pictures. Merge on a model of"),
        ("Hunyuan3Dv2", "makes 3-D shapes or views of them, .* Merge on a model that draws"),
    ],
)
def test_a_known_class_is_refused_with_its_reason_and_the_next_step(kind, said):
    text = refusal(kind)
    assert text.startswith(f"the MODEL (ComfyUI's class {kind}) ")
    assert re.search(said, text)
    assert "issue tracker" not in text


def test_no_class_is_both_measured_and_refused():
    assert not set(HOST_FAMILIES) & set(REFUSED)


def test_an_unknown_class_can_be_asked_for():
    text = refusal("Lens")
    assert "class Lens, which IterIS does not know how to measure; it merges LoRAs of SD1.5" in text
    assert text.endswith("ask for Lens at the pack's issue tracker")


def test_more_channels_of_wan_are_its_models_of_image_to_video():
    of_picture = row_of(model("WAN21_T2V", in_dim=36))
    assert of_picture.start == ("concat_latent_image", "concat_mask")
    assert (of_picture.low_noise_below, row_of(model("WAN21_T2V")).low_noise_below) == (0.9, 0.875)
    assert "clip_vision_output" in row_of(model("WAN21_I2V", in_dim=36)).start
    assert "editing or control model of Wan: it reads 48 channels" in refusal(
        "WAN21_T2V", in_dim=48
    )


def test_more_channels_are_an_inpainting_model():
    text = refusal("SD15", in_channels=9)
    assert (
        "editing or control model of SD1.5: it reads 9 channels, and calibration has the 4" in text
    )
    assert row_of(model("SD15", in_channels=4)).family.name == "SD1.5"


def test_the_edm_kind_is_refused():
    assert "SDXL of the EDM kind, such as Playground 2.5" in refusal("SDXL", "EDM", in_channels=4)
