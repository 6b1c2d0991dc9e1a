"""Captions in which several LoRAs meet, and the regions of a picture."""

import itertools
from collections import Counter

import pytest
import torch
from fake_host import use
from hypothesis import given
from hypothesis import strategies as st

from iteris_core import CalibrationError, ConfigError
from iteris_core.diffusion.calibration import Calibration
from iteris_core.diffusion.captions import ORDINARY_STYLES, layout_of, regions_of
from iteris_core.diffusion.contexts import Pairing
from iteris_core.diffusion.model import PictureTokens
from iteris_core.diffusion.regions import Region, mask_in_row, mask_on_grid, region_masks
from iteris_core.diffusion.scenes import make_scenes


def tokens_of(text):
    """A tokenizer like CLIP's: words and commas; of a long word, every four letters are a token."""
    return [
        word[i : i + 4] for word in text.replace(",", " , ").split() for i in range(0, len(word), 4)
    ]


def positions_of(text):
    return [1 + i for i in range(len(tokens_of(text)))]  # after the start


def scenes_of(*words, kinds=(), positions=positions_of, length=None, **settings):
    kinds = kinds or ["subject"] * len(words)
    loras = [
        use(word, (), trigger=word, kind=kind) for word, kind in zip(words, kinds, strict=True)
    ]
    plain = {"scene_weight": 0.1, "scene_prefixes": ()}
    return make_scenes(loras, Calibration(**plain | settings), positions, length)


@given(
    seed=st.integers(0, 50),
    words=st.sampled_from(
        [("a <v1>", "a <v2>", "a <longtrigger>"), ("<v1>", "a tall <v2> man", "x")]
    ),
)
def test_own_words_and_the_ends_are_paired_wherever_they_stand(seed, words):
    scenes = scenes_of(*words, "in sks style", kinds=(*["subject"] * 3, "style"), seed=seed)
    differ = 0
    for scene in scenes:
        for member in scene.members:
            own = [*words, "in sks style"][member.lora]
            teacher, student = zip(*member.pairing.words, strict=True)
            for caption, positions in ((member.caption, teacher), (scene.caption, student)):
                assert [tokens_of(caption)[p - 1] for p in positions] == tokens_of(own)
            captions = (member.caption, scene.caption)
            assert member.pairing.ends == tuple(1 + len(tokens_of(text)) for text in captions)
            differ += teacher != student
    assert differ


def test_padding_answers_to_padding_at_the_same_position():
    pairing = Pairing(words=((2, 4), (3, 5)), ends=(5, 7))
    assert pairing.pairs(10) == [(2, 4), (3, 5), (5, 7), (8, 8), (9, 9)]
    assert pairing.weights(10).tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 1, 1]
    numbers = pairing.teacher_tokens(10)
    assert numbers[[4, 5, 7, 8, 9]].tolist() == [2, 3, 5, 8, 9]
    assert pairing.pairs(7) == [(2, 4), (3, 5)]  # no end: one of the captions fills its context


@pytest.mark.parametrize("count", [2, 8])
def test_every_lora_meets_the_others_about_as_often_as_it_has_runs(count):
    words = [f"a <v{k}>" for k in range(count)]
    for runs in (20, 10):
        scenes = scenes_of(*words, trajectories=runs)
        parts = Counter(member.lora for scene in scenes for member in scene.members)
        assert runs * count <= sum(parts.values()) <= runs * count + 2
        assert min(parts.values()) >= 0.6 * runs
        assert max(parts.values()) <= 1.5 * runs


def test_a_style_comes_beside_two_subjects_and_never_beside_itself():
    kinds = ("subject",) * 2 + ("style",) * 2
    scenes = scenes_of("a <v1>", "a <v2>", "in <s1> style", "in <s2> style", kinds=kinds)
    styled = [scene for scene in scenes if len(scene.members) == 3]
    members = {tuple(sorted(member.lora for member in scene.members)) for scene in styled}
    assert members == {(0, 1, 2), (0, 1, 3)}
    for scene in styled:
        assert not any(member.area for member in scene.members)
        *subjects, style = scene.members
        for subject in subjects:
            assert "<s" not in subject.caption
            assert any(ordinary in subject.caption for ordinary in ORDINARY_STYLES)
        assert "<v" not in style.caption


