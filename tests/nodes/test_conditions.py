"""What a conditioning at the input start says of pictures."""

import pytest
import torch
from iteris_pack.nodes.host.conditions import check_start, conditions_for, start_of
from iteris_pack.nodes.host.families import HOST_FAMILIES

from iteris_core import ConfigError

LATENTS = torch.zeros(1, 16, 8, 6)


def test_what_is_known_of_pictures_is_taken():
    assert start_of(None) == {}
    first = {"concat_latent_image": LATENTS, "pooled_output": LATENTS}
    assert list(start_of([["text", first]])) == ["concat_latent_image"]
    with pytest.raises(ConfigError, match=r"has no picture\. Connect the output"):
        start_of([["text", {"pooled_output": LATENTS}]])


def test_of_a_picture_to_edit_the_middle_is_read_where_it_is_larger():
    picture = torch.arange(16 * 4).float().view(1, 1, 16, 4)
    given = {"reference_latents": [picture], "reference_latents_method": "index"}
    found = conditions_for((), given, LATENTS)
    assert torch.equal(found["reference_latents"][0], picture[:, :, 4:12])
    assert found["reference_latents_method"] == "index"


def test_a_picture_that_a_model_does_not_read_is_refused():
    check_start({"reference_latents": [LATENTS]}, HOST_FAMILIES["Flux"])
    check_start({"concat_latent_image": LATENTS}, HOST_FAMILIES["WAN21_I2V"])
    for kind, name in (("SDXL", "reference_latents"), ("WAN21_T2V", "concat_latent_image")):
        with pytest.raises(ConfigError, match=f"{name}.*, which this kind of .* does not read"):
            check_start({name: LATENTS}, HOST_FAMILIES[kind])
