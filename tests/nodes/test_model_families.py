"""Which models can be measured, told by ComfyUI's class; the others are refused with their reason."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from iteris_pack.nodes.host.checks import row_of
from iteris_pack.nodes.host.families import HOST_FAMILIES, REFUSED
from iteris_pack.nodes.prepared import check_untested, of_editing

from iteris_core import ConfigError, IterisError
from iteris_core.diffusion.calibration import Calibration
from iteris_core.files.families import FAMILIES, Family


def model(kind, model_type="EPS", **unet_config):
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
        ("WAN21_Camera", "reads more than text and a first picture, .* on Wan's model of that"),
        ("HiDream", "whose experts see a part of the tokens each, .* a model without experts"),
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


def of_latents(kind, concat_keys=(), **latents):
    """Return a MODEL of a class that no row names, with latents as ComfyUI describes them."""
    made = model(kind, guidance_embed=kind == "Distilled")
    made.model.latent_format = SimpleNamespace(temporal_downscale_ratio=4, **latents)
    made.model.concat_keys = concat_keys
    return made


def test_a_class_that_no_row_names_has_a_row_of_what_it_says_of_itself():
    row = row_of(of_latents("Lens", latent_dimensions=2, spacial_downscale_ratio=16))
    assert not row.family.is_tested and row.text_encoders == () and row.swept == ()
    assert (row.family.name, row.downscale) == ("Lens", 16)
    assert (row.family.guidance, row.family.frames_of(0)) == (4, 1)
    video = row_of(of_latents("Distilled", latent_dimensions=3)).family
    assert (video.guidance, video.frames_of(5), video.latent_frames(5)) == (1, 5, 2)


@pytest.mark.parametrize(
    ("latents", "said"),
    [
        ({"latent_dimensions": 1}, "its latents have 1 side, so that it draws neither pictures"),
        ({"concat_keys": ("mask",)}, r"reads another picture beside the noisy one \(mask\)"),
    ],
)
def test_a_class_that_cannot_be_tried_is_refused_with_the_reason(latents, said):
    with pytest.raises(IterisError, match=said) as error:
        row_of(of_latents("New", **latents))
    text = str(error.value)
    assert "class New, which IterIS does not know how to measure" in text
    assert text.endswith("ask for New at the pack's issue tracker")


def test_more_channels_of_wan_are_its_models_of_image_to_video():
    of_picture = row_of(model("WAN21_T2V", in_dim=36))
    assert of_picture.start == ("concat_latent_image", "concat_mask")
    assert "clip_vision_output" in row_of(model("WAN21_I2V", in_dim=36)).start
    text = refusal("WAN21_T2V", in_dim=48)
    assert "editing or control model of Wan: it reads 48 channels" in text


def test_more_channels_are_an_inpainting_model():
    said = "editing or control model of SD1.5: it reads 9 channels, and calibration has the 4"
    assert said in refusal("SD15", in_channels=9)
    assert row_of(model("SD15", in_channels=4)).family.name == "SD1.5"


def test_the_edm_kind_is_refused():
    assert "SDXL of the EDM kind, such as Playground 2.5" in refusal("SDXL", "EDM", in_channels=4)


def test_a_class_that_was_never_tested_is_warned_of_and_has_no_scenes():
    family = Family("Lens", guidance=4.0, is_tested=False)
    calibration = Calibration().for_family(family)
    [note] = check_untested(family, calibration)
    assert note.kind == "untested"
    assert "merging on Lens" in note.text and "guidance 4, and on single pictures" in note.text
    assert check_untested(FAMILIES["SD1.5"], calibration) == []
    with pytest.raises(ConfigError, match="not known which of its layers read the text"):
        check_untested(family, replace(calibration, scene_weight=0.3))


def test_an_editing_model_is_measured_with_pictures_or_the_report_says_so():
    calibration = Calibration().for_family(FAMILIES["Flux.1"])

    def notes(references, is_for_editing, **changes):
        base = SimpleNamespace(references=references, family=FAMILIES["Flux.1"])
        base.is_for_editing = lambda texts: is_for_editing
        return [note.text for note in of_editing(base, (), replace(calibration, **changes))]

    assert notes(0, False) == []
    (told,) = notes(0, True)
    assert "edits pictures, by its file's name" in told
    assert told.endswith("ReferenceLatent to start")
    assert "with the middle of 2 pictures to edit" in notes(2, False)[0]
    with pytest.raises(ConfigError, match="scenes of several LoRAs cannot be measured with them"):
        notes(1, True, scene_weight=0.3)
