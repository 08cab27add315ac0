"""Settings from the command line, a file and Python."""

from __future__ import annotations

import math

import pytest
import yaml

from rlaif.config import RunConfig, make_config
from rlaif.errors import InputError

OWN_FIELDS = ["model", "messages", "n", "stream", "temperature", "max_tokens", "max_completion_tokens", "seed", "logprobs"]
GIVEN = {"prompts": "p.jsonl", "out": "o", "policy": "fake/oracle"}


def test_a_name_is_a_list_of_one():
    config = make_config(GIVEN | {"judge": "pairwise"})
    assert (config.policy, config.judge) == (["fake/oracle"], ["pairwise"])


def test_what_is_given_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("n: 6\ntemperature: 0.5\npolicy: fake/tie\n")
    config = make_config({"prompts": "p", "out": "o", "n": 3, "policy": None}, str(file))
    assert (config.n, config.temperature, config.policy, config.max_tokens) == (3, 0.5, ["fake/tie"], 512)


def test_a_false_on_the_command_line_wins_over_a_true_in_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("allow_truncated: true\nseed: 5\n")
    config = make_config(GIVEN | {"allow_truncated": False, "seed": 0}, str(file))
    assert (config.allow_truncated, config.seed) == (False, 0)


def test_the_resolved_configuration_reads_back_as_itself(tmp_path):
    config = make_config(GIVEN | {"system": "be: brief\n# 是", "extra_body": {"top_k": 5, "stop": ["\n"]}, "limit": 3})
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert make_config({}, str(tmp_path / "config.yaml")) == config
    assert set(yaml.safe_load(config.to_yaml())) == set(RunConfig.model_fields) - {"retry_failed"}
    assert "是" in config.to_yaml()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "n = 0"),
        ({"n": "many"}, "n = 'many'"),
        ({"max_tokens": 0}, "max-tokens = 0"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"limit": 0}, "limit = 0"),
        ({"concurrency": 0}, "concurrency = 0"),
        ({"timeout_s": 0}, "timeout-s = 0"),
        ({"transport": "carrier pigeon"}, "transport = 'carrier pigeon'"),
        ({"extra_body": {"min_p": math.nan}}, "extra-body"),
        *(({"extra_body": {"top_p": 0.5, name: 1}}, f"'{name}' is rlaif's own") for name in OWN_FIELDS),
        ({"judge": 3}, "judge = 3"),
        ({"temprature": 1.0}, "no setting `temprature`; there are .*temperature"),
        ({"policy": []}, "no policy model"),
        ({"n": 1}, "at least 2"),
    ],
)
def test_a_wrong_setting_is_named(settings, said):
    with pytest.raises(InputError, match=said):
        make_config(GIVEN | settings)


@pytest.mark.parametrize("name", ["prompts", "out"])
def test_a_missing_setting_is_named(name):
    with pytest.raises(InputError, match=f"`{name}` is missing"):
        make_config({k: v for k, v in GIVEN.items() if k != name})


def test_two_policies_with_a_sample_each_are_enough():
    assert make_config(GIVEN | {"policy": ["fake/oracle", "fake/tie"], "n": 1}).n == 1


def test_judging_needs_no_policy():
    assert make_config({"command": "judge", "prompts": "c.jsonl", "out": "o"}).policy == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- n: 3", "must hold settings"),
        ("", "must hold settings"),
        ("n: [", "not valid YAML"),
        ("N: 3", "no setting `N`"),
        ("1: 3", "1"),
        ("n: 3\nn:\n  - 4", "n = "),
    ],
)
def test_a_wrong_file_is_the_user_s_mistake(tmp_path, content, said):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=said):
        make_config(GIVEN, str(file))


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"no configuration file at 'no\.yaml'"):
        make_config(GIVEN, "no.yaml")
