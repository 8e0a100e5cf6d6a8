"""The command lines of all studies: what --help says, and what a bad value is answered with."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import experiments
from experiments.common.study import Study

FOLDER = Path(experiments.__file__).parent
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/__main__.py"))
STUDIES: dict[str, Study] = {name: importlib.import_module(f"experiments.{name}.__main__").STUDY for name in NAMES}
SEEDS = "from 0 to 9223372036854775807"

# A command line, the option that its message names, and what the message expects: for every study with that option.
SHARED = [
    (["--dataset", "svhn"], "--dataset", "digits"),
    (["--dataset", "mnist"], "--data-dir", "expected the folder that holds mnist/, got none"),
    (["--train-size", "1"], "--train-size", "at least 2, got '1'"),
    (["--model", "vgg16"], "--model", "resnet18"),
    (["--depth", "0"], "--depth", ", got '0'"),
    (["--width", "2.5"], "--width", "whole number of at least 1, got '2.5'"),
    (["--width-factor", "0"], "--width-factor", "above 0, got '0'"),
    (["--lr", "0"], "--lr", "above 0, got '0'"),
    (["--lr", "-1"], "--lr", "above 0, got '-1'"),
    (["--lr", "nan"], "--lr", "above 0, got 'nan'"),
    (["--momentum", "1"], "--momentum", "[0, 1), got '1'"),
    (["--weight-decay", "-0.001"], "--weight-decay", "at least 0, got '-0.001'"),
    (["--batch-size", "-1"], "--batch-size", "at least 1, got '-1'"),
    (["--batch-size", "none"], "--batch-size", "at least 1, got 'none'"),
    (["--epochs", "0"], "--epochs", "at least 1, got '0'"),
    (["--epochs", "x"], "--epochs", "at least 1, got 'x'"),
    (["--stop-loss", "0"], "--stop-loss", "above 0, got '0'"),
    (["--augment"], "--augment", "expected --dataset cifar10 or cifar100, got digits"),
    (["--initialisation", "zeros"], "--initialisation", "xavier"),
    (["--probe-size", "1"], "--probe-size", "at least 2, got '1'"),
    (["--test-size", "0"], "--test-size", "at least 1, got '0'"),
    (["--measurements", "1"], "--measurements", "at least 2, got '1'"),
    (["--precision", "low"], "--precision", "highest"),
    (["--seed", "-1"], "--seed", f"{SEEDS}, got '-1'"),
    (["--seed", "1.5"], "--seed", f"{SEEDS}, got '1.5'"),
    (["--seeds", "-1"], "--seeds", f"{SEEDS}, got '-1'"),
    (["--seeds", "1", "2", "1"], "--seeds", "distinct numbers, got 1 2 1"),
    (["--widths", "0"], "--widths", "at least 1, got '0'"),
    (["--widths", "8", "8", "16"], "--widths", "expected distinct numbers, got 8 8 16"),
    (["--checkpoint-every", "0"], "--checkpoint-every", "at least 1, got '0'"),
    (["--threads", "0"], "--threads", "from 1 to 4096, got '0'"),
    (["--device", "abacus"], "--device", "got 'abacus'"),
    (["--device", "meta"], "--device", "got 'meta'"),
]

# The same for the options of single studies.
OWN = {
    "alignment_hierarchy": [(["--iterations", "some"], "--iterations", "authors")],
    "cka_bias": [
        (["--sizes", "3"], "--sizes", "expected a whole number of at least 4, got '3'"),
        (["--sizes", "50", "50"], "--sizes", "expected distinct numbers, got 50 50"),
        (["--subsets", "1"], "--subsets", "expected a whole number of at least 2, got '1'"),
        (["--outputs", "sum"], "--outputs", "trace"),
    ],
    "depth_scaling": [
        (["--depths", "3", "3"], "--depths", "distinct numbers, got 3 3"),
        (["--depths", "0"], "--depths", "at least 1, got '0'"),
        (["--lrs", "0.1", "0.2"], "--lrs", "expected 1 number or 5"),
        (["--preset", "mnist", "--lrs", "1", "2"], "--lrs", "expected 1 number or 10, one for each depth, got 2"),
        (["--epochs", "1", "2", "3"], "--epochs", "expected 1 number or 5"),
        (["--seed-counts", "1", "2"], "--seed-counts", "expected 1 number or 5"),
        (["--epoch-fraction", "0"], "--epoch-fraction", "a number in (0, 1], got '0'"),
        (["--variants", "1"], "--variants", "F:B, got '1'"),
        (["--variants", "0:32"], "--variants", "F:B, got '0:32'"),
        (["--variants", "1:32", "1:32"], "--variants", "distinct values"),
    ],
    "early_training": [
        (["--preset", "kmnist"], "--data-dir", "folder that holds kmnist/"),
        (["--preset", "imagenet"], "--preset", "cifar10-resnet18"),
        (["--depth", "1"], "--depth", "at least 2, got '1'"),
        (["--eigenvectors", "-1"], "--eigenvectors", "at least 0, got '-1'"),
        (["--moments", "-0.5"], "--moments", "at least 0, got '-0.5'"),
        (["--moments", "2", "21"], "--moments", "at most 20, the epochs, got 21"),
        (["--model", "vgg19", "--bias"], "--bias", "expected --model feedforward, got vgg19"),
    ],
    "equilibrium": [
        (["--epsilon", "1"], "--epsilon", "expected a number in (0, 1), got '1'"),
        (["--widths", "8", "16"], "--widths", "expected at least 3 numbers, to fit a slope, got 2"),
        (["--alignment-widths", "8", "8"], "--alignment-widths", "expected distinct numbers, got 8 8"),
        (["--draws", "1"], "--draws", "expected a whole number of at least 4, got '1'"),
    ],
    "feature_evolution": [
        (["--preset", "fashion-mnist"], "--data-dir", "folder that holds fashion-mnist/"),
        (["--depth", "1"], "--depth", "at least 2, got '1'"),
        (["--steps", "0"], "--steps", "at least 1, got '0'"),
        (["--ofe-rate", "nan"], "--ofe-rate", "a number, got 'nan'"),
        (["--moments", "-1"], "--moments", "at least 0, got '-1'"),
        (["--moments", "3", "3"], "--moments", "distinct numbers, got 3 3"),
        (["--steps", "20", "--moments", "0", "21"], "--moments", "at most 20, --steps, got 21"),
        (["--probes", "1"], "--probes", "at least 2, got '1'"),
    ],
    "frozen_networks": [
        (["--preset", "mnist"], "--data-dir", "folder that holds mnist/"),
        (["--preset", "mnist-gpu", "--device", "abacus"], "--device", "got 'abacus'"),
        (["--noise-scales", "0"], "--noise-scales", "above 0, got '0'"),
        (["--noise-scales", "1", "1.0"], "--noise-scales", "distinct numbers, got 1.0 1.0"),
        (["--depth", "1"], "--depth", "at least 2, got '1'"),
    ],
    "hyperparameters": [
        (["--label-noise", "1"], "--label-noise", "[0, 1), got '1'"),
        (["--label-noise", "-0.1"], "--label-noise", "[0, 1), got '-0.1'"),
        (["--label-noise", "some"], "--label-noise", "[0, 1), got 'some'"),
        (["--model", "vgg16"], "--model", "feedforward"),
        (["--optimizers", "lamb"], "--optimizers", "sgd"),
        (["--optimizers", "sgd", "sgd"], "--optimizers", "distinct names, got sgd sgd"),
        (["--optimizers"], "--optimizers", "expected at least one argument"),
        (["--sgd-lr", "0.1", "0"], "--sgd-lr", "above 0, got '0'"),
        (["--sgd-lr", "0.1", "1e-1"], "--sgd-lr", "distinct numbers, got 0.1 0.1"),
        (["--adam-lr", "inf"], "--adam-lr", "above 0, got 'inf'"),
        (["--batch-sizes", "0"], "--batch-sizes", "at least 1, got '0'"),
        (["--batch-sizes", "8", "8"], "--batch-sizes", "distinct numbers, got 8 8"),
    ],
    "kernel_machine": [(["--ridge", "0"], "--ridge", "expected a number above 0, got '0'")],
    "layer_similarity": [(["--depth", "0"], "--depth", "at least 1, got '0'")],
    "layerwise_maximisation": [
        (["--preset", "mnist"], "--data-dir", "folder that holds mnist/"),
        (["--lfm-widths", "0"], "--lfm-widths", "at least 1, got '0'"),
        (["--lfm-widths", "8", "8"], "--lfm-widths", "distinct numbers, got 8 8"),
        (["--end-to-end-widths", "8", "8"], "--end-to-end-widths", "distinct numbers, got 8 8"),
        (["--lfm-lr", "0"], "--lfm-lr", "above 0, got '0'"),
        (["--patience", "0"], "--patience", "at least 1, got '0'"),
        (["--max-epochs", "0"], "--max-epochs", "at least 1, got '0'"),
        (["--validation-fraction", "0"], "--validation-fraction", "in (0, 1), got '0'"),
        (["--validation-fraction", "1"], "--validation-fraction", "in (0, 1), got '1'"),
    ],
    "spectrum": [
        (["--conditions"], "--conditions", "expected at least one argument"),
        (["--conditions", "0"], "--conditions", "learning rate above 0"),
        (["--conditions", "0.1:"], "--conditions", "got '0.1:'"),
        (["--conditions", "0.1:1"], "--conditions", "[0, 1) of random labels LR:F, got '0.1:1'"),
        (["--conditions", "fast"], "--conditions", "got 'fast'"),
        (["--conditions", "0.1", "1e-1", "0.1:0.2"], "--conditions", "distinct values, got 0.1 0.1 0.1:0.2"),
        (["--conditions", *(f"0.{i}" for i in range(1, 8))], "--conditions", "at most 6"),
        (["--eigenvalues", "0"], "--eigenvalues", "at least 1, got '0'"),
    ],
    "whole_training_set": [
        (["--products", "5"], "--products", "expected a whole number of at least 6, got '5'"),
        (["--exact-layers", "2", "2"], "--exact-layers", "expected distinct numbers, got 2 2"),
        (["--exact-layers", "11"], "--exact-layers", "expected layers from 1 to 10, --depth, got 11"),
    ],
    "width": [
        (["--lr-exponents", "inf"], "--lr-exponents", "a finite number, got 'inf'"),
        (["--lr-exponents", "1", "1.0"], "--lr-exponents", "distinct numbers, got 1.0 1.0"),
    ],
}

DEFAULTS = {
    "alignment_hierarchy": ("0.9", "0.0005", "0.003", "128", "digits", "runs/alignment_hierarchy-DATASET"),
    "cka_bias": ("6", "30", "[50, 100, 200, 500, 1000]", "20", "trace", "digits"),
    "depth_scaling": ("[4, 6, 10, 16, 24]", "64", "[20]", "1.0", "10", "2000", "runs/depth_scaling-DATASET"),
    "early_training": ("0.003", "256", "100", "20", "[0.0, 2.0]", "feedforward", "runs/early_training-DATASET[-MODEL]"),
    "equilibrium": ("0.1", "20", "16", "[64, 128, 256, 512, 1024]", "3000", "24", "runs/equilibrium"),
    "feature_evolution": ("100", "5", "128", "0.003", "400", "20", "[0, 30, 300]", "200", "digits"),
    "frozen_networks": ("[128, 512]", "[0.01, 1.0]", "0.1", "5", "25", "digits"),
    "hyperparameters": ("0.9", "0.0005", "0.1", "[32, 128, 512]", "['sgd', 'adam']", "feedforward", "digits"),
    "kernel_machine": ("0.1", "256", "10", "500", "digits"),
    "layer_similarity": ("20", "12", "0.003", "128", "digits"),
    "layerwise_maximisation": ("[32, 128]", "[32]", "0.01", "0.03", "50", "5", "0.1", "digits"),
    "spectrum": ("0.9", "0.0005", "128", "200", "digits"),
    "whole_training_set": ("90", "5", "256", "digits"),
    "width": ("[32, 128, 512]", "[0.5, 1.0]", "0.01", "32", "8", "digits"),
}

# A command line and the message about what the data set does not have: for every study with that option. Feature
# evolution has a limit of its own.
LARGE = [
    (["--train-size", "1438"], "--train-size: expected at most 1437, the training samples of digits, got 1438"),
    (["--probe-size", "1438"], "--probe-size: expected at most 1437"),
    (["--train-size", "100", "--probe-size", "101"], "--probe-size: expected at most 100"),
    (["--test-size", "361"], "--test-size: expected at most 360, the test samples of digits, got 361"),
]

# The same for the options of single studies.
OWN_LARGE = {
    **{
        name: [(["--probe-size", "361"], "--probe-size: expected at most 360, the test samples of digits, got 361")]
        for name in ("alignment_hierarchy", "depth_scaling")
    },
    "cka_bias": [
        (["--sizes", "1438"], "--sizes: expected at most 1437, the training samples of digits, got 1438"),
        (["--train-size", "100", "--sizes", "50", "101"], "--sizes: expected at most 100"),
    ],
    "early_training": [
        (
            ["--depth", "3", "--width", "16", "--eigenvectors", "1440"],
            "--eigenvectors: expected at most 1439, one less than the parameters, got 1440",
        )
    ],
    "feature_evolution": [
        (["--train-size", "1001"], "--train-size: expected at most 1000, since kernels over 10 outputs"),
    ],
    "layerwise_maximisation": [
        (
            ["--probe-size", "20", "--validation-fraction", "0.99"],
            "a validation set of 1 to 1417 samples, which leaves the 20 of --probe-size",
        ),
        (["--probe-size", "20", "--validation-fraction", "0.0001"], "a validation set of 1 to 1417 samples"),
    ],
    "spectrum": [
        (
            ["--probe-size", "20", "--eigenvalues", "201"],
            "--eigenvalues: expected at most 200, the rows of a kernel (20 samples, 10 outputs)",
        )
    ],
    "whole_training_set": [
        (
            ["--train-size", "300", "--probe-size", "300"],
            "--probe-size: expected less than 300, the training samples, got 300",
        )
    ],
}


def options(name: str) -> set[str]:
    """The options of a study."""
    words = (word.strip("[],") for word in STUDIES[name].parser().format_help().split())
    return {word for word in words if word.startswith("--")}


def large(name: str) -> list[tuple[list[str], str]]:
    """The shared cases of which a study has all options."""
    known = options(name) - ({"--train-size"} if name == "feature_evolution" else set())
    return [case for case in LARGE if all(word in known for word in case[0] if word.startswith("--"))]


BAD = [
    (name, *case)
    for name in NAMES
    for case in [
        *(case for case in SHARED if case[0][0] in options(name)),
        *OWN[name],
        *[(["--preset", "none"], "--preset", preset) for preset in STUDIES[name].presets or ()],
    ]
]
MISSING = [(name, case) for name in NAMES for case in [*large(name), *OWN_LARGE.get(name, [])]]


def named(value: object) -> str | None:
    """The identifier of a case: its study and its command line."""
    return " ".join(value) if isinstance(value, list) else value if value in NAMES else ""


@pytest.mark.parametrize(("name", "arguments", "option", "expected"), BAD, ids=named)
def test_bad_values_name_option_expectation_and_value(
    name: str, arguments: list[str], option: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        STUDIES[name].parse(arguments)
    assert error.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: " in message
    assert expected in message


@pytest.mark.parametrize("name", NAMES)
def test_help_states_defaults(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # argparse breaks lines at hyphens
    with pytest.raises(SystemExit):
        STUDIES[name].parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: python -m experiments.{name} ")
    for default in DEFAULTS[name]:
        assert f"(default: {default})" in text
    assert "None" not in text


@pytest.mark.parametrize(("name", "case"), MISSING)
def test_mistakes_only_the_data_show_are_one_message(
    name: str, case: tuple[list[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = case
    assert STUDIES[name].main([*arguments, "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"python -m experiments.{name}: error: ")
    assert expected in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_are_one_message(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--dataset", "kmnist", "--data-dir", str(tmp_path), "--output", str(tmp_path / "out")]
    assert STUDIES[name].main(command) == 2
    assert "train-images-idx3-ubyte.gz: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
