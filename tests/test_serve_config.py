"""The application's configuration: what ``serve deploy`` takes is made of the settings; nothing wrong is started."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

from ray.serve import Application  # noqa: E402
from ray.serve.config import AutoscalingConfig  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

import serve_app  # noqa: E402
from cli import app  # noqa: E402
from errors import ConfigError  # noqa: E402
from settings import load  # noqa: E402

SETTINGS: dict[str, Any] = {"engine": {"sessions": 3}, "service": {"generators": 2, "pace": {"lead": 3}}}


def test_what_serve_deploy_takes_is_valid_and_holds_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    done = CliRunner().invoke(app, ["config", "--config", str(file), "--port", "8100"])
    assert done.exit_code == 0, done.output
    plain = yaml.safe_load(done.stdout)
    schema = ServeDeploySchema.model_validate(plain)
    own = schema.applications[0]
    assert own.args == {"settings": SETTINGS}
    assert (schema.http_options.port, own.import_path, own.route_prefix) == (8100, "serve_app:app", "/")
    generator = next(d for d in own.deployments if d.name == "generator")
    assert generator.num_replicas == 2
    assert generator.user_config["pace"]["lead"] == 3  # may be changed while sessions run
    assert isinstance(serve_app.app(serve_app.Arguments(**own.args)), Application)


def test_generators_are_scaled_by_the_directory_when_settings_say_so_and_fixed_otherwise() -> None:
    fixed = serve_app.deploy_config(SETTINGS, "127.0.0.1", 8000)["applications"][0]["deployments"][1]
    assert (fixed["num_replicas"], "autoscaling_config" in fixed) == (2, False)
    scaled = {"service": {"generators": 2, "generators_max": 6, "leave_s": 90.0, "balance": {"moves": 2}}}
    plain = serve_app.deploy_config(scaled, "127.0.0.1", 8000)
    generator = ServeDeploySchema.model_validate(plain).applications[0].deployments[1]
    assert generator.graceful_shutdown_timeout_s == 90.0
    assert (generator.autoscaling_config["min_replicas"], generator.autoscaling_config["max_replicas"]) == (2, 6)
    config = AutoscalingConfig.model_validate(generator.autoscaling_config)
    assert config.policy.get_policy().__name__ == "generators_wanted"
    rules = generator.user_config["rules"]
    assert (rules["least"], rules["most"], rules["balance"]["moves"]) == (2, 6, 2)
    assert isinstance(serve_app.app(serve_app.Arguments(settings=scaled)), Application)
    with pytest.raises(ConfigError, match=r"service\.generators_max is 1; expected at least service\.generators"):
        serve_app.deploy_config({"service": {"generators": 2, "generators_max": 1}}, "127.0.0.1", 8000)


def test_the_application_is_built_of_a_file_of_plain_settings_or_of_nothing(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(SETTINGS))
    for given in (str(file), SETTINGS, None):
        assert isinstance(serve_app.app(serve_app.Arguments(settings=given)), Application)
    assert isinstance(serve_app.built, Application)
    with pytest.raises(AttributeError, match="has no attribute 'build'"):
        _ = serve_app.build


def test_wrong_settings_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"service\.ledgers is 0; expected at least 1"):
        serve_app.app(serve_app.Arguments(settings={"service": {"ledgers": 0}}))
    with pytest.raises(
        ConfigError, match=r"service\.pace\.led \(settings\) .* no such key; expected service\.pace\.lead"
    ):
        serve_app.deploy_config({"service": {"pace": {"led": 3}}}, "127.0.0.1", 8000)
    file = tmp_path / "my.yaml"
    file.write_text("service: {store: nowhere}")
    done = CliRunner().invoke(app, ["config", "--config", str(file)])
    assert done.exit_code == 2
    assert "service.store" in done.output


def test_each_part_can_be_sent_to_the_nodes_that_have_its_resources() -> None:
    found = serve_app.application(
        load(
            {
                "segmenter": {"kind": "toy"},
                "service": {
                    "gateway_cpus": 0.5,
                    "gateway_resources": {"gateway": 1},
                    "generator_resources": {"generator": 1},
                    "segmenter_resources": {"segmenter": 0.5},
                    "books_resources": {"books": 0.01},
                },
            },
            {},
        )
    )
    gateway = found._bound_deployment
    generator = gateway.init_args[0]._bound_deployment
    segmenter = generator.init_args[2]._bound_deployment
    wanted = [
        {"num_cpus": 0.5, "resources": {"gateway": 1}},
        {"num_cpus": 1, "num_gpus": 0, "resources": {"generator": 1}},
        {"num_cpus": 0, "num_gpus": 0, "resources": {"segmenter": 0.5}},
    ]
    for deployment, options in zip((gateway, generator, segmenter), wanted, strict=True):
        assert {**deployment.ray_actor_options, **options} == deployment.ray_actor_options
    assert generator.init_args[1].books_resources == {"books": 0.01}
    for wrong in ({"CPU": 1}, {"gateway": 0}):
        with pytest.raises(ConfigError, match=r"service\.gateway_resources has .* expected a custom resource, above 0"):
            load({"service": {"gateway_resources": wrong}}, {})