def test_no_form_for_these_loras_is_an_error():
    said = "none of the scene forms fits 0 subjects and 2 styles; give scene_forms that do"
    with pytest.raises(CalibrationError, match=said):
        scenes_of("in a", "in b", kinds=("style", "style"))
    with pytest.raises(CalibrationError, match="fits 1 subjects and 1 styles"):
        scenes_of("a", "in b", kinds=("subject", "style"))
    with pytest.raises(CalibrationError, match="fits 2 subjects and 0 styles"):
        scenes_of("a", "b", scene_forms=("{first}, {second}, {third}",))


def test_teacher_and_student_read_the_same_words_before_the_form_whatever_they_are():
    settings = {"scene_forms": ("{first} & {second}",)}
    settings["scene_prefixes"] = ("above {all}", "{first}", "on the right of")
    scenes = scenes_of("<v1>", "<v2>", **settings, trajectories=20)
    found = set()
    for scene in scenes:
        prefix = scene.caption[: scene.caption.index("<v")]
        found |= {len(prefix.split())}
        assert all(member.area.layout == "columns" for member in scene.members)  # of the form alone
        for member in scene.members:
            assert member.caption.startswith(prefix)
            (own,) = [word for word in ("<v1>", "<v2>") if word in member.caption]
            teacher, student = zip(*member.pairing.words, strict=True)
            for caption, positions in ((member.caption, teacher), (scene.caption, student)):
                assert [tokens_of(caption)[p - 1] for p in positions] == tokens_of(own)
    assert len(found) > 2


def test_a_tokenizer_that_joins_a_trigger_with_its_neighbour_is_refused():
    def joining(text):
        return range(len(text.replace(">,", "").split()))

    said = r"the tokens of '<v.>' cannot be told from their neighbours in '<v.>, <v.>'"
    with pytest.raises(CalibrationError, match=said):
        scenes_of("<v1>", "<v2>", scene_forms=("{first}, {second}",), positions=joining)


def length_of(text):
    return len(tokens_of(text))


@pytest.mark.parametrize(
    "words", [("a sks", "a ohwx"), ("<v1> very long cat", "<v2>", "a <v3> c d")]
)
def test_without_pairs_teachers_read_captions_of_the_students_length_and_regions_alone(words):
    scenes = scenes_of(*words, positions=None, length=length_of)
    assert len(scenes) > 10
    for scene in scenes:
        for member in scene.members:
            assert member.area
            assert member.pairing.ends is None
            assert words[member.lora] in member.caption
            assert length_of(member.caption) == length_of(scene.caption)
            others = [words[other.lora] for other in scene.members if other is not member]
            rest = member.caption.replace(words[member.lora], "")
            assert not any(other in rest for other in others)


def test_a_name_for_which_nothing_ordinary_is_long_enough_is_refused():
    said = r"nothing ordinary has as many tokens as.*fewer words"
    with pytest.raises(CalibrationError, match=said):
        scenes_of(
            "<v1>", "word " * 60, positions=None, length=length_of, companions=("a red chair",)
        )


def test_the_tokens_of_a_picture_or_video_count_beside_the_texts():
    mask = torch.zeros(4, 6)
    mask[:, :3] = 1
    left = [1.0, 0.5, 0.0] * 2
    last = PictureTokens(2, len)
    first = PictureTokens(2, len, come_first=True)
    # both parts are filled up with tokens that are neither
    filled = PictureTokens(2, len, multiple=4)
    assert mask_in_row(mask, 6, last).tolist() == left
    assert mask_in_row(mask, 9, last).tolist() == [0.0] * 3 + left
    assert mask_in_row(mask, 14, first, frames=2).tolist() == left * 2 + [0.0] * 2
    assert mask_in_row(mask, 12, filled).tolist() == [0.0] * 4 + left + [0.0] * 2
    assert mask_in_row(mask, 1, last).tolist() == [0.5]
    assert mask_in_row(torch.ones(3, 3), 4, last).tolist() == [1.0] * 4
    with pytest.raises(CalibrationError, match=r"sees 11 tokens.*2 x 4 x 6 latents have 12"):
        mask_in_row(mask, 11, last, frames=2)
    assert Region(mask)(24).tolist() == mask.flatten().tolist()


