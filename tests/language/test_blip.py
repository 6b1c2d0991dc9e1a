"""BLIP: the text decoder, its cross-attention and the vision tower, on a tiny random model."""

import json
from dataclasses import replace
from functools import partial

import pytest
import tiny_language
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration
from typer.testing import CliRunner

from iteris_core import CalibrationError, ConfigError, MergeConfig
from iteris_core.cli.main import app
from iteris_core.files import peft
from iteris_core.files.pretrained import load_adapter, load_processor
from iteris_core.language.blip import load_base, merge_blip, stream_of, write
from iteris_core.language.caption_samples import (
    CaptionOptions,
    CaptionSample,
    caption_rows,
    encode_captions,
    read_images,
)
from iteris_core.language.job import AdapterTask, Base
from iteris_core.language.teachers import Teachers

LENGTHS = (4, 7, 2, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    tiny_language.blip().save_pretrained(folder / "base")
    kind = {"kind": BlipForConditionalGeneration, "task_type": None}
    tiny_language.adapter(folder / "base", folder / "one", 1, ("query", "key", "value"), **kind)
    tiny_language.adapter(
        folder / "base", folder / "two", 2, ("query", "value", "qkv", "fc1"), r=3, **kind
    )
    return folder


def samples_of(seed, *, captions=True):
    torch.manual_seed(seed)
    drawn = [
        (torch.randn(3, 16, 16), torch.cat([torch.tensor([3]), torch.randint(4, 50, (n,))]))
        for n in LENGTHS
    ]
    return [CaptionSample(pixels, ids if captions else None) for pixels, ids in drawn]


def tasks(folders, samples, weights=(1.0, 1.0, 1.0)):
    """Adapters with their samples, as `merge_blip` takes them."""
    return [AdapterTask(*task) for task in zip(folders, samples, weights, strict=False)]


def assert_close(found, expected, tolerance):
    assert set(found) == set(expected)
    for path, delta in expected.items():
        want = delta.dense()
        have = found[path].dense()
        assert ((have - want).norm() / want.norm()).item() < tolerance, path


def test_one_adapter_merges_to_itself(folder):
    base = load_base(str(folder / "base"))
    expected = peft.load(folder / "two", tiny_language.shapes(base)).deltas
    assert any(path.startswith("vision_model.") for path in expected)
    result = merge_blip(base, tasks([folder / "two"], [samples_of(0)]), MergeConfig(alpha=1e-3))
    assert_close(result.adapter.deltas, expected, 1e-4)


@pytest.mark.parametrize("captions", [True, False])
def test_sweep_and_iteration_agree(folder, captions):
    base = load_base(str(folder / "base"), torch.float64)
    samples = [samples_of(0, captions=captions), samples_of(1, captions=captions)]
    folders = [folder / "one", folder / "two"]
    swept = merge_blip(base, tasks(folders, samples), MergeConfig(samples_per_chunk=3, alpha=1e-3))
    iterated = merge_blip(
        base, tasks(folders, samples), MergeConfig(engine="iterate", max_iter=40, alpha=1e-3)
    )
    assert_close(swept.adapter.deltas, iterated.adapter.deltas, 1e-5)


def test_padding_does_not_count(folder):
    """A chunk of one sample runs as long as the longest; shorter captions alone give the same as
    beside long ones.
    """
    base = load_base(str(folder / "base"), torch.float64)
    two = [
        [sample for sample in samples_of(seed) if len(sample.caption) == 5] * 2 for seed in (0, 1)
    ]
    weights = [1, 1, 0]
    longest = CaptionSample(two[0][0].image, torch.arange(3, 30))
    folders = [folder / "one", folder / "two", folder / "one"]
    config = MergeConfig(alpha=1e-3)
    alone = merge_blip(base, tasks(folders, [*two, two[0]], weights), config)
    beside = merge_blip(base, tasks(folders, [*two, [longest]], weights), config)
    assert_close(beside.adapter.deltas, alone.adapter.deltas, 1e-5)
    counted = merge_blip(
        base,
        tasks(folders, [*two, [longest]], weights),
        config,
        CaptionOptions(padding="count"),
    )
    path = "text_decoder.bert.encoder.layer.1.attention.self.query"
    assert not torch.allclose(
        counted.adapter.deltas[path].dense(), alone.adapter.deltas[path].dense(), atol=1e-3
    )


def test_peft_loads_the_merged_adapter_and_its_forward_is_the_merged_models(folder, tmp_path):
    result = merge_blip(
        str(folder / "base"),
        tasks([folder / "one", folder / "two"], [samples_of(0), samples_of(1)]),
    )
    peft.save(result.adapter, tmp_path / "out", str(folder / "base"), None)
    sample = samples_of(5)[0]
    inputs = {"pixel_values": sample.image[None], "input_ids": sample.caption[None]}
    with torch.no_grad():
        found = tiny_language.peft(tiny_language.blip(), tmp_path / "out").eval()(**inputs).logits
        expected = tiny_language.with_deltas(tiny_language.blip(), result.adapter.deltas)(
            **inputs
        ).logits
        plain = tiny_language.blip()(**inputs).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert not torch.allclose(found, plain, atol=1e-2)


@pytest.fixture(scope="module")
def pictures(folder, tmp_path_factory):
    """A processor beside the base, a folder of pictures, and a file that names pictures and
    captions.
    """
    made = tmp_path_factory.mktemp("pictures")
    tiny_language.blip_processor().save_pretrained(folder / "base")
    (made / "plain").mkdir()
    for number in range(3):
        pixels = torch.randint(0, 255, (20, 24, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(made / "plain" / f"{number}.png")
    entries = [{"image": "plain/0.png", "caption": "w1 w2 w3"}, {"image": "plain/1.png"}]
    (made / "captions.jsonl").write_text("\n".join(map(json.dumps, entries)))
    return made


def test_the_command_merges_pictures_and_captions(folder, pictures, tmp_path):
    def iteris(*more):
        arguments = [
            "merge",
            "blip",
            "--base",
            folder / "base",
            "--adapter",
            folder / "one",
            "--adapter",
            folder / "two",
            "--images",
            pictures / "plain",
            "--output",
            tmp_path / "out",
            *more,
        ]
        return CliRunner().invoke(app, list(map(str, arguments)))

    done = iteris("--images", pictures / "captions.jsonl", "--json", tmp_path / "report.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "layers merged" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["settings"]["samples"] == [3, 2]
    layers = [
        module
        for module in tiny_language.peft(tiny_language.blip(), tmp_path / "out").modules()
        if hasattr(module, "lora_A")
    ]
    assert {module.r["default"] for module in layers} == {3, 4, 7}
    wrong = iteris("--images", tmp_path / "nowhere", "--overwrite")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("iteris merge blip: ")
    assert wrong.stderr.count("\n") == 1


def test_ordinary_pictures_are_kept_and_the_whole_model_is_saved(folder, pictures, tmp_path):
    arguments = [
        "merge",
        "blip",
        "--base",
        folder / "base",
        "--adapter",
        folder / "one",
        "--images",
        pictures / "plain",
        "--preserve",
        pictures / "captions.jsonl",
        "--preserve-weight",
        "0.5",
        "--json",
        tmp_path / "report.json",
        "--output",
        tmp_path / "out",
        "--save-model",
        tmp_path / "model",
    ]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert (done.exit_code, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["settings"]["samples"], report["settings"]["weights"]) == ([3, 2], [1.0, 0.5])
    assert [task["task"] for task in report["layers"][0]["tasks"]] == [
        "one",
        "base model (preserve)",
    ]
    inputs = {"pixel_values": torch.randn(2, 3, 16, 16), "input_ids": torch.randint(4, 50, (2, 5))}
    with torch.no_grad():
        whole = (
            BlipForConditionalGeneration.from_pretrained(tmp_path / "model").eval()(**inputs).logits
        )
        adapted = tiny_language.peft(tiny_language.blip(), tmp_path / "out").eval()(**inputs).logits
        plain = tiny_language.blip()(**inputs).logits
    assert torch.allclose(whole, adapted, rtol=0, atol=1e-5 * adapted.abs().max().item())
    assert not torch.allclose(whole, plain, atol=1e-2)
    assert (
        load_processor(str(tmp_path / "model")).tokenizer("w1")["input_ids"]
        == load_processor(str(folder / "base")).tokenizer("w1")["input_ids"]
    )


def test_captions_begin_with_the_models_start_token_and_have_no_end_token(folder, pictures):
    processor = load_processor(str(folder / "base"))
    sample = read_images(pictures / "captions.jsonl")[0]
    assert sample.caption == "w1 w2 w3"
    assert ids_of([sample], processor) == [[3, 7, 8, 9]]
    assert ids_of([replace(sample, prompt=" w5 w6 ")], processor) == [[3, 11, 12, 7, 8, 9]]
    assert ids_of([replace(sample, prompt="w5 w6")], processor, CaptionOptions(max_length=6)) == [
        [3, 11, 12, 7, 8]
    ]


def ids_of(samples, processor, options=None):
    return [
        found.target.tolist()
        for found in encode_captions(
            [samples], processor, tiny_language.blip(), options or CaptionOptions()
        )[0]
    ]


def test_counted_padding_fills_captions_up_as_the_published_code_does(folder, pictures):
    processor = load_processor(str(folder / "base"))
    options = CaptionOptions(padding="count", max_length=20)
    samples = read_images(pictures / "captions.jsonl")[:1]
    (row,) = caption_rows(
        encode_captions([samples], processor, tiny_language.blip(), options), options, fill=True
    )[0]
    assert row.teacher.ids.tolist() == [3, 7, 8, 9] + [0] * 16
    assert (row.teacher.mask.sum().item(), row.token_weights) == (4, {})
    base = load_base(str(folder / "base"))
    merged = [
        merge_blip(Base(base, processor), tasks([folder / "one"], [samples]), options=o)
        for o in (CaptionOptions(), options, CaptionOptions(padding="count", max_length=30))
    ]
    path = "text_decoder.bert.encoder.layer.0.attention.self.query"
    assert [
        next(x for x in result.report.layers if x.path == path).tasks[0].tokens for result in merged
    ] == [4, 20, 30]


def test_teachers_write_behind_the_prompts_as_the_models_own_generate_does(folder, pictures):
    processor = load_processor(str(folder / "base"))
    base = load_base(str(folder / "base"))
    adapter = peft.load(folder / "one", tiny_language.shapes(base))
    prompts = ["w5 w6", "", "w5 w6", "w7"]
    samples = [
        replace(sample, prompt=prompt)
        for sample, prompt in zip(samples_of(0, captions=False), prompts, strict=True)
    ]
    (tokens,) = encode_captions([samples], processor, base, CaptionOptions())
    teachers = Teachers(base, [adapter], [{0: 1.0}])
    (found,) = teachers.answered([tokens], partial(write, base, max_new_tokens=5))
    model = tiny_language.peft(tiny_language.blip(), folder / "one").eval()
    for sample, written in zip(samples, found, strict=True):
        ids = processor.tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            own = model.generate(
                pixel_values=sample.image[None], input_ids=ids, max_new_tokens=5, do_sample=False
            )[0].tolist()
        assert written.target.tolist() == own[: own.index(2)] if 2 in own else own[:-1]


def test_the_command_takes_a_prompt_per_adapter_or_one_for_all(folder, pictures, tmp_path):
    def iteris(*more):
        arguments = [
            "merge",
            "blip",
            "--base",
            folder / "base",
            "--adapter",
            folder / "one",
            "--images",
            pictures / "plain",
            "--adapter",
            folder / "two",
            "--images",
            pictures / "captions.jsonl",
            "--max-new-tokens",
            4,
            "--overwrite",
            "--json",
            tmp_path / "report.json",
            "--output",
            tmp_path / "out",
            *more,
        ]
        return CliRunner().invoke(app, list(map(str, arguments)))

    tokens = []
    for prompts in ([], ["--prompt", "w1 w2 w3"], ["--prompt", "w1 w2 w3", "--prompt", "w4"]):
        assert iteris(*prompts).exit_code == 0
        layers = json.loads((tmp_path / "report.json").read_text())["layers"]
        (layer,) = [
            one
            for one in layers
            if one["path"] == "text_decoder.bert.encoder.layer.0.attention.self.query"
        ]
        tokens.append([task["tokens"] for task in layer["tasks"]])
    assert tokens[1][1] >= tokens[0][1] + 3 and tokens[2][1] < tokens[1][1]
    assert iteris("--padding", "count", "--max-length", 25).exit_code == 0
    wrong = iteris(*["--prompt", "w1"] * 3)
    assert (
        wrong.exit_code,
        "there are 2 --images and 3 --prompt; give one per adapter" in wrong.stderr,
    ) == (2, True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '{"image": "0.png", "caption": 1}',
            'line 1: "caption" is 1, no text; write one, or leave it out',
        ),
        ('{"image": "0.png", "caption": ["a"]}', "no text"),
        ('{"image": "0.png", "caption": ""}', "no text"),
        ('\n{"image": 3}', 'line 2: has no text "image"'),
        ('["0.png"]', 'has no text "image"'),
        ("0.png", "no JSON"),
        ("", "there are no samples in it"),
        ("[" * 100000, "no JSON"),
    ],
)
def test_wrong_lines_are_named(content, said, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(CalibrationError) as error:
        read_images(tmp_path / "a.jsonl")
    assert said in str(error.value)


def test_lines_end_at_line_feeds_only(tmp_path):
    entry = {"image": "0.png", "caption": "one\u2028two\x85three"}
    (tmp_path / "a.jsonl").write_text(
        "\ufeff" + json.dumps(entry, ensure_ascii=False) + "\r\n", newline=""
    )
    assert read_images(tmp_path / "a.jsonl") == [
        CaptionSample(tmp_path / "0.png", entry["caption"])
    ]


@pytest.mark.parametrize(
    ("caption", "options", "said"),
    [
        (
            torch.full((41,), 3),
            {},
            "a caption .* may have 41 tokens, but this model's decoder reads 40",
        ),
        ("w1 " * 60, {}, "may have 61 tokens"),
        ("w1", {"padding": "count"}, "a caption filled up to max_length may have 64 tokens"),
        (
            None,
            {"max_new_tokens": 41},
            "a caption with its prompt and max_new_tokens may have 41 tokens",
        ),
    ],
    ids=["ids", "text", "filled", "written"],
)
def test_captions_that_are_longer_than_the_decoder_reads_are_refused(
    folder, pictures, caption, options, said
):
    processor = load_processor(str(folder / "base"))
    base = load_base(str(folder / "base"))
    sample = CaptionSample(torch.zeros(3, 16, 16), caption)
    with pytest.raises(ConfigError, match=said):
        merge_blip(
            Base(base, processor),
            tasks([folder / "one"], [[sample]]),
            options=CaptionOptions(**options),
        )


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_patch_embedding_is_saved_as_a_convolution(folder, tmp_path, use_dora):
    kind = {"kind": BlipForConditionalGeneration, "task_type": None, "use_dora": use_dora}
    tiny_language.adapter(
        folder / "base", tmp_path / "conv", 1, ("patch_embedding", "query"), **kind
    )
    assert_peft_does_what_deltas_do(tmp_path / "conv")
    merge_blip(
        str(folder / "base"),
        tasks([tmp_path / "conv", folder / "one"], [samples_of(0), samples_of(1)]),
    ).save(tmp_path / "out")
    assert_peft_does_what_deltas_do(tmp_path / "out")


def assert_peft_does_what_deltas_do(folder):
    inputs = {
        "pixel_values": samples_of(5)[0].image[None],
        "input_ids": samples_of(5)[0].caption[None],
    }
    deltas = load_adapter(tiny_language.blip(), folder).deltas
    assert "vision_model.embeddings.patch_embedding" in deltas
    with torch.no_grad():
        found = tiny_language.peft(tiny_language.blip(), folder).eval()(**inputs).logits
        expected = tiny_language.with_deltas(tiny_language.blip(), deltas)(**inputs).logits
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_streams_and_wrong_samples(folder):
    assert stream_of("text_decoder.bert.encoder.layer.0.crossattention.self.key") == "image"
    assert stream_of("text_decoder.bert.encoder.layer.0.crossattention.self.query") == "text"
    assert stream_of("vision_model.encoder.layers.0.self_attn.qkv") == "image"
    base = load_base(str(folder / "base"))
    for sample, said in (
        (CaptionSample(torch.zeros(3, 8, 8), torch.tensor([3])), "this model reads"),
        (CaptionSample(torch.zeros(3, 16, 16), torch.tensor([99])), "ids from 0 to 49"),
    ):
        with pytest.raises(CalibrationError, match=said):
            merge_blip(base, tasks([folder / "one"], [[sample]]))
