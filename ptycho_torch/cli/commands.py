"""The commands by name: settings class, summary and description of each."""

from typing import Any, NamedTuple

from ptycho_torch.config.data import ConvertConfig, DescribeConfig, SimulateConfig, SubsetConfig
from ptycho_torch.config.inference import EvaluateConfig, ExportConfig, InferenceConfig
from ptycho_torch.config.pretrain import PretrainConfig
from ptycho_torch.config.reconstruct import ReconstructConfig
from ptycho_torch.config.train import TrainConfig
from ptycho_torch.config.workflow import DemoConfig, SweepConfig


class Command(NamedTuple):
    """A command of the program. Its body is the function ``run`` of ``ptycho_torch.commands.<name>``."""

    name: str
    config_type: type[Any]
    """Class of its settings."""

    summary: str
    """One line for the list of commands."""

    details: str
    """Paragraphs that ``--help`` prints below the summary."""

    distributed: bool = False
    """Whether ``torchrun`` may start it in several processes."""

    @property
    def prog(self) -> str:
        """Name of the program with the command, as usage lines print it."""
        return f"ptycho-torch {self.name}"

    @property
    def description(self) -> str:
        """Text above the list of settings in ``--help``."""
        return f"{self.summary[0].upper()}{self.summary[1:]}.\n\n{self.details}"


_TABLE = (
    Command(
        "train",
        TrainConfig,
        "train a network on the diffraction patterns of a scan",
        """\
The network learns from the measured patterns alone: the forward model turns its
patches into patterns, which must match the measured ones. Labels or the object of
an engine can be added. Writes the model (model.safetensors, bundle.json),
history.csv, timing.json, config.yaml and a checkpoint to the output folder.

  ptycho-torch train --train_data_file scan.npz --output_dir model --max_epochs 20""",
        distributed=True,
    ),
    Command(
        "pretrain",
        PretrainConfig,
        "train a network on simulated patterns, for scans it was not trained on",
        """\
Every training step uses a new simulated batch: an object, a probe and a few
overlapping patterns, none of which is stored. The model has no probe of its own and
reconstructs with the probe of each scan. Writes the same files as train.

  ptycho-torch pretrain --output_dir general --probe scan.npz --time_limit 600""",
        distributed=True,
    ),
    Command(
        "inference",
        InferenceConfig,
        "reconstruct a scan with a trained network",
        """\
The network computes one patch per pattern; the patches are aligned in phase and
stitched into one object. Writes reconstruction.npz, images, metrics.json and
report.html to the output folder.

  ptycho-torch inference --model_path model --test_data scan.npz --output_dir result""",
        distributed=True,
    ),
    Command(
        "reconstruct",
        ReconstructConfig,
        "reconstruct a scan with iterative engines, a network, or a pipeline of both",
        """\
The first engine has the settings on this page; --then adds further engines, each of
which starts from the result of the previous one. Writes reconstruction.npz, images,
metrics.json and report.html to the output folder.

  ptycho-torch reconstruct scan.npz --output_dir result --engine pie --update_probe
  ptycho-torch reconstruct scan.npz --output_dir result --then lsqml:epochs=20""",
    ),
    Command(
        "export",
        ExportConfig,
        "export a trained network to ONNX",
        """\
The ONNX file runs in onnxruntime without torch; inference uses it with --onnx.

  ptycho-torch export model --output model.onnx""",
    ),
    Command(
        "evaluate",
        EvaluateConfig,
        "score a reconstruction against the true object or the measured patterns",
        """\
With --truth it compares objects after a stated alignment (NRMSE, PSNR, SSIM, FRC);
with --scan it computes the Fourier error R and its noise floor. Writes metrics.json
and report.html to the output folder.

  ptycho-torch evaluate result/reconstruction.npz --scan scan.npz --output_dir scores""",
    ),
    Command(
        "simulate",
        SimulateConfig,
        "simulate a scan and write it to a file",
        """\
The file also holds the true object (objectGuess), for evaluate --truth.

  ptycho-torch simulate scan.npz --preset tiny --seed 1""",
    ),
    Command(
        "describe",
        DescribeConfig,
        "summarize a scan file and check it against the data contract",
        """\
Prints arrays, positions, probe, photons and every violation of the rules of
specs/data_contracts.md. The exit code is 0 for a valid file, 1 if the file breaks the
contract, and 2 if it cannot be read.

  ptycho-torch describe scan.npz""",
    ),
    Command(
        "convert",
        ConvertConfig,
        "convert a scan file of any supported format to another format",
        """\
Settings name the keys, the axis order, the units and the orientation of the source.

  ptycho-torch convert foreign.npz scan.npz --measurement counts""",
    ),
    Command(
        "subset",
        SubsetConfig,
        "cut a small scan out of a large one",
        """\
Selects patterns, and optionally crops or bins the detector. The same settings give
the same bytes; a JSON record of the cut is written next to the output.

  ptycho-torch subset --source scan.npz --output small.npz --subset_size 64""",
    ),
    Command(
        "sweep",
        SweepConfig,
        "measure the runtime and memory of trainings and fit a model of them",
        """\
Runs each training in a process of its own and writes scope.json and scope.md. The
exit code is 1 if a run failed or timed out.

  ptycho-torch sweep --train_data_file scan.npz --output_dir scope \\
      --run epochs=2,n_images=64 --run epochs=1,n_images=16""",
    ),
    Command(
        "demo",
        DemoConfig,
        "simulate a small scan, train on it, reconstruct and evaluate",
        """\
Runs simulate, train, inference and evaluate with small settings, within a minute on
a CPU.

  ptycho-torch demo""",
    ),
)

COMMANDS = {command.name: command for command in _TABLE}