ONCE = r"must have {first} and {second}.*each once, and no other placeholder"
BARE = "has a ':' or '!' in curly braces; write the bare name, such as {first}"


UNUSABLE = [
    *(
        ({"scene_forms": (form,)}, ONCE)
        for form in (
            "{first}",
            "{style}",
            "{first} {style}",
            "{first} {first}",
            "{first} and {other}",
            "",
        )
    ),
    *(({"scene_forms": (form,)}, BARE) for form in ("{first!r} and {second}", "{first} {style:d}")),
    ({"scene_weight": -1.0}, "scene_weight is -1.0; it must be a number from 0 to 100"),
    ({"scene_weight": 0.1, "scene_forms": ()}, "scene tasks need scene_forms and companions"),
    ({"scene_weight": 0.1, "ordinary_styles": ()}, "in a {style} need ordinary_styles"),
]


def test_settings_that_no_scene_can_be_made_of_are_refused():
    for settings, message in UNUSABLE:
        with pytest.raises(ConfigError, match=message):
            Calibration(**settings)
    with pytest.raises(ConfigError, match="form 'xxx") as caught:
        Calibration(scene_forms=("x" * 3000 + "{x}" * 300,))
    assert len(str(caught.value)) < 300


def test_the_words_of_a_form_say_how_its_subjects_lie():
    for form, layout, regions in (
        ("{first} and {second}", "columns", {"first": 0, "second": 1}),
        ("{second} with {first}", "columns", {"second": 0, "first": 1}),
        ("{first} on the right, {second} on the left", "columns", {"first": 1, "second": 0}),
        ("{first} above {second}", "rows", {"first": 0, "second": 1}),
        ("{first} below {second}", "rows", {"first": 1, "second": 0}),
        ("{first}, {second} and {third}", "columns", {"first": 0, "second": 1, "third": 2}),
        ("{first} behind {second}", None, None),
        ("{first}, {style}", None, None),
    ):
        assert layout_of(form) == layout
        if layout:
            assert regions_of(form) == regions


def test_regions_cut_the_picture_into_equal_parts():
    for layout, count, (height, width) in itertools.product(
        ("columns", "rows"), (2, 3), ((8, 8), (6, 9), (5, 7))
    ):
        masks = torch.stack(region_masks(layout, count, height, width))
        torch.testing.assert_close(masks.sum(0), torch.ones(height, width))
        torch.testing.assert_close(masks.sum((1, 2)), torch.full((count,), height * width / count))
        assert masks[0, 0, 0] == 1
        assert masks[-1, -1, -1] == 1
    left, right = region_masks("columns", 2, 4, 4)
    assert left.tolist() == [[1, 1, 0, 0]] * 4
    assert right.tolist() == [[0, 0, 1, 1]] * 4
    assert region_masks("rows", 2, 2, 3)[1].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_a_mask_is_seen_at_every_resolution_of_the_unet():
    left, _ = region_masks("columns", 2, 64, 64)
    for side in (64, 32, 16, 8):
        row = [1] * (side // 2) + [0] * (side // 2)
        assert mask_on_grid(left, side * side).view(side, side).tolist() == [row] * side
    assert mask_on_grid(left, 1).tolist() == [0.5]
    top, _ = region_masks("rows", 2, 6, 10)  # 3 x 5 and 2 x 3 after halving, odd sides rounded up
    torch.testing.assert_close(
        mask_on_grid(top, 15).view(3, 5), torch.tensor([[1.0], [0.5], [0.0]]).expand(3, 5)
    )
    assert mask_on_grid(top, 6).view(2, 3).tolist() == [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("tokens", [7, 0])
def test_tokens_that_are_no_halving_of_the_picture_are_refused(tokens):
    said = f"a layer sees {tokens} tokens of a picture of 8 x 8 latents"
    with pytest.raises(CalibrationError, match=said):
        mask_on_grid(torch.ones(8, 8), tokens)
