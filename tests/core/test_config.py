"""Settings outside their range are refused where they are made."""

import json
import math

import pytest
import torch

from iteris_core import BaselineOptions, ConfigError, MergeConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1e-4}, "alpha is -0.0001; it must be a number from 0 to 1000000000"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"alpha_cross": -1.0}, "alpha_cross is -1.0; it must be a number from 0 to"),
        ({"ridge": "official"}, "ridge is 'official'; it must be 'consistent' or 'paper'"),
        ({"balance": ""}, "balance is ''; it must be 'delta' or 'full' or 'uniform'"),
        ({"input_mix": 1.0}, "input_mix is 1.0; it must be a number from 0 to below 1"),
        ({"input_mix": -0.1}, "input_mix is -0.1"),
        ({"input_mix": math.nan}, "input_mix is nan"),
        ({"samples_per_chunk": 0}, "samples_per_chunk is 0"),
        ({"engine": "loop"}, "engine is 'loop'; it must be 'sweep' or 'iterate'"),
        ({"target": "output"}, "target is 'output'; it must be 'full_output' or 'delta'"),
        ({"max_iter": 0}, "max_iter is 0; it must be a whole number from 1 to 1000"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"tokens_per_row": 0}, "tokens_per_row is 0"),
        ({"rank": 0}, "rank is 0; it must be a whole number from 1 to 65536, 'sum' or 'full', or"),
        ({"rank": "half"}, "rank is 'half'"),
        ({"rank": {"layer": 0}}, "rank is {'layer': 0}"),
        ({"kept_energy": 0.0}, "kept_energy is 0.0; it must be a number above 0, and 1 at most"),
        ({"kept_energy": math.nan}, "kept_energy is nan"),
        ({"size": 0}, "size is 0"),
        (
            {"rank": 4, "kept_energy": 0.9},
            "rank, kept_energy and size each decide the ranks; give only one of them",
        ),
        ({"size": 100, "kept_energy": 0.9}, "give only one of them"),
        ({"method": "magic"}, "method is 'magic'; it must be 'iteris' or 'average' or"),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MergeConfig(**settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scale": math.nan},
            "scale is nan; it must be a number from -1000000 to 1000000, 'search', or none",
        ),
        (
            {"scale": "best"},
            "scale is 'best'; it must be a number from -1000000 to 1000000, 'search', or none",
        ),
        ({"density": 0.0}, "density is 0.0; it must be a number above 0, and 1 at most"),
        ({"density": 1.5}, "density is 1.5"),
        ({"sign": "majority"}, "sign is 'majority'; it must be 'total' or 'frequency'"),
        ({"off_diagonal": -0.1}, "off_diagonal is -0.1; it must be a number from 0 to 1"),
        ({"off_diagonal": math.nan}, "off_diagonal is nan"),
        (
            {"projection": math.inf},
            "projection is inf; it must be a number from 0 to 1000000 or none",
        ),
        ({"projection": -1.0}, "projection is -1.0"),
        ({"solver": "sgd"}, "solver is 'sgd'; it must be 'closed_form' or 'lbfgs'"),
    ],
)
def test_an_option_of_a_rival_outside_its_range_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        BaselineOptions(**options)


def test_settings_are_json_values():
    config = MergeConfig(
        method="ties", baseline=BaselineOptions(scale="search"), output_dtype=torch.float16
    )
    assert json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.to_dict()["baseline"]["scale"] == "search"
