"""Settings outside their range are refused where they are made."""

import json
import math

import pytest
import torch

from iteris_core import BaselineOptions, ConfigError, MergeConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1e-4}, "alpha is -0.0001; it must be a finite number, 0 or more"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"alpha_cross": -1.0}, "alpha_cross is -1.0; it must be a finite number"),
        ({"ridge": "official"}, "ridge is 'official'; it can be 'consistent' or 'paper'"),
        ({"balance": ""}, "balance is ''; it can be 'delta' or 'full' or 'uniform'"),
        ({"input_mix": 1.0}, "input_mix is 1.0; it must be 0 or more and less than 1"),
        ({"input_mix": -0.1}, "input_mix is -0.1"),
        ({"input_mix": math.nan}, "input_mix is nan"),
        ({"samples_per_chunk": 0}, "samples_per_chunk is 0"),
        ({"engine": "loop"}, "engine is 'loop'; it can be 'sweep' or 'iterate'"),
        ({"target": "output"}, "target is 'output'; it can be 'full_output' or 'delta'"),
        ({"max_iter": 0}, "max_iter is 0; it must be 1 or more"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"tokens_per_row": 0}, "tokens_per_row is 0"),
        ({"rank": 0}, "rank is 0; it can be 'sum', 'full', a number from 1"),
        ({"rank": "half"}, "rank is 'half'"),
        ({"rank": {"layer": 0}}, "rank is {'layer': 0}"),
        ({"kept_energy": 0.0}, "kept_energy is 0.0; it must be above 0, and 1 at most"),
        ({"kept_energy": math.nan}, "kept_energy is nan"),
        ({"size": 0}, "size is 0"),
        (
            {"rank": 4, "kept_energy": 0.9},
            "rank, kept_energy and size each decide the ranks; give only one of them",
        ),
        ({"size": 100, "kept_energy": 0.9}, "give only one of them"),
        ({"method": "magic"}, "method is 'magic'; it can be 'iteris' or 'average' or"),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MergeConfig(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": math.nan}, "scale is nan; it must be a finite number, 'search', or None"),
        ({"scale": "best"}, "scale is 'best'; it must be a finite number, 'search', or None"),
        ({"density": 0.0}, "density is 0.0; it must be above 0, and 1 at most"),
        ({"density": 1.5}, "density is 1.5"),
        ({"sign": "majority"}, "sign is 'majority'; it can be 'total' or 'frequency'"),
        ({"off_diagonal": -0.1}, "off_diagonal is -0.1; it must be from 0 to 1"),
        ({"off_diagonal": math.nan}, "off_diagonal is nan"),
        (
            {"projection": math.inf},
            "projection is inf; it must be a finite number, 0 or more, or None",
        ),
        ({"projection": -1.0}, "projection is -1.0"),
        ({"solver": "sgd"}, "solver is 'sgd'; it can be 'closed_form' or 'lbfgs'"),
    ],
)
def test_an_option_of_a_rival_outside_its_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BaselineOptions(**options)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "np_lora", "baseline": BaselineOptions(scale=-2, density=1, projection=None)},
        {
            "method": "ties",
            "baseline": BaselineOptions(scale="search", sign="frequency", density=0.2, seed=3),
        },
        {"alpha": 0.0, "alpha_cross": 0.0},
        {"ridge": "paper", "balance": "full", "input_mix": 0.99},
        {
            "rank": {"layer": 3},
            "target": "full_output",
            "engine": "iterate",
            "max_iter": 1,
            "tolerance": 0.0,
        },
        {"kept_energy": 1.0},
        {"size": 1, "rank": "sum"},
        {"balance": "uniform", "output_dtype": torch.bfloat16, "samples_per_chunk": 1},
    ],
)
def test_settings_inside_their_range_are_kept(settings):
    config = MergeConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_config_cannot_be_changed_behind_its_checks():
    with pytest.raises(AttributeError):
        MergeConfig().alpha = -1.0


def test_settings_are_json_values():
    config = MergeConfig(
        method="ties", baseline=BaselineOptions(scale="search"), output_dtype=torch.float16
    )
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["baseline"]["scale"] == "search"
