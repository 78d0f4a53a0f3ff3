"""What the tab key offers after `steerbench`, and the scripts that ask for it."""

import shutil
import subprocess
import sys

import pytest

from bench import steerbench
from bench.config import completion, folders


def words(line):
    return completion.words(line, {name: one.module for name, one in steerbench.COMMANDS.items()})


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("steerbench le", ["leaderboard"]),
        ("steerbench run method=ca", ["method=caa"]),
        ("steerbench run suite=[rtp,flu", ["suite=[rtp,fluency", "suite=[rtp,fluency_act"]),
        ("steerbench run suite=flu", []),
        ("steerbench run -m method=caa,det", ["method=caa,detox"]),
        ("steerbench run method=caa method.la", ["method.layer="]),
        ("steerbench run method=detox method.ra", ["method.rank="]),
        ("steerbench run suite.rtp.pro", ["suite.rtp.prompts="]),
        ("steerbench run suite=[kl] suite.rtp.pro", []),
        ("steerbench run stre", ["strength=", "strength_unit="]),
        ("steerbench run --cfg ", ["job", "all", "hydra"]),
        ("steerbench run --help tun", ["tuning"]),
        ("steerbench run runtime.overw", ["runtime.overwrite="]),
        ("steerbench leaderboard --fam", ["--family"]),
        ("steerbench leaderboard meth", []),
        ("steerbench status --j", ["--json"]),
        ("steerbench --shell-completion f", ["fish"]),
        ("steerbench nobody x", []),
        ("steerbench run 'method=ca", ["method=caa"]),
        ("steerbench", []),
    ],
)
def test_the_words_that_a_line_may_go_on_with(line, offered):
    assert words(line) == offered


def test_every_command_and_choice_is_offered():
    assert set(steerbench.COMMANDS) <= set(words("steerbench "))
    for group, choices in folders.groups().items():
        if group not in ("suite", "scorer"):
            assert words(f"steerbench run {group}=") == [f"{group}={one}" for one in choices]
    for name in steerbench.COMMANDS:
        words(f"steerbench {name} --")


def test_nothing_heavy_is_imported():
    line = "from bench.steerbench import main; import sys; main(['--complete', 'steerbench run suite.rtp.']); "
    heavy = "print([one for one in ('torch', 'transformers', 'pandas', 'hydra') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", line + heavy], capture_output=True, text=True, check=True)
    *offered, imported = done.stdout.splitlines()
    assert "suite.rtp.k=" in offered and imported == "[]"


def test_a_prompt_shows_no_error():
    assert all("--complete" in text and "2>/dev/null" in text for text in map(completion.script, completion.SCRIPTS))


def test_a_script_for_each_shell(capsys):
    for shell in completion.SCRIPTS:
        assert steerbench.main(["--shell-completion", shell]) == 0
        assert "steerbench --complete" in capsys.readouterr().out
    assert completion.script("install=bash") == completion.script("bash")  # as Hydra's users write it
    assert steerbench.main(["-sc", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_the_shell_reads_its_script(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=completion.script(shell), text=True, check=True)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_replaces_what_follows_the_equals_sign(tmp_path):
    program = tmp_path / "steerbench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bench.steerbench "$@"\n')
    program.chmod(0o755)
    lines = 'eval "$(steerbench --shell-completion bash)"\n'
    for line in ("steerbench lead", "steerbench run method=ca", "steerbench run suite=[rtp,over"):
        lines += f'COMP_LINE="{line}"; COMP_POINT={len(line)}; _steerbench; echo "${{COMPREPLY[*]}}"\n'
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(folders.folder().parent)}
    done = subprocess.run(["bash"], input=lines, text=True, capture_output=True, check=True, env=environment)
    assert done.stdout.splitlines() == ["leaderboard", "caa", "[rtp,over_refusal"]
