"""What all commands share: spelling of flags, --config, help, and one line for bad input."""

import re
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptycho_torch.cli import parser as cli
from ptycho_torch.cli.launcher import COMMANDS
from ptycho_torch.config.data import DescribeConfig
from ptycho_torch.config.inference import InferenceConfig
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.config.values import write_config
from ptycho_torch.core.errors import ConfigError

Command = Callable[..., Any]
NEEDED = ("--train_data_file", "scan.npz", "--output_dir", "model")


def parse(*words: str) -> TrainConfig:
    return cli.parse(TrainConfig, [*NEEDED, *words], "ptycho-torch train")


@pytest.mark.parametrize("words", [("--batch_size", "4"), ("--batch-size", "4"), ("--batch-size=4",)])
def test_flags_with_either_dash(words: tuple[str, ...]) -> None:
    assert parse(*words).batch_size == 4


def test_values_keep_their_dashes() -> None:
    config = cli.parse(TrainConfig, ["--train-data-file", "a-b_c.npz", "--output-dir=-d"], "ptycho-torch train")
    assert config.train_data_file == (Path("a-b_c.npz"),)
    assert config.output_dir == Path("-d")


def test_older_spellings() -> None:
    assert parse("--accelerator", "cpu").device == "cpu"
    assert parse("--accelerator=cpu").device == "cpu"
    assert parse("--disable_mlflow").logger == "csv"
    assert parse("--disable-mlflow").logger == "csv"


def test_switches_and_their_opposites() -> None:
    assert cli.parse(DescribeConfig, ["f"], "p").stats
    assert not cli.parse(DescribeConfig, ["f", "--no-stats"], "p").stats
    assert parse("--update_probe").update_probe
    assert not parse("--update_probe", "--no_update_probe").update_probe


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epochs", "3"), "unrecognized arguments: --epochs"),
        (("--max_epoch", "3"), "unrecognized arguments: --max_epoch"),  # no guessing from a beginning
        (("--max_epochs", "many"), "--max_epochs: invalid int value: 'many'"),
        (("--max_epochs",), "--max_epochs: expected one argument"),
        (("--loss", "l1"), "--loss: invalid choice: 'l1'"),
        (("--device", "tpu"), "--device: invalid choice: 'tpu'"),
        (("more",), "unrecognized arguments: more"),
        (("--learning_rate", "nan"), "`learning_rate` is nan; expected a number above 0"),
        (("--seed", "-1"), "`seed` is -1"),
    ],
)
def test_wrong_flags(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse(*words)


@pytest.mark.parametrize("config", [TrainConfig, InferenceConfig, DescribeConfig])
def test_what_is_missing_is_named(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"missing; see ptycho-torch x --help"):
        cli.parse(config, [], "ptycho-torch x")
    with pytest.raises(ConfigError, match=r"^--output_dir missing"):
        cli.parse(TrainConfig, ["--train_data_file", "a"], "ptycho-torch train")


def test_a_file_of_settings_and_the_command_line_wins(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("batch-size: 4\nlearning_rate: 3e-4\nupdate_probe: true\nmax_epochs: null\ndevice: cpu\n")
    config = parse("--config", str(file), "--batch_size", "9", "--no_update_probe")
    assert (config.batch_size, config.learning_rate, config.update_probe) == (9, 3e-4, False)
    assert (config.max_epochs, config.device) == (None, "cpu")


def test_settings_that_are_needed_may_be_in_the_file(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "words", [(), ("--update_probe", "--n_images", "7", "--photons_per_unit", "1e-3", "--disable_mlflow")]
)
def test_what_a_run_records_runs_the_same_again(tmp_path: Path, words: tuple[str, ...]) -> None:
    config = parse(*words)
    write_config(tmp_path / "config.yaml", config)
    assert cli.parse(TrainConfig, ["--config", str(tmp_path / "config.yaml")], "p") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_sise: 4", "unknown setting batch_sise"),
        ("config: other.yaml", "unknown setting config"),
        ("5: 4", "unknown setting 5"),
        ("- 4", "holds a list, expected settings by name"),
        ("just text", "holds a str"),
        ("a: [", "is not YAML"),
        ("seed: 2001-13-45", "is not YAML"),
        ("a: !!python/object/apply:os.system [echo]", "is not YAML"),
        ("max_epochs: many", "max_epochs is 'many', expected a whole number"),
        ("max_epochs: 2.7", "max_epochs is 2.7, expected a whole number"),
        ("max_epochs: .inf", "max_epochs is inf, expected a whole number"),
        ("max_epochs: true", "max_epochs is True, expected a whole number"),
        ("seed: 2001-01-01", "expected a whole number"),
        ("seed: null", "seed is None, expected a whole number"),
        ("learning_rate: true", "learning_rate is True, expected a number"),
        ("learning_rate: [1]", "expected a number"),
        ("learning_rate: .nan", "`learning_rate` is nan"),
        ("update_probe: 1", "update_probe is 1, expected true or false"),
        ("update_probe: 'no'", "expected true or false"),
        ("loss: l1", "loss is 'l1', expected one of poisson, amplitude"),
        ("device: [cpu]", "expected one of auto, cpu"),
        ("network: [unet]", "expected text"),
        ("train_data_file: null", "train_data_file is None, expected a path"),
        ("test_data_file: 5", "test_data_file is 5, expected a path"),
        ("output_dir: {a: b}", "expected a path"),
        ("output_dir: ''", "output_dir is '', expected a path"),
        ('output_dir: "a\\0b"', "expected a path"),
    ],
)
def test_files_of_settings_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse("--config", str(tmp_path / "settings.yaml"))


