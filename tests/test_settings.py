"""Settings: the parts' own defaults, a file, the environment; and errors that say which key, which value, what else."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from cache.keep_set import Budgets
from cache.policies import SinkRecent
from errors import BudgetError, CheckpointError, ConfigError, GeometryError
from settings import POLICIES, Cue, ModelSettings, Settings, build_engine, load, read_key, read_script
from streams.engine_config import EngineConfig

Write = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


RANDOM_WEIGHTS = {"LONGTAKE_MODEL__SOURCE": "random"}


def test_without_a_file_and_variables_all_defaults_are_those_of_the_parts() -> None:
    settings = load(environ={"PATH": "/bin", "LONGTAKES": "2", **RANDOM_WEIGHTS})
    assert settings == Settings(model=ModelSettings("random"))
    assert (settings.engine, settings.budgets) == (EngineConfig(), Budgets())


def test_the_environment_overrides_the_file_and_the_file_the_defaults(written: Write) -> None:
    path = written("engine: {sessions: 2, host_bytes: 5}\ngeometry: {fps: 24}")
    settings = load(
        path, {**RANDOM_WEIGHTS, "LONGTAKE_ENGINE__SESSIONS": "3", "LONGTAKE_ENGINE__CACHE__POSITIONS__SLOTS": "20"}
    )
    assert (settings.engine.sessions, settings.engine.host_bytes) == (3, 5)
    assert (settings.geometry.fps, settings.geometry.frames) == (24.0, Settings().geometry.frames)
    assert settings.engine.cache.positions.slots == 20


def test_a_mapping_is_merged_and_a_list_replaced(written: Write) -> None:
    text = "engine: {schedule: {sigmas: [1.0, 0.5]}, cache: {drift: {strength: {video: 0.1}}}}"
    engine = load(written(text), {"LONGTAKE_ENGINE__FIRST_SCHEDULE": "{step: euler}"}).engine
    assert engine.schedule.sigmas == (1.0, 0.5)
    assert engine.cache.drift.strength == {"video": 0.1, "audio": EngineConfig().cache.drift.strength["audio"]}
    assert engine.first_schedule is not None
    assert engine.first_schedule.step == "euler"


@pytest.mark.parametrize("text", ["", "engine:\n", "engine:\n  cache:\nbudgets:\n"])
def test_an_empty_section_changes_nothing(written: Write, text: str) -> None:
    assert load(written(text), RANDOM_WEIGHTS) == Settings(model=ModelSettings("random"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("engine: {sesions: 2}", ("engine.sesions", "2", "expected engine.sessions")),
        ("budgets: {audio_self: {recnt: 3}}", ("budgets.audio_self.recnt", "3", "budgets.audio_self.recent")),
        ("positions: {slots: 9}", ("positions", "{'slots': 9}", "engine.cache.positions")),
        ("engine: {first_schedule: {sigma: [1.0]}}", ("engine.first_schedule.sigma", "[1.0]", "sigmas")),
        ("engine: {sessions: '2'}", ("engine.sessions", "'2'", "integer")),
        ("engine: {sessions: yes}", ("engine.sessions", "True", "integer")),
        ("engine: {cache: {positions: {move: copy}}}", ("engine.cache.positions.move", "'copy'", "'relocate'")),
        ("geometry: {fps: .nan}", ("geometry.fps", "nan", "finite")),
        ("geometry: 3", ("geometry", "3", "a mapping")),
        ("policy: scene_memry", ("policy", "scene_memry", *POLICIES)),
        ("threads: 0", ("threads", "0", "at least 1")),
        ("[1]", ("list", "a mapping")),
        ("a: [", ("cannot be read as YAML",)),
        ("threads: no\npolicy: 3", ("threads", "False", "policy", "3")),
    ],
)
def test_a_bad_setting_is_named_with_its_value_its_file_and_what_was_expected(
    written: Write, text: str, words: tuple[str, ...]
) -> None:
    path = written(text)
    with pytest.raises(ConfigError) as raised:
        load(path, {})
    for word in (*words, str(path)):
        assert word in str(raised.value)


def test_a_bad_variable_is_named(written: Write) -> None:
    for name, value, word in (
        ("LONGTAKE_GEOMTRY__FPS", "25", "geometry"),
        ("LONGTAKE_ENGINE__SESSIONS", "two", "integer"),
        ("LONGTAKE_THREADS", "[", "YAML"),
    ):
        with pytest.raises(ConfigError, match=word) as raised:
            load(environ={name: value})
        assert name in str(raised.value)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("budgets: {video_self: {recent: 0}}", BudgetError),
        ("geometry: {fps: 1.0e-9}", GeometryError),
        ("engine: {cache: {drift: {ema_rate: 2.0}}}", ConfigError),
    ],
)
def test_what_a_part_refuses_is_refused_with_its_own_error_and_the_file(
    written: Write, text: str, error: type[Exception]
) -> None:
    path = written(text)
    with pytest.raises(error) as raised:
        load(path, {})
    assert type(raised.value) is error
    assert str(path) in str(raised.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load(tmp_path / "absent.yaml", {})


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().threads = 2  # type: ignore[misc]


def test_the_engine_is_built_of_every_part(written: Write) -> None:
    text = "policy: sink_recent\nmodel: {dtype: bfloat16}\ngeometry: {height: 32, width: 64}\nengine: {sessions: 2}"
    engine = build_engine(load(written(text), {**RANDOM_WEIGHTS, "LONGTAKE_THREADS": "1"}))
    assert isinstance(engine.policy, SinkRecent)
    assert str(engine.backbone.dtype) == "torch.bfloat16"
    assert (engine.backbone.geometry.height, engine.backbone.geometry.width) == (1, 2)
    assert engine.config.sessions == 2


def test_random_weights_are_those_of_their_seed() -> None:
    first, again, other = (
        build_engine(load(environ={**RANDOM_WEIGHTS, "LONGTAKE_MODEL__SEED": seed})).backbone.fingerprint
        for seed in "112"
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("variables", "error", "word"),
    [
        ({"LONGTAKE_MODEL__DEVICE": "warp"}, ConfigError, "model.device is 'warp'"),
        ({"LONGTAKE_MODEL__SOURCE": "./absent"}, CheckpointError, "absent"),
        ({"LONGTAKE_GEOMETRY__HEIGHT": "65"}, GeometryError, "65 pixels"),
        ({"LONGTAKE_GEOMETRY__FRAMES": "0"}, GeometryError, "frames is 0"),
        ({"LONGTAKE_ENGINE__CACHE__POSITIONS__SLOTS": "99"}, BudgetError, "slots is 99"),
        ({"LONGTAKE_ENGINE__IMPL": "abacus"}, ConfigError, "abacus"),
    ],
)
def test_an_engine_that_cannot_be_built_says_why(variables: dict[str, str], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        build_engine(load(environ={**RANDOM_WEIGHTS, **variables}))


def test_a_script_is_read_cue_by_cue(written: Write) -> None:
    text = """
