"""Command lines: spelling of flags, aliases, files of settings, help, and settings as YAML."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptycho_torch.cli import parser as cli
from ptycho_torch.cli.commands import COMMANDS
from ptycho_torch.config.data import ConvertConfig, DescribeConfig
from ptycho_torch.config.inference import InferenceConfig
from ptycho_torch.config.pretrain import PretrainConfig
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.config.values import setting_aliases, write_config
from ptycho_torch.config.workflow import SweepConfig
from ptycho_torch.core.errors import ConfigError

Command = Callable[..., Any]
REQUIRED = ("--train_data_file", "scan.npz", "--output_dir", "model")
SWEEP = ("--train_data_file", "scan.npz", "--output_dir", "out", "--run", "epochs=1")


def parse(*words: str) -> TrainConfig:
    return cli.parse(TrainConfig, [*REQUIRED, *words], "ptycho-torch train")


@pytest.mark.parametrize("words", [("--batch_size", "4"), ("--batch-size", "4"), ("--batch-size=4",)])
def test_flags_accept_dashes_and_underscores(words: tuple[str, ...]) -> None:
    assert parse(*words).batch_size == 4


def test_values_keep_their_dashes() -> None:
    config = cli.parse(TrainConfig, ["--train-data-file", "a-b_c.npz", "--output-dir=-d"], "ptycho-torch train")
    assert config.train_data_file == (Path("a-b_c.npz"),)
    assert config.output_dir == Path("-d")


CONVERT = ("a.npz", "b.npz")
ALL_ALIASES = {alias for command in COMMANDS.values() for alias in setting_aliases(command.config_type)}
ALIASES = [
    (TrainConfig, REQUIRED, ("--accelerator", "cpu"), "device", "cpu"),
    (TrainConfig, REQUIRED, ("--accelerator=cpu",), "device", "cpu"),
    (TrainConfig, REQUIRED, ("--disable_mlflow",), "logger", "csv"),
    (TrainConfig, REQUIRED, ("--disable-mlflow",), "logger", "csv"),
    (TrainConfig, REQUIRED, ("--init", "general"), "init_model", Path("general")),
    (PretrainConfig, ("--output_dir", "out"), ("--masked", "0.5"), "masked_fraction", 0.5),
    (PretrainConfig, ("--output_dir", "out"), ("--lessons=7",), "steps", 7),
    (SweepConfig, SWEEP, ("--limit", "3"), "timeout", 3.0),
    (SweepConfig, SWEEP, ("--keep",), "keep_outputs", True),
    (SweepConfig, SWEEP, ("--keep", "--no-keep"), "keep_outputs", False),
    (ConvertConfig, CONVERT, ("--origin", "centred"), "origin", "centered"),
    (ConvertConfig, CONVERT, ("--position_unit", "metre"), "position_unit", "meter"),
    (ConvertConfig, CONVERT, ("--position_unit", "um"), "position_unit", "micrometer"),
    (TrainConfig, REQUIRED, ("--patterns", "p.h5"), "patterns_file", Path("p.h5")),
    (TrainConfig, REQUIRED, ("--positions", "p.csv"), "positions_file", Path("p.csv")),
    (ConvertConfig, CONVERT, ("--patterns_key", "data"), "diffraction_key", "data"),
    (ConvertConfig, CONVERT, ("--energy", "8e3"), "energy_ev", 8e3),
    (ConvertConfig, CONVERT, ("--voltage", "80"), "voltage_kv", 80.0),
]


@pytest.mark.parametrize(("config_type", "required", "words", "name", "value"), ALIASES)
def test_older_flags_and_values_are_accepted(
    config_type: type[Any], required: tuple[str, ...], words: tuple[str, ...], name: str, value: Any
) -> None:
    config = cli.parse(config_type, [*required, *words], "p")
    assert getattr(config, name) == value


@pytest.mark.parametrize(
    ("config_type", "required", "text", "name", "value"),
    [
        (TrainConfig, REQUIRED, "init: general", "init_model", Path("general")),
        (PretrainConfig, ("--output_dir", "out"), "masked: 0.5", "masked_fraction", 0.5),
        (PretrainConfig, ("--output_dir", "out"), "lessons: 7", "steps", 7),
        (SweepConfig, SWEEP, "limit: 3", "timeout", 3.0),
        (SweepConfig, SWEEP, "keep: true", "keep_outputs", True),
        (ConvertConfig, ("a.npz", "b.npz"), "origin: centred", "origin", "centered"),
    ],
)
def test_files_of_settings_accept_older_names(
    config_type: type[Any], required: tuple[str, ...], text: str, name: str, value: Any, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    config = cli.parse(config_type, [*required, "--config", str(tmp_path / "settings.yaml")], "p")
    assert getattr(config, name) == value
    write_config(tmp_path / "record.yaml", config)
    record = yaml.safe_load((tmp_path / "record.yaml").read_text())
    assert name in record
    assert text.partition(":")[0] in {name} | ALL_ALIASES - set(record)


def test_every_alias_is_tested() -> None:
    tested = {words[0].removeprefix("--").partition("=")[0] for _, _, words, _, _ in ALIASES}
    assert tested >= ALL_ALIASES


def test_a_setting_under_two_names_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("init: a\ninit_model: b\n")
    with pytest.raises(ConfigError, match="init_model sets `init_model` again"):
        parse("--config", str(tmp_path / "settings.yaml"))


def test_switches_and_their_opposites() -> None:
    assert cli.parse(DescribeConfig, ["f"], "p").stats
    assert not cli.parse(DescribeConfig, ["f", "--no-stats"], "p").stats
    assert parse("--update_probe").update_probe
    assert not parse("--update_probe", "--no_update_probe").update_probe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", "3"), "unrecognized arguments: --epochs"),
        (
            ("--max_epoch", "3"),
            "unrecognized arguments: --max_epoch 3 (did you mean --max_epochs?)",
        ),  # no completion of a prefix
        (("--max_epochs", "many"), "--max_epochs: invalid int value: 'many'"),
        (("--max_epochs",), "--max_epochs: expected one argument"),
        (("--loss", "l1"), "--loss: invalid choice: 'l1'"),
        (("--device", "tpu"), "--device: invalid choice: 'tpu'"),
        (("more",), "unrecognized arguments: more"),
        (("--learning_rate", "nan"), "`learning_rate` is nan; expected a number above 0"),
        (("--seed", "-1"), "`seed` is -1"),
    ],
)
def test_wrong_flags(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(*words)


@pytest.mark.parametrize("config", [TrainConfig, InferenceConfig, DescribeConfig])
def test_missing_settings_are_named(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"missing; see ptycho-torch x --help"):
        cli.parse(config, [], "ptycho-torch x")
    with pytest.raises(ConfigError, match=r"^--output_dir missing"):
        cli.parse(TrainConfig, ["--train_data_file", "a"], "ptycho-torch train")


@pytest.mark.parametrize("config_is_last", [True, False])
def test_the_command_line_overrides_the_file(config_is_last: bool, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("batch-size: 4\nlearning_rate: 3e-4\nupdate_probe: true\nmax_epochs: null\ndevice: cpu\n")
    flags, config_flag = ("--batch_size", "9", "--no_update_probe"), ("--config", str(file))
    config = parse(*flags, *config_flag) if config_is_last else parse(*config_flag, *flags)
    assert (config.batch_size, config.learning_rate, config.update_probe) == (9, 3e-4, False)
    assert (config.max_epochs, config.device) == (None, "cpu")


def test_required_settings_may_be_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("train_data_file: a.npz\noutput_dir: b\n")
    config = cli.parse(TrainConfig, ["--config", str(tmp_path / "all.yaml")], "ptycho-torch train")
    assert (config.train_data_file, config.output_dir) == ((Path("a.npz"),), Path("b"))


@pytest.mark.parametrize(
    "words",
    [
        ("--train_data_file", "a.npz", "b.npz", "c.npz"),
        ("--train_data_file", "a.npz", "--train_data_file", "b.npz", "c.npz"),
        ("--train_data_file=a.npz", "--train-data-file", "b.npz", "--train_data_file=c.npz"),
        ("--config", "scans.yaml"),
    ],
)
def test_several_scans(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scans.yaml").write_text("train_data_file: [a.npz, b.npz, c.npz]")
    config = cli.parse(TrainConfig, [*words, "--output_dir", "model"], "ptycho-torch train")
    assert config.train_data_file == (Path("a.npz"), Path("b.npz"), Path("c.npz"))


RECORDED = [(), ("--update_probe", "--n_images", "7", "--photons_per_unit", "1e-3", "--disable_mlflow")]


@pytest.mark.parametrize("words", RECORDED)
def test_the_record_of_a_run_repeats_the_run(tmp_path: Path, words: tuple[str, ...]) -> None:
    config = parse(*words)
    write_config(tmp_path / "config.yaml", config)
    assert cli.parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")], "p") == config


@pytest.mark.parametrize("words", RECORDED)
def test_printed_settings_can_be_loaded(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(*words, "--print_config")
    assert stopped.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert cli.parse(TrainConfig, ["--config", str(tmp_path / "printed.yaml")], "p") == parse(*words)
    write_config(tmp_path / "config.yaml", parse(*words))
    assert (tmp_path / "printed.yaml").read_bytes() == (tmp_path / "config.yaml").read_bytes()


def test_printed_settings_include_those_of_the_file(
    tmp_path: Path, run_main: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text("batch_size: 4\nseed: 3\n")
    with pytest.raises(SystemExit):
        run_main("train", *REQUIRED, "--config", tmp_path / "settings.yaml", "--seed", "5", "--print-config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["batch_size"], printed["seed"]) == (4, 5)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_printed_settings_name_the_required_ones(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config_type = COMMANDS[name].config_type
    with pytest.raises(SystemExit):
        cli.parse(config_type, ["--print_config"], "p")
    printed = capsys.readouterr().out
    assert isinstance(yaml.safe_load(printed), dict)
    for field in cli.required_fields(config_type):
        assert f"# {field.name}: required" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 4", "unknown setting batch_sise"),
        ("config: other.yaml", "unknown setting config"),
        ("5: 4", "unknown setting 5"),
        ("- 4", "holds a list; expected settings by name"),
        ("just text", "holds a str"),
        ("a: [", "is not YAML"),
        ("seed: 2001-13-45", "is not YAML"),
        ("a: !!python/object/apply:os.system [echo]", "is not YAML"),
        ("max_epochs: many", "max_epochs is 'many'; expected a whole number"),
        ("max_epochs: 2.7", "max_epochs is 2.7; expected a whole number"),
        ("max_epochs: .inf", "max_epochs is inf; expected a whole number"),
        ("max_epochs: true", "max_epochs is True; expected a whole number"),
        ("seed: 2001-01-01", "expected a whole number"),
        ("seed: null", "seed is None; expected a whole number"),
        ("learning_rate: true", "learning_rate is True; expected a number"),
        ("learning_rate: [1]", "expected a number"),
        ("learning_rate: .nan", "`learning_rate` is nan"),
        ("update_probe: 1", "update_probe is 1; expected true or false"),
        ("update_probe: 'no'", "expected true or false"),
        ("loss: l1", "loss is 'l1'; expected one of poisson, amplitude"),
        ("device: [cpu]", "expected one of auto, cpu"),
        ("network: [unet]", "expected text"),
        ("train_data_file: null", "train_data_file is None; expected a path"),
        ("test_data_file: 5", "test_data_file is 5; expected a path"),
        ("output_dir: {a: b}", "expected a path"),
        ("output_dir: ''", "output_dir is ''; expected a path"),
        ('output_dir: "a\\0b"', "expected a path"),
    ],
)
def test_invalid_files_of_settings(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse("--config", str(tmp_path / "settings.yaml"))


@pytest.mark.parametrize("name", ["none.yaml", ".", "binary.yaml"])
def test_unreadable_files_of_settings(tmp_path: Path, name: str) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"the file of settings (cannot be read|is not YAML).*`config`"):
        parse("--config", str(tmp_path / name))


def test_recorded_settings_are_plain(tmp_path: Path) -> None:
    write_config(tmp_path / "c.yaml", parse())
    content = yaml.safe_load((tmp_path / "c.yaml").read_text())
    assert content["train_data_file"] == ["scan.npz"]
    assert content["max_epochs"] is None
