"""benchmarks/world.py: the renderer, the words, the judge's rules, and the whole way, on a world
trained for two steps.
"""

import random
from dataclasses import replace

import pytest
import torch


@pytest.fixture(scope="module")
def scenes():
    return pytest.importorskip("world_scenes")


@pytest.fixture(scope="module")
def recogniser():
    return pytest.importorskip("world_recogniser")


def test_a_thing_is_drawn_where_it_lies_and_nowhere_else(scenes):
    thing = scenes.Thing("red", "square", x=6, y=18, radius=5)
    picture = scenes.draw(scenes.Scene((thing,)))
    empty = scenes.draw(scenes.Scene(()))
    changed = (picture - empty).abs().sum(0) > 0
    rows, columns = changed.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 21, 2, 9)
    expected = torch.tensor(scenes.COLOURS["red"]) * 2 - 1
    torch.testing.assert_close(picture[:, 18, 6], expected)


def test_no_two_things_look_the_same(scenes):
    labels = [(surface, shape) for surface in scenes.SURFACES for shape in scenes.SHAPES]
    pictures = torch.stack(
        [scenes.draw(scenes.Scene((scenes.Thing(*label, radius=5),))).flatten() for label in labels]
    )
    distances = torch.cdist(pictures, pictures) + 1e3 * torch.eye(len(labels))
    assert distances.min() > 1


def test_a_snapped_thing_has_the_same_latents_a_patch_further(scenes):
    here, there = (
        scenes.to_latents(
            scenes.draw(scenes.Scene((scenes.Thing("slashed", "star", x, 12, 5),)))[None]
        )
        for x in (9, 12)
    )
    torch.testing.assert_close(here[..., :-1], there[..., 1:])
    torch.testing.assert_close(
        scenes.to_pictures(scenes.to_latents(torch.arange(1728.0).view(1, 3, 24, 24))).flatten(),
        torch.arange(1728.0),
    )


@pytest.mark.parametrize("style", ["outlined", "shadowed"])
def test_a_style_changes_what_is_around_things_and_not_the_things(scenes, style):
    scene = scenes.Scene((scenes.Thing("blue", "circle"),))
    plain = scenes.draw(scene)
    styled = scenes.draw(scenes.in_style(scene, style))
    changed = (plain - styled).abs().sum(0) > 0.5
    assert 0.03 < changed.float().mean() < 0.2
    assert not changed[9:15, 9:15].any()
    assert changed[:12, :12].any() == (style == "outlined")
    assert changed[12:, 12:].any()


def test_layouts_and_captions_agree(scenes):
    chance = random.Random(0)
    labels = [("red", "circle"), ("blue", "star")]
    for between, (axis, sign) in {
        "and": ("x", 1),
        "right of": ("x", -1),
        "above": ("y", 1),
        "below": ("y", -1),
    }.items():
        first, second = scenes.placed(labels, scenes.BETWEEN[between], chance)
        assert sign * (getattr(second, axis) - getattr(first, axis)) > 6, between
    assert scenes.caption_of(["red circle", "<v1>"], "next to", "a photo of ", "sand") == (
        "a photo of a red circle next to a <v1> on sand"
    )


def test_the_base_model_never_sees_a_concept(scenes):
    chance = random.Random(1)
    labels = scenes.base_labels()
    assert len(labels) == 14 * 8 - 8
    shown = {
        thing.label for _ in range(2000) for thing in scenes.random_scene(chance, labels)[0].things
    }
    assert shown == set(labels)


def test_every_caption_fits_the_tokenizer_and_has_no_unknown_word(scenes):
    pytest.importorskip("transformers")
    score = pytest.importorskip("world_score")
    bench = pytest.importorskip("world_bench")
    tokenizer = scenes.make_tokenizer()
    chance = random.Random(2)
    captions = [scenes.random_scene(chance, scenes.base_labels())[1] for _ in range(300)]
    captions += [probe.caption for probe in score.probes_of(scenes.TRIGGERS)]
    captions += [
        *bench.preserve_captions(),
        *bench.COMPANIONS,
        *(p.format(trigger="<s1>") for p in bench.STYLE_PROMPTS),
    ]
    ids = tokenizer(captions)["input_ids"]
    assert max(map(len, ids)) <= scenes.MAX_TOKENS
    assert tokenizer.unk_token_id not in {token for row in ids for token in row}