- {at: 2, do: cut, scene: kitchen, prompt: a kettle}
- {at: 4, do: prompt, prompt: it boils, mode: recache}
- {at: 6, do: return, scene: opening}
"""
    assert read_script(written(text)) == [
        Cue(2, "cut", "kitchen", "a kettle"),
        Cue(4, "prompt", prompt="it boils", mode="recache"),
        Cue(6, "return", "opening"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- {at: 3, do: cutt}", ("0.do", "'cutt'", "'return'")),
        ("- {at: 3, do: return, scnee: a}", ("0.scnee", "'a'", "scene")),
        ("- {do: return, scene: a}", ("0.at", "missing")),
        ("- {at: 3, do: cut, scene: a}", ("cut at 3", "prompt", "''")),
        ("- {at: 3, do: return, scene: a, prompt: b}", ("return at 3", "prompt", "'b'")),
        ("do: cut", ("{'do': 'cut'}", "array")),
        ("", ("None", "array")),
    ],
)
def test_a_bad_cue_is_named(written: Write, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as raised:
        read_script(written(text))
    for word in words:
        assert word in str(raised.value)


def test_the_password_of_an_address_is_in_no_error() -> None:
    for wrong in ({"ulr": "redis://:secret@host:1/0"}, {"kind": "redis", "url": ["redis://me:secret@host"]}):
        with pytest.raises(ConfigError) as caught:
            load({"service": {"journal": wrong}}, {})
        assert "secret" not in str(caught.value)
        assert "://***@host" in str(caught.value)


KEY = "0f" * 32


def test_the_store_s_key_is_read_from_where_the_reference_says_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    assert read_key("") == b""
    assert read_key("env:STORE", {"STORE": KEY}) == read_key(f"file:{tmp_path / 'key'}") == bytes.fromhex(KEY)
    for reference, value, said in (
        ("env:STORE", None, "nothing can be read"),
        ("env:STORE", "0f0f", "has 2 bytes; expected 32"),
        ("env:STORE", "secret words", "is no hexadecimal number"),
        ("file:/nowhere/key", None, "nothing can be read"),
    ):
        with pytest.raises(ConfigError, match=said) as error:
            read_key(reference, {} if value is None else {"STORE": value})
        assert value is None or value not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "service: {durability: kv, restore: {disk_codec: int8}}",
            "expected codecs of service.restore that lose nothing",
        ),
        ("service: {store_key: 0f0f}", "expected 'env:NAME' or 'file:PATH'"),
        ("service: {restore: {host_codec: zip}}", "codec is 'zip'"),
        ("service: {restore: {admission: sometimes}}", "service.restore.admission"),
        ("service: {restore: {safe: disk}}", "expected a disk, and admission 'always'"),
        ("service: {restore: {ttl_s: 0}}", "expected more than 0"),
    ],
)
def test_a_restore_store_that_cannot_keep_its_word_is_refused(written: Write, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(written(text), RANDOM_WEIGHTS)
