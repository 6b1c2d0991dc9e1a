"""benchmarks/worlds: drawings, captions, the judge's rules, and the whole way, on worlds trained for
two steps.
"""

import json
import random
import re
from dataclasses import replace

import pytest
import torch

from benchmarks.worlds import NAMES, find_world
from benchmarks.worlds.drawing import Scene, Thing, in_style, to_latents, to_pictures

pytestmark = pytest.mark.nightly

# "unseen" would not be a word for these: they stand in every caption
SMALL_WORDS = {"a", "of", "photo", "picture", "and", "with", ",", "to", "the", "in"}
TINY = {
    "words": {"widths": (16, 16)},
    "clip": {"widths": (16, 16)},
    "flow": {"heads": 1, "blocks": 2},
}


@pytest.fixture(params=NAMES)
def world(request):
    for library in ("diffusers", "transformers", "peft"):
        pytest.importorskip(library)
    return find_world(request.param)


def test_a_thing_is_drawn_where_it_lies_and_nowhere_else():
    drawing = find_world("words").drawing
    picture = drawing.draw(Scene((Thing("red", "square", x=6, y=18, radius=5),), "snow"))
    changed = (picture - drawing.draw(Scene((), "snow"))).abs().sum(0) > 0
    rows, columns = changed.nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (14, 21, 2, 9)
    expected = torch.tensor(drawing.surfaces["red"].colour) * 2 - 1
    torch.testing.assert_close(picture[:, 18, 6], expected)


def test_no_two_things_look_the_same(world):
    drawing = world.drawing
    ground = next(iter(drawing.backgrounds))
    labels = [(surface, shape) for surface in drawing.surfaces for shape in drawing.shapes]
    pictures = torch.stack(
        [drawing.draw(Scene((Thing(*label, radius=5),), ground)).flatten() for label in labels]
    )
    distances = torch.cdist(pictures, pictures) + 1e3 * torch.eye(len(labels))
    assert distances.min() > 1


def test_a_snapped_thing_has_the_same_latents_a_patch_further():
    drawing = find_world("words").drawing
    here, there = (
        to_latents(drawing.draw(Scene((Thing("slashed", "star", x, 12, 5),), "snow"))[None])
        for x in (9, 12)
    )
    torch.testing.assert_close(here[..., :-1], there[..., 1:])
    numbers = torch.arange(1728.0)
    torch.testing.assert_close(
        to_pictures(to_latents(numbers.view(1, 3, 24, 24))).flatten(), numbers
    )


@pytest.mark.parametrize("style", ["outlined", "shadowed"])
def test_a_style_changes_what_is_around_things_and_not_the_things(style):
    drawing = find_world("words").drawing
    scene = Scene((Thing("blue", "circle"),), "snow")
    changed = (drawing.draw(scene) - drawing.draw(in_style(scene, style))).abs().sum(0) > 0.5
    assert 0.03 < changed.float().mean() < 0.2
    assert not changed[9:15, 9:15].any()
    assert changed[:12, :12].any() == (style == "outlined")
    assert changed[12:, 12:].any()


@pytest.mark.parametrize(
    ("name", "between", "axis", "sign"),
    [
        ("words", "and", "x", 1),
        ("words", "right of", "x", -1),
        ("words", "above", "y", 1),
        ("clip", "and", "x", 1),
        ("clip", "to the right of", "x", -1),
        ("clip", "under", "y", -1),
        ("flow", "with", "x", 1),
        ("flow", "in front of", "y", -1),
        ("flow", "beneath", "y", -1),
    ],
)
def test_layouts_and_captions_agree(name, between, axis, sign):
    world = find_world(name)
    chance = random.Random(0)
    asked = re.compile(rf"(\w+ \w+) {between} (?:a|one|the) (\w+ \w+)")
    seen = 0
    while seen < 20:
        scene, caption = world.scene(chance, world.base_labels)
        match = asked.search(caption)
        if match and match.groups() == tuple(" ".join(t.label) for t in scene.things):
            first, second = scene.things
            assert sign * (getattr(second, axis) - getattr(first, axis)) > 3, caption
            seen += 1


