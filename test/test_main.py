"""The command line's door."""

import subprocess
import sys

import pytest

from imatching_ros.__main__ import COMMANDS, main


def call(*arguments, code="from imatching_ros.__main__ import main; main(['--help'])"):
    return subprocess.run([sys.executable, *(arguments or ("-c", code))], capture_output=True, text=True, timeout=120)


def test_help_names_every_command_and_imports_nothing_heavy():
    done = call(
        code="import sys; from imatching_ros.__main__ import main; main(['--help']); "
        "print('LOADED', [m for m in ('torch', 'cv2', 'rosbags', 'evo', 'numpy') if m in sys.modules])"
    )
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS) and "LOADED []" in done.stdout


def test_unknown_commands_get_a_hint(capsys):
    assert main(["repaly"]) == 2
    assert "did you mean 'replay'" in capsys.readouterr().err
    assert main(["bench", "everything"]) == 2
    assert main([]) == 2 == main(["bench"])
    assert main(["--help"]) == 0 == main(["bench", "--help"]) == main(["--version"])


def test_expected_errors_are_one_line_and_code_1(capsys, tmp_path):
    assert main(["replay", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "does not exist" in error
    assert main(["replay", str(tmp_path), "--out", str(tmp_path / "out"), "--set", "odometry.windows=3"]) == 1
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["replay", "match-eval", "finetune"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and "examples:" in capsys.readouterr().out


def test_the_node_explains_itself_and_does_not_start(capsys):
    assert main(["online", "--help"]) == 0
    assert "--params-file" in capsys.readouterr().out


SLOW = """
import os, signal, sys, time
try:  # as some packages do while they are imported
    os.kill(os.getpid(), signal.{signal})
    time.sleep(5)
except BaseException:
    pass
def main(arguments=None):
    return 3
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("start", ["main(['online'])", "run_program('slow')"])
def test_a_signal_during_imports_ends_the_program(tmp_path, name, start):
    (tmp_path / "slow.py").write_text(SLOW.format(signal=name))
    done = call(
        code=f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import imatching_ros.__main__ as program; "
        f"program.COMMANDS['online'] = 'slow', ''; sys.exit(program.{start})"
    )
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("module", ["torch", "safetensors"])
def test_a_python_without_the_environment_is_told_in_one_line(module):
    """The system's Python, as systemd starts it."""
    done = call(
        code=f"import sys; sys.modules[{module!r}] = None; from imatching_ros.__main__ import main; "
        "sys.exit(main(['replay', 'nothing', '--out', 'run']))"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"needs {module}, which is not found by {sys.executable}; activate the virtual environment" in done.stderr


@pytest.mark.parametrize(
    "module, command",
    [
        ("rosbags", ["match-eval", "BAG"]),
        ("evo", ["replay", "nothing", "--out", "run"]),
        ("matplotlib", ["report", "run"]),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(module, command, tmp_path):
    (tmp_path / "a.mcap").touch()
    command = [str(tmp_path / "a.mcap") if word == "BAG" else word for word in command]
    done = call(
        code=f"import sys; sys.modules[{module!r}] = None; from imatching_ros.__main__ import main; sys.exit(main({command!r}))"
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    advice = f'needs {module}, which is not installed: pip install "imatching_ros[offline]"'
    assert done.stderr.startswith(f"error: {command[0]} {advice}")


def test_programs_of_ros_report_a_missing_extra_too():
    done = call(
        code="import sys; sys.modules['rosbags'] = None; from imatching_ros.__main__ import run_program; "
        "sys.exit(run_program('imatching_ros.offline.recordings.bag'))"
    )
    assert done.returncode == 1 and "error: bag needs rosbags, which is not installed" in done.stderr