def test_seen_forms_are_calibrated_and_unseen_ones_are_not(scenes):
    score = pytest.importorskip("world_score")
    bench = pytest.importorskip("world_bench")
    calibrated = {
        form.format(first="a {a}", second="a {b}", style="in {s} style")
        for form in bench.SCENE_FORMS
    }
    assert set(score.SEEN) <= calibrated
    assert set(score.STYLED) <= calibrated
    assert calibrated.isdisjoint({*score.UNSEEN, *score.STYLED_UNSEEN})


def test_a_hit_needs_all_that_was_asked_and_nothing_else(scenes, recogniser):
    score = pytest.importorskip("world_score")
    star, heart = scenes.CONCEPTS[:2]
    probe = score.Probe("seen", ("<v1>", "<v2>"), "a <v1> and a <v2>", 0, (star, heart))

    def seen(*labels, style=None):
        return recogniser.Judgement(
            tuple(recogniser.Found(*label, 0, i) for i, label in enumerate(labels)), style
        )

    assert probe.is_hit(seen(heart, star))
    assert not probe.is_hit(seen(star))
    assert not probe.is_hit(seen(star, star))
    assert not probe.is_hit(seen(star, heart, ("red", "circle")))
    assert not probe.is_hit(seen(star, heart, style="outlined"))
    alone = replace(probe, about=("<v1>",), labels=(star,))
    assert alone.leaks(seen(star, heart), ("<v1>", "<v2>"))
    assert not alone.leaks(seen(star, heart), ("<v1>",))
    assert alone.leaks(seen(star, style="outlined"), ("<v1>", "<s1>"))


def test_peaks_are_the_highest_of_their_neighbourhood(recogniser):
    logits = torch.full((8, 8), -5.0)
    logits[2, 2] = 3.0
    logits[2, 3] = 3.5
    logits[6, 2] = 1.0
    logits[0, 7] = -0.1
    assert recogniser.peaks(logits) == [(2, 3), (6, 2)]


def test_garbage_is_labelled_as_such(scenes, recogniser):
    chance = random.Random(3)
    scene = scenes.Scene((scenes.Thing("red", "circle"), scenes.Thing("blue", "star", 20, 20, 4)))
    seen = {recogniser.with_garbage(scene, chance)[1][0] for _ in range(60)}
    assert {("red", "garbage"), ("garbage", "circle"), ("garbage", "garbage")} <= seen
    pictures, targets, styles = recogniser.training_data(20, 0)
    assert pictures.dtype == torch.uint8
    centres = targets[:, 0] == 1
    assert (targets[:, 1][centres] >= 0).all()
    assert (targets[:, 1][~centres] == -1).all()
    assert set(styles.tolist()) <= {0, 1, 2}


def test_the_whole_way_on_a_world_that_has_learned_nothing(scenes, recogniser, tmp_path):
    for library in ("diffusers", "transformers", "peft"):
        pytest.importorskip(library)
    base, loras, bench, methods, score = (
        pytest.importorskip(name)
        for name in ("world_base", "world_loras", "world_bench", "world_methods", "world_score")
    )
    settings = base.BaseSettings(
        widths=(16, 16), phases=(base.Phase(2, 1e-3, "fixed"),), batch=4, scenes=8
    )
    told = []
    base.train_base(settings, tmp_path / "base", lambda *step: told.append(step[:2]), every=1)
    assert told == [(1, 2), (2, 2)]
    before = (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    base.train_base(settings, tmp_path / "base", lambda *step: told.append(step[:2]))
    assert len(told) == 2
    assert (
        tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    ).read_bytes() == before
    torch.save(recogniser.Recogniser().state_dict(), tmp_path / "recogniser.pt")
    world = base.load_base(tmp_path / "base")
    for trigger in ("<v1>", "<v2>", "<s1>"):
        loras.train_lora(
            world, trigger, loras.LoraSettings(steps=2), 0, bench.lora_folder(tmp_path, trigger, 0)
        )
    loaded = bench.load_bench(tmp_path)
    weight = loaded.model.modules[
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    ].weight.clone()
    recipe = methods.Recipe(
        "test", {"target": "full_output"}, {"trajectories": 2, "timesteps": 1, "scene_weight": 0.1}
    )
    cell = methods.Cell(loaded, recipe, ("<v1>", "<v2>", "<s1>"), 0)
    found = cell.entry(score.SinglePictures(loaded, 0), effort=1)
    assert set(found["hits"]) == {
        "alone",
        "company",
        "seen",
        "unseen",
        "styled",
        "styled unseen",
        "base",
    }
    assert found["hits"]["seen"]["<v1> <v2>"][1] == 8
    assert found["distance"] >= 0
    assert cell.read()["entries"]["scale 1, cfg 3, effort 1"] == found
    assert torch.equal(
        loaded.model.modules["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"].weight,
        weight,
    )