def test_two_things_hardly_touch_and_lie_in_the_picture(world):
    chance = random.Random(1)
    for _ in range(300):
        things = world.scene(chance, world.base_labels)[0].things
        for thing in things:
            assert 4 < thing.x < 20
            assert 4 < thing.y < 20
        if len(things) == 2:
            a, b = things
            assert ((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 > 0.98 * (a.radius + b.radius)


def test_the_base_model_never_sees_a_concept_or_a_trigger(world):
    chance = random.Random(1)
    scenes = [world.scene(chance, world.base_labels) for _ in range(2000)]
    assert {thing.label for scene, _ in scenes for thing in scene.things} == set(world.base_labels)
    assert not set(world.base_labels) & set(world.concepts)
    words = {word for _, caption in scenes for word in caption.split()}
    assert not words & {trigger.split()[0] for trigger in world.all_triggers}


def test_every_caption_fits_the_tokenizer_and_has_no_unknown_word(world):
    from benchmarks.worlds.score import probes_of

    tokenizer = world.new_model().tokenizer
    chance = random.Random(2)
    captions = [world.scene(chance, world.base_labels)[1] for _ in range(300)]
    captions += [probe.caption for probe in probes_of(world, world.all_triggers)]
    captions += [*world.calibration["preserve_captions"], *world.calibration["companions"]]
    captions += [prompt.format(trigger="<s1>") for prompt in world.style_prompts]
    ids = tokenizer(captions)["input_ids"]
    assert max(map(len, ids)) <= {"words": 20, "clip": 77, "flow": 28}[world.name]
    if world.name != "clip":
        assert tokenizer.unk_token_id not in {token for row in ids for token in row}


def test_triggers_of_the_clip_world_have_one_to_three_tokens():
    clip = pytest.importorskip("worlds.clip")
    pytest.importorskip("transformers")
    tokenizer = clip.make_tokenizer()
    assert [len(tokenizer.tokenize(word)) for word in clip.RARE] == [1, 1, 2, 2, 3, 3]


def test_word_pieces_are_the_most_frequent_pairs():
    from benchmarks.worlds.flow import learned_merges

    assert learned_merges({"aab": 3, "ab": 2, "ca": 1}, 2) == [("a", "b</w>"), ("a", "ab</w>")]
    assert learned_merges({"ab": 1, "cd": 1}, 9) == [("a", "b</w>"), ("c", "d</w>")]


def test_seen_forms_are_calibrated_and_unseen_ones_are_not(world):
    from iteris_core.diffusion.calibration import Calibration

    words = world.calibration
    scene_forms = {
        form.format(first="a {a}", second="a {b}", style="in {s} style")
        for form in words["scene_forms"]
    }
    assert set(world.forms.seen) <= scene_forms
    assert set(world.forms.styled) <= scene_forms
    calibration = Calibration(**{"resolution": 64, **words})
    read = " ".join(
        [
            *(form.format(prompt="", thing="") for form in calibration.compositions),
            *(re.sub(r"\{\w+\}", "", form) for form in calibration.scene_forms),
            *calibration.preserve_captions,
            *calibration.scene_prefixes,
        ]
    ).split()
    known = {word.strip(",") for word in read} | SMALL_WORDS
    for form in world.forms.unseen:
        assert set(re.sub(r"\{\w\}", "", form).replace(",", "").split()) - known, form


def test_a_hit_needs_all_that_was_asked_and_nothing_else():
    from benchmarks.worlds.recogniser import Found, Judgement
    from benchmarks.worlds.score import Probe

    world = find_world("words")
    star, heart = world.concepts[:2]
    probe = Probe("seen", ("<v1>", "<v2>"), "a <v1> and a <v2>", 0, (star, heart))

    def seen(*labels, style=None):
        return Judgement(tuple(Found(*label, 0, i) for i, label in enumerate(labels)), style)

    assert probe.is_hit(seen(heart, star))
    assert not probe.is_hit(seen(star))
    assert not probe.is_hit(seen(star, star))
    assert not probe.is_hit(seen(star, heart, ("red", "circle")))
    assert not probe.is_hit(seen(star, heart, style="outlined"))
    alone = replace(probe, about=("<v1>",), labels=(star,))
    assert alone.leaks(world, seen(star, heart), ("<v1>", "<v2>"))
    assert not alone.leaks(world, seen(star, heart), ("<v1>",))
    assert alone.leaks(world, seen(star, style="outlined"), ("<v1>", "<s1>"))


def test_the_questions_of_a_pair(world):
    from benchmarks.worlds.score import probes_of

    probes = probes_of(world, world.triggers[:2])
    counts = {kind: 0 for kind in ("alone", "company", "seen", "unseen", "base")}
    for probe in probes:
        counts[probe.kind] += 1
    assert counts == {"alone": 24, "company": 12, "seen": 16, "unseen": 12, "base": 12}
    assert len({(p.caption, p.seed) for p in probes}) == len(probes)
    six = [p for p in probes_of(world, world.triggers[:6]) if p.kind == "seen"]
    assert len({p.about for p in six}) == 15


def test_peaks_are_the_highest_of_their_neighbourhood():
    from benchmarks.worlds.recogniser import peaks

    logits = torch.full((8, 8), -5.0)
    logits[2, 2] = 3.0
    logits[2, 3] = 3.5
    logits[6, 2] = 1.0
    logits[0, 7] = -0.1
    assert peaks(logits) == [(2, 3), (6, 2)]


def test_garbage_is_labelled_as_such():
    from benchmarks.worlds.recogniser import training_data, with_garbage

    world = find_world("words")
    chance = random.Random(3)
    things = (Thing("red", "circle"), Thing("blue", "star", 20, 20, 4))
    scene = Scene(things, "snow")
    seen = {with_garbage(world, scene, chance)[1][0] for _ in range(60)}
    assert {("red", "garbage"), ("garbage", "circle"), ("garbage", "garbage")} <= seen
    pictures, targets, styles = training_data(world, 20, 0)
    assert pictures.dtype == torch.uint8
    centres = targets[:, 0] == 1
    assert (targets[:, 1][centres] >= 0).all()
    assert (targets[:, 1][~centres] == -1).all()
    assert set(styles.tolist()) <= {0, 1, 2}


def test_the_error_of_a_figure_is_that_of_the_paired_difference_to_stacking():
    from benchmarks.worlds.tables import COLUMNS, figure

    def entry(hits):
        return {"hits": {"alone": {"a": [hits, 10]}}, "leaks": [0, 1]}

    ours = {0: entry(6), 1: entry(9)}
    stacked = {0: entry(5), 1: entry(6)}
    found = figure(ours, stacked, COLUMNS["alone"])
    assert found.mean == pytest.approx(0.75)
    assert found.error == pytest.approx(0.1)  # differences 0.1 and 0.3: their deviation over root 2
    assert figure(stacked, stacked, COLUMNS["alone"]).error is None
    assert figure(ours, stacked, COLUMNS["both, seen forms"]) is None


def test_the_flow_model_speaks_the_product_s_language():
    flow_model = pytest.importorskip("worlds.flow_model")
    from iteris_core.diffusion.model import DenoiserRow, Encoded

    world = find_world("flow")
    torch.manual_seed(0)
    model = world.new_model(**TINY["flow"])
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    seen = flow_model.FlowStableDiffusion(model)
    clean, noise = torch.randn(2, 27, 8, 8)
    context = torch.randn(28, 64)
    t = torch.tensor(0.3)
    sigma = t / (1 - t)
    with torch.no_grad(), seen.denoiser() as network:
        found = network.forward([DenoiserRow(clean + sigma * noise, sigma, Encoded(context))])[0]
        x = (1 - t) * clean + t * noise
        expected = x - t * model.velocity(x[None], t[None], context[None])[0]
        torch.testing.assert_close(found, expected)
        streams = {path.split(".", 3)[-1]: network.stream(path) for path in network.modules}
    assert streams["attn.add_k_proj"] == streams["txt_mlp.net.2"] == "text"
    assert streams["attn.to_k"] == streams["img_mlp.net.2"] == "image"
    sigmas = seen.sigmas(4)
    assert sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()
    torch.testing.assert_close(sigmas[0], torch.tensor(0.98 / 0.02))


def test_sampling_begins_at_the_last_timestep():
    unet_model = pytest.importorskip("worlds.unet_model")
    world = find_world("words")
    seen = world.product(world.new_model(**TINY["words"]), {})
    sigmas = unet_model.trailing_sigmas(seen, 4)
    expected = [seen.training_sigmas[t].item() for t in (999, 749, 499, 249)]
    torch.testing.assert_close(sigmas, torch.tensor([*expected, 0.0]))


def test_the_epsilon_model_predicts_the_noise():
    pytest.importorskip("worlds.unet_model")
    model = find_world("clip").new_model(**TINY["clip"])
    torch.nn.init.zeros_(model.unet.conv_out.weight)
    torch.nn.init.zeros_(model.unet.conv_out.bias)
    assert model.scheduler.config.prediction_type == "epsilon"
    x = torch.randn(2, 27, 8, 8)
    steps = torch.tensor([0, 999])
    with torch.no_grad():
        found = model.unet(x, steps, torch.randn(2, 77, 64)).sample
    kept = model.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    torch.testing.assert_close(found, (1 - kept).sqrt() * x)


@pytest.mark.slow
def test_the_whole_way_on_a_world_that_has_learned_nothing(world, tmp_path):
    from benchmarks.worlds.bench import load_bench
    from benchmarks.worlds.comparisons import Comparison, comparison_text
    from benchmarks.worlds.loras import lora_folder, train_lora
    from benchmarks.worlds.methods import Cell, Recipe
    from benchmarks.worlds.recogniser import Names, Recogniser
    from benchmarks.worlds.settings import LoraKind
    from benchmarks.worlds.tables import report
    from benchmarks.worlds.training import train_base

    tiny = replace(world, new_model=lambda: world.new_model(**TINY[world.name]))
    settings = world.settings(0, quick=True)
    phase = replace(settings.phases[0], steps=2)
    settings = replace(settings, phases=(phase,), batch=4, scenes=8)
    told = []
    train_base(tiny, settings, tmp_path / "base", lambda *step: told.append(step[:2]), every=1)
    assert told == [(1, 2), (2, 2)]
    train_base(tiny, settings, tmp_path / "base", lambda *step: told.append(step[:2]))
    assert len(told) == 2
    torch.save(Recogniser(Names.of(world.drawing)).state_dict(), tmp_path / "recogniser.pt")
    base = world.load_model(tmp_path / "base")
    kind = LoraKind(steps=2, layers=("attention", "feed_forward", "convolution"))
    triggers = (*world.triggers[:2], *world.style_triggers[:1])
    for trigger in triggers:
        train_lora(world, base, trigger, kind, 0, lora_folder(tmp_path, world, trigger, "usual"))
    bench = load_bench(world, tmp_path)
    paths = bench.lora(triggers[0], "usual").adapter.deltas
    assert any("mlp" in path or ".ff." in path for path in paths)
    assert any("conv1" in path for path in paths) == (world.name != "flow")
    assert any(map(bench.model.is_text_module, paths)) == (world.name != "flow")
    before = bench.model.modules[next(iter(paths))].weight.clone()
    recipe = Recipe("test", {"target": "full_output"}, {"trajectories": 2, "scene_weight": 0.1})
    cell = Cell(bench, recipe, triggers)
    found = cell.entry()
    styled = {"styled", "styled unseen"} if world.style_triggers else set()
    assert set(found["hits"]) == {"alone", "company", "seen", "unseen", "base"} | styled
    assert cell.read()["entries"]["scale 1, cfg 3, effort 1"] == found
    assert torch.equal(bench.model.modules[next(iter(paths))].weight, before)
    recipes = [Recipe("sum", {"method": "sum"}), recipe]
    for each in recipes:
        Cell(bench, each, world.triggers[:2]).entry()
    text = report(bench, recipes)
    assert "Pairs, usual LoRAs" in text
    assert "| test | 1 |" in text
    whole_job = Recipe(
        "whole job",
        {},
        {"trajectories": 2, "held_out": 1},
        job={"correct_strength": True},
        weights={triggers[0]: 2.0},
        layers={"to_k": 0.5},
        things=("a red circle",),
    )
    asked = Comparison((*recipes, whole_job), {"pairs": 1})
    text = comparison_text(bench, asked, Cell.entry)
    assert "| whole job |" in text
    assert "whole job: scaled by 1." in text
    check_apart(bench, triggers[:2])


def check_apart(bench, triggers):
    """Where both LoRAs are the same, the mean of their predictions is that of one; and a caption
    with one trigger is drawn by its LoRA alone.
    """
    from benchmarks.worlds.apart import own_region, sample_apart

    first, second = (bench.lora(trigger, "usual").adapter for trigger in triggers)
    both = bench.world.forms.seen[0].format(a=triggers[0], b=triggers[1])
    alone = bench.world.forms.alone[0].format(a=triggers[1])
    captions = [both, alone, "a red circle"]
    same = sample_apart(bench, dict.fromkeys(triggers, first), captions, [1, 2, 3], "whole caption")
    torch.testing.assert_close(same[:2], bench.sample(first, captions[:2], [1, 2]))
    torch.testing.assert_close(same[2], bench.sample(None, captions[2:], [3])[0])
    adapters = {triggers[0]: first, triggers[1]: second}
    for way in ("own part", "own region"):
        found = sample_apart(bench, adapters, captions, [1, 2, 3], way)
        assert found.isfinite().all()
        torch.testing.assert_close(found[1], bench.sample(second, [alone], [2])[0])
    voices = own_region(bench, adapters, [both], [1])
    for trigger, voice in zip(triggers, voices, strict=True):
        assert [other in voice.texts[0] for other in triggers] == [t == trigger for t in triggers]
    assert torch.equal(voices[0].masks + voices[1].masks, torch.ones(1, 1, 8, 8))


def test_settings_of_a_way_that_are_not_used_leave_its_key_as_it_is():
    from benchmarks.worlds.methods import Recipe

    plain = Recipe("one", {"method": "sum"})
    assert plain.key == Recipe("another", {"method": "sum"}).key == "d7b07e52a82d"
    changed = [
        replace(plain, job={"correct_strength": True}),
        replace(plain, weights={"<v1>": 2.0}),
        replace(plain, layers={"attn1": 0.5}),
        replace(plain, things=("a red circle",)),
    ]
    assert len({plain.key, *(way.key for way in changed)}) == 5


def test_a_short_training_has_a_share_of_every_phase(world):
    whole = world.settings(0, False)
    short = whole.shortened(0.25, 32)
    assert [p.steps for p in short.phases] == [round(p.steps / 4) for p in whole.phases]
    assert (short.batch, short.scenes) == (32, whole.scenes // 4)
    assert whole.shortened(1, None) == whole


def test_what_a_verdict_was_worth_is_read_from_what_was_measured(tmp_path):
    from benchmarks.worlds.verdicts import both_seen, confusion, judged

    def looks(kind, error):
        sums = [[error**2 * effect, (1 - error) * effect, effect] for effect in (100.0, 1.0, 0.01)]
        return [([kind, 0, run, 3, 1.0], entry) for run, entry in enumerate(sums)]

    def measured(way, error, hits):
        late = (["own", 0, 0, 19, 0.1], [9.0, 0.0, 1.0])  # where the product does not look
        known, sums = zip(*looks("own", error), *looks("together", 0.8), late, strict=True)
        counts = {kind: {"x": [hits, 10]} for kind in ("alone", "company")}
        told = {"world": "w", "set": "usual", "triggers": ["x"], "way": way, "ours": way == "a"}
        single = {"x": {kind: {"x": [10, 10]} for kind in ("alone", "company")}}
        told |= {"hits": {**counts, "seen": {"x + y": [3, 4]}}, "singles": single}
        return told | {"looks": known, "sums": sums}

    folder = tmp_path / "verdicts"
    folder.mkdir()
    for way, error, hits in (("a", 0.3, 9), ("b", 0.95, 1), ("c", 0.95, 8)):
        text = json.dumps(measured(way, error, hits))
        (folder / f"usual-0-{way}.json").write_text(text)
    found = list(judged(tmp_path))
    assert [lora.true for lora in found] == ["good", "lost", "good"]
    assert [lora.measured().kept for lora in found] == pytest.approx([0.7, 0.05, 0.05])
    good, _, lost = confusion(found, 2).splitlines()[-3:]
    assert good == "| good | 1.0 | 0.0 | 0.0 | 1.00 |"
    assert lost == "| lost | 1.0 | 0.0 | 1.0 | 0.50 |"
    assert [figures[2:] for figures in both_seen(tmp_path)] == [(pytest.approx(0.8), 0.75)] * 3


@pytest.mark.slow
def test_the_quick_command_runs_through(tmp_path, monkeypatch, capsys):
    for library in ("diffusers", "transformers", "peft"):
        pytest.importorskip(library)
    from benchmarks.worlds.__main__ import main

    monkeypatch.setattr(
        "sys.argv",
        ["worlds", "--world", "words", "--quick", "--jobs", "1", "--cache", str(tmp_path)],
    )
    main()
    shown = capsys.readouterr().out
    for name in ("base model", "single LoRAs", "sum", "np_lora", "IterIS"):
        assert f"| {name} | 1 |" in shown
    assert "| loras | 2 |" in shown
