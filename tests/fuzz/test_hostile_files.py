"""The smallest files that once froze a reader, filled the memory, or ended in an untyped error."""

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from fuzz_files import CONV, LINEAR, NORM, PEFT_SETTINGS, kohya, seeds
from fuzz_readers import FILES, FOLDERS, as_node, as_route, quick, read_or_refused, replaced
from safetensors.torch import load_file, save, save_file
from torch import nn

from iteris_core import AdapterError
from iteris_core.files import kohya as kohya_files
from iteris_core.files import limits, peft
from iteris_core.files.adapter_kinds import delta_of, own_dense_delta
from iteris_core.files.families import FAMILIES
from iteris_core.files.groups import grouped
from iteris_core.files.headers import lora_header
from iteris_core.files.model_keys import ModelKeys
from iteris_core.files.roles import check_scales
from iteris_core.files.tensors import read_header, read_tensors
from iteris_core.files.trigger_words import trigger_words

ONE = torch.ones(1)
BASE = kohya(LINEAR)


@pytest.fixture
def file(tmp_path):
    def written(tensors, metadata=None):
        path = tmp_path / "stranger.safetensors"
        own = {key: tensor.clone() for key, tensor in tensors.items()}
        path.write_bytes(save(own, metadata))
        return path

    return written


def with_header(path, header: bytes, data: bytes = b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


LONGEST = limits.KEY_CHARACTERS - 10
KEYS = (
    "attn2" * 300 + "to_k" * 300 + "x",
    "a." * 100_000,
    "1." * 8_000 + "x",
    "_1" * 8_000,
    "." * (limits.KEY_CHARACTERS - 1),
    "x" + ".1" * (LONGEST // 2) + ".alpha",
    "attn2to_k" * (LONGEST // 9) + ".alpha",
)


@pytest.mark.parametrize("reader", FILES)
def test_no_key_holds_up_a_reader(reader, file):
    for key in KEYS:
        path = file({**{f"{i}{key}"[: len(key)]: ONE for i in range(100)}, **seeds()["kohya"]})
        read_or_refused(FILES[reader], path, "stranger")


def test_a_file_is_looked_at_once_until_it_changes(file, monkeypatch):
    looks = []
    monkeypatch.setattr(
        "iteris_core.files.headers.grouped",
        lambda tensors: looks.append(1) or grouped(tensors),
    )
    path = file(seeds()["kohya"])
    assert lora_header(path) == lora_header(path)
    assert len(looks) == 1
    file({**seeds()["kohya"], f"{BASE}.lora_down.weight": torch.ones(5, 12)})
    assert lora_header(path).rank == 5
    path.with_suffix(".civitai.info").write_text('{"trainedWords": ["sks"]}')
    assert lora_header(path).triggers.words == ("sks",)
    assert len(looks) == 3
    path.write_bytes(b"x" * 100)
    for _ in range(3):
        with pytest.raises(AdapterError, match="not a whole safetensors file"):
            lora_header(path)
    path.unlink()
    with pytest.raises(AdapterError, match="no such file"):
        lora_header(path)


def test_a_disk_that_fails_is_asked_again(file, monkeypatch):
    def failing(*given, **named):
        raise OSError(5, "the disk failed")

    path = file(seeds()["kohya"])
    with monkeypatch.context() as patch, pytest.raises(AdapterError, match="the disk failed"):
        patch.setattr(Path, "open", failing)
        lora_header(path)
    assert lora_header(path).rank == 2


def test_training_folders_and_tags_are_compared_in_linear_time():
    folders = {f"{i}_w{i}x": {f"tag {i} of {i * 7}": 1, f"w{i}": 2} for i in range(20_000)}
    found = quick(trigger_words, {"ss_tag_frequency": json.dumps(folders)})
    assert found.words
    assert quick(
        trigger_words, {"ss_tag_frequency": json.dumps({"1_a": {"b" * 10**6: 1, "a b": 2}})}
    )
    words = {"1_aa": {"b " * 9_000_000: 1, "x aa": 2}}
    begun = time.thread_time()
    assert quick(trigger_words, {"ss_tag_frequency": json.dumps(words)}).words == ("aa", "x aa")
    assert time.thread_time() - begun < 1


def test_a_pattern_of_a_file_is_never_compiled(tmp_path):
    for pattern in ("(a+)+$", "(q|v)", "q[01]", "a{3}", "to_.?", r"\d+", "a*"):
        folder = peft_folder(tmp_path, rank_pattern={pattern: 2})
        said = r"stranger: .* holds the pattern .*, a regular expression"
        with pytest.raises(AdapterError, match=said):
            quick(FOLDERS["peft"], folder)


def peft_folder(tmp_path, **settings):
    folder = tmp_path / "stranger"
    folder.mkdir(exist_ok=True)
    save_file(seeds()["peft"], folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PEFT_SETTINGS, **settings}))
    return folder


PATTERNS = ("q", "attn.q", "block.0.attn.q", "^block.0.attn.q", r"^block\.0\.attn\.q", "^attn.q")
PATTERNS += ("lock.0.attn.q", "kq", "attn", "")
PATHS = ("q", "attn.q", "block.0.attn.q", "x.block.0.attn.q", "block.0.attn.kq", "block.1.mlp.wi")


@pytest.mark.slow  # it loads peft
def test_patterns_mean_what_they_mean_in_peft():
    from peft.utils.other import get_pattern_key

    for path in PATHS:
        for first, second in zip(PATTERNS, [*PATTERNS[3:], *PATTERNS[:3]], strict=True):
            ranks = {first: 1, second: 2}
            expected = ranks.get(get_pattern_key([first, second], path), 3)
            settings = {"r": 3, "lora_alpha": expected, "rank_pattern": ranks}
            assert peft.Scales.of(settings).at(path, expected) == 1, (path, ranks)


def test_many_patterns_are_compared_in_linear_time():
    paths = [f"block.{i}.attn.q" for i in range(5_000)]

    def compare():
        scales = peft.Scales.of({"rank_pattern": dict.fromkeys(paths, 2), "lora_alpha": 2})
        return {scales.at(f"model.{path}", 2) for path in paths}

    assert quick(compare) == {1}


def test_a_header_is_limited_before_it_is_parsed(tmp_path):
    path = with_header(tmp_path / "stranger.safetensors", b'{"a":"' + b"b" * limits.HEADER_BYTES)
    with pytest.raises(AdapterError, match=r"stranger.safetensors: the header has 20000006 bytes"):
        quick(read_header, path)


def test_a_file_is_limited_before_it_is_read(file, monkeypatch):
    path = file(seeds()["kohya"])
    monkeypatch.setattr(limits, "FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(AdapterError, match=r"stranger.safetensors: the file has \d+ bytes, and an"):
        read_tensors(path)
    assert read_header(path)


def entry(key, number):
    return f'"{key}":{{"dtype":"U8","shape":[1],"data_offsets":[{number},{number + 1}]}}'


def one(key="a", number=0, **changed):
    header = entry(key, number).join("{}")
    for old, new in changed.items():
        header = header.replace({"shape": "[1]", "dtype": "U8"}[old], new)
    return header


HEADERS = {
    "key": (one("k" * 301), "has 301 characters, and at most 300 are read"),
    "braces": (one("{first}" * 43), "has 301 characters, and at most 300 are read"),
    "sides": (one(shape="[4611686018427387904,0]"), "not a whole safetensors file"),
    "levels": (one(shape="[" * 300), "not a whole safetensors file"),
    "offsets": (one(number=10**400), "not a whole safetensors file"),
    "half a character": ('{"__metadata__":{"a":"\\ud800"}}', "not a whole safetensors file"),
    "behind": (one() + "x", "not a whole safetensors file"),
    "complex": (one(dtype="C64"), "is of the type 'C64', which is not"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_beyond_the_limits_is_refused(case, tmp_path):
    header, said = HEADERS[case]
    path = with_header(tmp_path / "stranger.safetensors", header.encode(), bytes(8))
    with pytest.raises(AdapterError, match=f"stranger.safetensors: .*{said}"):
        quick(lora_header, path)


def layer(d_out, d_in):
    modules = {"q": nn.Linear(d_in, d_out, device="meta")}
    keys = ModelKeys.of(FAMILIES["SD1.5"], modules, {"lora_unet_q": "q"}, {})

    def read(path):
        tensors, _ = read_tensors(path)
        return kohya_files.parse(
            path.stem, tensors, keys, dense_delta=own_dense_delta(lambda path: torch.zeros(1))
        )

    return read


def zeros(**shapes):
    return {role: torch.zeros(shape) for role, shape in shapes.items()}


BOMBS = {
    "lokr": zeros(lokr_w1=(100, 110), lokr_w2=(300, 310)),
    "lokr_factors": zeros(lokr_w1=(1, 1), lokr_w2_a=(60_000, 1), lokr_w2_b=(1, 60_000)),
    "lokr_both": zeros(
        lokr_w1_a=(120, 1), lokr_w1_b=(1, 120), lokr_w2_a=(100, 1), lokr_w2_b=(1, 100)
    ),
    "lokr_core": zeros(
        lokr_w1=(1, 1), lokr_t2=(40_000, 1, 1, 1), lokr_w2_a=(40_000, 1), lokr_w2_b=(1, 40_000)
    ),
    "tucker": zeros(
        **{
            "lora_up.weight": (320, 1_000, 1, 1),
            "lora_mid.weight": (1_000, 1, 3, 3),
            "lora_down.weight": (1, 100_000, 1, 1),
        }
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_no_product_is_made_before_its_size_is_known(case, file):
    path = file({f"lora_unet_q.{role}": tensor for role, tensor in BOMBS[case].items()})
    with pytest.raises(AdapterError, match="stranger: 'lora_unet_q' has"):
        quick(layer(320, 320), path)


@pytest.mark.parametrize("role", ["dora_scale", "rescale"])
def test_magnitudes_go_with_the_rows_or_columns_of_the_weight(role):
    for fitting in ((8, 1), (1, 12), (1,), (12,), ()):
        check_scales({role: torch.ones(fitting)}, (8, 12))
    wrong = [(shape, (8, 12)) for shape in ((8, 1, 1), (1_000, 1), (8,), (1, 1, 8, 1))]
    wrong.append(((1, 1, 8, 1), (8, 8, 1, 1)))  # it would be 8 times the weight
    for shape, weight in wrong:
        with pytest.raises(AdapterError, match="does not fit a weight"):
            check_scales({role: torch.ones(shape)}, weight)


def test_a_loha_of_a_large_rank_is_read_as_its_product(file):
    factors = {"hada_w1_a": (160, 600), "hada_w1_b": (600, 160)}
    factors |= {"hada_w2_a": (160, 600), "hada_w2_b": (600, 160)}
    tensors = {f"lora_unet_q.{role}": torch.randn(shape) / 25 for role, shape in factors.items()}
    a, b, c, d = tensors.values()
    delta = 0.5 * (a @ b) * (c @ d)
    path = file({**tensors, "lora_unet_q.alpha": torch.tensor(300.0)})
    read = quick(layer(160, 160), path).deltas["q"]
    torch.testing.assert_close(read.dense(), delta, rtol=1e-3, atol=1e-3)


HALF = """
    import sys
    from iteris_core.files.tensors import read_tensors
    tensors, _ = read_tensors(sys.argv[1])
    with open(sys.argv[1], "r+b") as file:
        file.truncate(100)
    print(sum(tensor.sum().item() for tensor in tensors.values()))
"""


@pytest.mark.slow  # another process
def test_a_file_that_is_cut_after_it_was_read_does_not_end_the_process(file):
    """What is mapped into memory ends it with signal 7."""
    path = file({"a": torch.ones(500, 500), "b": torch.ones(500, 500)})
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HALF), path], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "500000.0\n"), done.stderr


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("ending", ["diff_b", "w_norm", "b_norm"])
def test_a_bias_or_norm_that_is_not_finite_is_refused_with_its_key(number, ending, file):
    path = kohya(NORM if "norm" in ending else LINEAR)
    vector = torch.tensor([1.0, 2, 3, number, 5, 6, 7, 8])
    given = file({**seeds()["kohya"], f"{path}.{ending}": vector})
    with pytest.raises(AdapterError, match=rf"stranger: .* infinite numbers in '{path}\.{ending}'"):
        as_node(given)


def test_a_bias_of_another_shape_belongs_to_no_parameter(file):
    for shape in ((8, 1), (1, 8), (2, 4), (), (7,)):
        adapter = as_node(file({**seeds()["kohya"], f"{BASE}.diff_b": torch.ones(shape)}))
        assert adapter.unmatched == (f"{BASE}.diff_b",), shape
        assert not adapter.vectors


def test_what_makes_numbers_that_none_can_hold_is_refused_with_its_file(file):
    large = pair(torch.full((8, 2), 1e38), torch.full((2, 12), 1e38))
    differences = [{f"{BASE}.diff": torch.full((8, 12), size)} for size in (4e37, 1e38, 3e38)]
    for given in (large, *differences):
        with pytest.raises(AdapterError, match=f"stranger: '{BASE}' holds NaN or infinite"):
            as_node(file(given))


NESTED = "[" * 100_000
OF_DIFFUSERS = {"lora_adapter_metadata": '{"unet.r": 0, "unet.lora_alpha": 1}'}


def pair(up, down, base=BASE, endings=("lora_up", "lora_down")):
    return {f"{base}.{end}.weight": tensor for end, tensor in zip(endings, (up, down), strict=True)}


LOKR = {f"{BASE}.lokr_w2_a": ONE[0], f"{BASE}.lokr_w2_b": ONE[0]}
CORE = {f"{kohya(CONV)}.lora_mid.weight": torch.ones(2, 2)}
PEFTS = (LINEAR, ("lora_B", "lora_A"))
# Tensors, and the metadata.
UNTYPED = [
    *(
        (seeds()["kohya"], {field: NESTED})
        for field in ("ss_tag_frequency", "lora_adapter_metadata", "iteris.recipe")
    ),
    ({f"{BASE}.diff": torch.tensor(1.0)}, None),
    ({f"{BASE}.diff": torch.ones(0, 12)}, None),
    ({f"{BASE}.lokr_w1": torch.ones(2, 3), **LOKR}, None),
    ({f"{BASE}.lokr_w1": ONE, f"{BASE}.lokr_w2": ONE}, None),
    ({**seeds()["kohya"], ".alpha": ONE}, None),
    (pair(torch.ones(8, 3), torch.ones(2, 12)), None),
    (pair(ONE[0], ONE[0]), None),
    (pair(torch.ones(0, 2), torch.ones(2, 12)), None),
    (pair(ONE[0], ONE[0], *PEFTS), OF_DIFFUSERS),
    (pair(torch.ones(8, 0), torch.ones(0, 12), *PEFTS), OF_DIFFUSERS),
    ({**pair(torch.ones(8, 2), torch.ones(2, 4), kohya(CONV)), **CORE}, None),
]


@pytest.mark.parametrize("reader", FILES)
def test_what_ended_in_an_untyped_error_is_read_or_refused(reader, file):
    for tensors_and_metadata in UNTYPED:
        read_or_refused(FILES[reader], file(*tensors_and_metadata), "stranger")


HUGE = 10**400


@pytest.mark.parametrize("reader", FOLDERS)
def test_settings_of_peft_that_ended_in_an_untyped_error(reader, tmp_path):
    numbers = [{"r": HUGE}, {"lora_alpha": HUGE}, {"lora_alpha": -HUGE}]
    names = [{"base_model_name_or_path": name} for name in (["a"], 3)]
    kinds = [{"peft_type": {"a": NESTED}}, {"init_lora_weights": ["pissa"]}]
    for settings in (*numbers, *names, *kinds, {"rank_pattern": {"q_proj": HUGE}}):
        folder = peft_folder(tmp_path, **settings)
        read_or_refused(FOLDERS[reader], folder, "stranger")


def test_settings_of_peft_that_are_no_settings(tmp_path):
    folder = peft_folder(tmp_path)
    for content in (b"{" * 100_000, b" " * (limits.SETTINGS_BYTES + 1), b"[1]", b"\xff"):
        (folder / "adapter_config.json").write_bytes(content)
        with pytest.raises(AdapterError, match=r"stranger: adapter_config\.json"):
            quick(peft.load, folder, {})


def test_a_lokr_of_both_forms_takes_its_scale_from_the_form_that_is_used():
    whole = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3)}
    delta = delta_of({**whole, "lokr_w2_b": ONE[0], "alpha": ONE}, (6, 6))
    torch.testing.assert_close(delta.dense(), torch.ones(6, 6))
    assert delta.rank == 1


def test_an_ia3_is_refused(file):
    path = file(seeds()["ia3"])
    with pytest.raises(AdapterError, match=r"stranger.*: none of its 2 "):
        as_node(path)


def test_the_route_answers_shortly_whatever_the_words_are(file):
    endless = {"modelspec.trigger_phrase": "w" * 10_000_00, "modelspec.architecture": "a" * 10**6}
    answer = as_route(file(seeds()["kohya"], endless))
    assert answer["trigger_words"] == []
    assert answer["base"] == "SD1.5" or len(answer["base"]) < 100
    assert answer["error"] is None
    longest = "w" * limits.WORD_CHARACTERS
    answer = as_route(file(seeds()["kohya"], {"modelspec.trigger_phrase": longest}))
    assert answer["trigger_words"] == [longest]


def test_the_route_says_why_a_file_cannot_be_read(file):
    path = file(seeds()["kohya"])
    path.write_bytes(path.read_bytes()[:-1])
    assert "stranger.safetensors: not a whole safetensors file" in as_route(path)["error"]
    with replaced(lora_names=lambda: []):
        from iteris_pack.nodes.loras.about import about_lora

        assert len(about_lora("a" * 10_000_000)["error"]) < 200


def test_a_file_as_large_as_real_ones_is_read(tmp_path):
    """An SDXL LoRA of kohya's: 2,500 keys, and tags of several MB."""
    tensors = {
        f"lora_unet_output_blocks_{i}_transformer_blocks_0_attn2_to_k.{name}": torch.ones(1, 1)
        for i in range(834)
        for name in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    tags = {
        f"10_sks {i}": {f"a tag of some length, {i} {j}": j for j in range(4_000)}
        for i in range(25)
    }
    path = Path(tmp_path / "stranger.safetensors")
    path.write_bytes(
        save(tensors, {"ss_tag_frequency": json.dumps(tags), "ss_datasets": "[]" * 10**5})
    )
    assert path.stat().st_size > 4_000_000
    assert load_file(path).keys() == quick(read_tensors, path)[0].keys()
    assert quick(lora_header, path).triggers.triggers == ("sks 0",)