@pytest.mark.parametrize("name", ["none.yaml", ".", "binary.yaml"])
def test_files_of_settings_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"the --config file (cannot be read|is not YAML)"):
        parse("--config", str(tmp_path / name))


@pytest.mark.parametrize("verb", ["train", "inference", "describe", "convert", "evaluate"])
def test_bad_flags_are_one_line_and_exit_code_2(verb: str, run_main: Command) -> None:
    code, out, err = run_main(verb, "--nonsense")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"{verb}: ")
    assert f"ptycho-torch {verb} --help" in err


def test_debug_shows_where_it_happened(run_main: Command) -> None:
    code, _, err = run_main("train", "--debug", "--train_data_file", "none.npz", "--output_dir", "none")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("train: none.npz: there is no such file")


def test_recorded_settings_are_plain(tmp_path: Path) -> None:
    write_config(tmp_path / "c.yaml", parse())
    content = yaml.safe_load((tmp_path / "c.yaml").read_text())
    assert content["train_data_file"] == ["scan.npz"]
    assert content["max_epochs"] is None


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_help_is_quick_and_loads_no_torch(verb: str, run_process: Command) -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = run_process("-m", f"ptycho_torch.{verb}", "--help")
        seconds.append(time.perf_counter() - started)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"usage: ptycho-torch {verb}")
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 1.0
    loaded = run_process("-X", "importtime", "-m", f"ptycho_torch.{verb}", "--help").err
    modules = {line.rpartition("|")[2].strip() for line in loaded.splitlines()}
    assert not modules & {"torch", "scipy", "matplotlib", "skimage", "mlflow"}


def test_every_verb_has_a_module_and_a_main() -> None:
    for verb in COMMANDS:
        assert callable(import_module(f"ptycho_torch.{verb}").main)


def test_importing_the_package_imports_no_torch(run_process: Command) -> None:
    code = "import sys, ptycho_torch; dir(ptycho_torch); ptycho_torch.load_scan; print('torch' in sys.modules)"
    assert run_process("-c", code).out == "False\n"


def test_the_nouns_are_at_the_root() -> None:
    import ptycho_torch

    for name in ptycho_torch.__all__:
        assert getattr(ptycho_torch, name) is not None
    assert set(ptycho_torch.__all__) <= set(dir(ptycho_torch))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ptycho_torch.nonsense


def test_the_command_without_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    from ptycho_torch.__main__ import main

    assert main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert all(verb in listing for verb in COMMANDS)
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    for words, said in (([], "no command given"), (["paint"], "unknown command paint")):
        assert main(words) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err


ONE_OF_TWO = {"RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("missing", "environment"), [("torch", {}), ("safetensors", {}), ("yaml", {}), ("accelerate", ONE_OF_TWO)]
)
def test_a_missing_dependency_is_a_sentence(
    scan_file: Path, tmp_path: Path, run_process: Callable[..., Any], missing: str, environment: dict[str, str]
) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None; from ptycho_torch.train import main; "
        f"words = ['--train_data_file', {str(scan_file)!r}, '--output_dir', 'out', '--max_epochs', '0', '--quiet']; "
        "raise SystemExit(main(words))"
    )
    done = run_process("-c", code, cwd=tmp_path, **environment)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert f"{missing} is not installed" in done.err
    assert "pip install" in done.err
