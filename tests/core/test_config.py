"""Settings of a merge that do not go together are refused; a recipe can hold them as JSON."""

import json

import pytest
import torch

from iteris_core import BaselineOptions, ConfigError, MergeConfig


def test_one_setting_decides_the_ranks():
    for settings in ({"rank": 4, "kept_energy": 0.9}, {"size": 100, "kept_energy": 0.9}):
        with pytest.raises(ConfigError, match="rank, kept_energy and size each decide the ranks"):
            MergeConfig(**settings)


def test_a_setting_outside_its_range_is_refused():
    for name, value in {
        "alpha": -1e-4,
        "input_mix": 1.0,
        "rank": {"layer": 0},
        "kept_energy": 0.0,
        "output_dtype": torch.int8,
        "method": "magic",
    }.items():
        with pytest.raises(ConfigError, match=f"^{name} is .*; it must be "):
            MergeConfig(**{name: value})


def test_settings_are_json_values():
    config = MergeConfig(
        method="ties", baseline=BaselineOptions(scale="search"), output_dtype=torch.float16
    )
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["baseline"]["scale"] == "search"
    assert config.to_dict()["output_dtype"] == "float16"
