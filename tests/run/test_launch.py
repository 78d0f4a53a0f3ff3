"""Sweeps that Hydra's launchers run: what is theirs, in which order, and that no number differs."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hydra.errors import HydraException
from joblib import Parallel, delayed
from omegaconf import OmegaConf

from bench.__main__ import Sweep, main
from bench.config import compose, folders
from bench.config.hydra_launcher import Ready, launcher_of
from bench.config.launch_arguments import split
from bench.records import sweep_state
from bench.records.sweep_state import Log
from bench.run import cell_config, finished, job, launch
from bench.run.cell import Cell
from bench.run.job import Job
from bench.run.runner import plan
from bench.run.session import Session
from methods.errors import SetupError
from tests.run.test_smoke import arguments, contents, without_figures, world  # noqa: F401


def test_arguments_for_a_launcher_are_split_off():
    given = ["method=caa", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=/x", "seed.fit=0,1"]
    assert split(given) == (["method=caa", "seed.fit=0,1"], given[1:4])
    both = ["launcher=slurm", "hydra.searchpath=[/y]"]  # a folder may hold launchers, too
    assert split(both) == (both[1:], both)
    read_by_hydra = ["launcher=joblib", "hydra.launcher.n_jobs=${oc.env:NJ}"]
    assert split(read_by_hydra) == ([], read_by_hydra)
    for one_process in ([], ["launcher=null"], ["hydra/launcher=basic"], ["hydra/sweeper=basic"]):
        assert split(["method=caa", *one_process]) == (["method=caa"], [])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["hydra/sweeper=optuna"], "tuning.search=tpe"),
        (["hydra.launcher.n_jobs=2"], "none is named"),
        (["hydra.sweep.dir=/x"], "none is named"),
        (["hydra/launcher=joblib", "hydra.run.dir=/x"], "hydra.sweep.dir"),
        (["hydra/launcher=joblib", "hydra/job_logging=none"], "only these options of Hydra work"),
        (["hydra/launcher=joblib,ray"], "name one"),
        (["hydra/launcher=joblib", "launcher=slurm"], "two launchers"),
        (["launcher=[joblib]"], "name one"),
        (["launcher=joblib", "hydra.launcher=null"], "its options one by one"),
        (["launcher=joblib", "hydra.launcher._target_=os.system"], "its options one by one"),
        (["launcher=joblib", "++hydra.launcher.foo=1"], "so that a name which"),
        (["launcher=joblib", "hydra.launcher.backend=threading"], "expected loky"),
        (["launcher=joblib", "hydra.sweep.dir="], "expected a folder"),
        (["launcher=joblib", "hydra.launcher.n_jobs=0"], "expected a number of processes"),
        (["launcher=joblib", "hydra.launcher.n_jobs=true"], "expected a number of processes"),
        (["launcher=joblib", "hydra.launcher.pre_dispatch='0*n_jobs'"], "or a text such as"),
        (["launcher=joblib", "hydra.launcher.pre_dispatch=x"], "2*n_jobs".replace("*", r"\*")),
        (["launcher=joblib", "hydra.job.env_set.X=1"], "is set with +".replace("+", r"\+")),
    ],
)
def test_what_cannot_be_honoured_is_refused(given, told):
    with pytest.raises(SetupError, match=told.replace(".", r"\.")):
        split(given)


def nothing(_):
    return None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["launcher=nobody"], r"Allowed: launcher=joblib\|ray\|slurm\|submitit_local, or"),
        (["hydra/launcher=ray_on_mars"], r"Allowed: launcher=joblib\|ray\|slurm\|submitit_local, or"),
        (["launcher=joblib", "hydra.launcher.processes=2"], "processes"),
    ],
)
def test_a_launcher_or_option_that_there_is_not(given, told, tmp_path):
    with pytest.raises(SetupError, match=told), launcher_of(given, [], nothing, tmp_path):
        pytest.fail("it was launched")


def test_a_launcher_that_is_not_installed_has_its_command(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise HydraException("In 'hydra/config': Could not find 'hydra/launcher/joblib'")

    monkeypatch.setattr("bench.config.hydra_launcher.compose", missing)
    with pytest.raises(
        SetupError, match=r"launcher joblib is not installed; run: pip install 'steerbench\[launchers\]'"
    ):
        with launcher_of(["hydra/launcher=joblib"], [], nothing, tmp_path):
            pytest.fail("it was launched")


@pytest.mark.parametrize(("launcher", "code"), [("submitit_local", -signal.SIGTERM), ("joblib", 0)])
def test_jobs_of_this_machine_end_with_a_stopped_launcher(launcher, code, tmp_path):
    work = "import sys, time\nprint(flush=True)\ntime.sleep(0 if 'joblib' in sys.argv else 60)"
    argv = [sys.executable, "-c", work, "submitit.local._local", launcher]
    with pytest.raises(KeyboardInterrupt), launcher_of([f"hydra/launcher={launcher}"], [], nothing, tmp_path):
        process = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        raise KeyboardInterrupt
    assert process.wait(30) == code


def test_joblibs_workers_start_with_ctrl_c_blocked(tmp_path):
    """It came to all of them while they imported, and each printed a traceback."""
    with launcher_of(["hydra/launcher=joblib"], [], nothing, tmp_path):
        found = Parallel(n_jobs=2)(delayed(signal.pthread_sigmask)(signal.SIG_BLOCK, []) for _ in range(2))
    assert all(signal.SIGINT in one for one in found)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_job_is_read_as_it_was_written():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    job = Job("cells", "/results/it's/runs", [0, 7], ["0", "GPU-1f"])
    (read,) = OverridesParser.create().parse_overrides([job.override()])
    assert Job.read(SimpleNamespace(**read.value())) == job


def test_a_stopped_launcher_says_what_goes_on(tmp_path):
    sweep = Sweep()
    sweep.results, sweep.launcher = tmp_path, ["launcher=joblib"]
    assert "what its jobs have computed is kept" in sweep.kept() and "scancel" not in sweep.kept()
    sweep.launcher = ["hydra/launcher=submitit_slurm"]
    assert "scancel ends them" in sweep.kept()


def test_a_launcher_needs_the_threads(world, tmp_path, capsys):  # noqa: F811
    given = arguments(world, tmp_path, "method=unsteered,caa", "strength=2", "launcher=joblib")
    assert main(given) == 2
    assert "runtime.threads=NUMBER" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "records").exists()


@pytest.fixture
def launched(monkeypatch):
    """Waves of jobs that run in this process: what a launcher would do, without its processes."""
    waves = []

    class Here:
        name, shares_a_machine, loses_all, leaves_others = "here", True, False, False

        @staticmethod
        def launch(jobs):
            from hydra.core.override_parser.overrides_parser import OverridesParser

            from bench.run.job import run

            read = [OverridesParser.create().parse_overrides(one)[0].value() for one in jobs]
            waves.append([(one["stage"], one["numbers"]) for one in read])
            return [run(SimpleNamespace(job=SimpleNamespace(**one))) for one in read]

    class Context:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return Here

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(launch, "launcher_of", Context)
    return waves


@pytest.mark.usefixtures("without_figures")
def test_waves_compute_what_is_shared_once_and_the_same_numbers(world, tmp_path, launched, capsys):  # noqa: F811
    asked = ("method=unsteered,caa,random_direction", "strength=1,2", "runtime.threads=1")
    assert main(arguments(world, tmp_path / "a", *asked)) == 0
    assert main(arguments(world, tmp_path / "b", *asked, "launcher=joblib", "runtime.cells_per_job=2")) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    stages = [[stage for stage, _ in wave] for wave in launched]
    assert stages[-1] == ["cells"] * len(stages[-1]) and ["fits"] * 2 in stages
    assert sorted(number for _, numbers in launched[-1] for number in numbers) == list(range(6))
    (sweep,) = [sweep_state.read(folder) for folder in sweep_state.folders(tmp_path / "b" / "runs")]
    assert sweep is not None and sweep.launcher == "here" and sweep.count("done") == 6
    capsys.readouterr()
    assert main(arguments(world, tmp_path / "b", *asked, "launcher=joblib")) == 0
    assert len(launched) == len(stages)  # nothing is launched where all is known


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ("method=caa,detox strength=auto", {"rtp", "fluency", "pairs"}),
        ("method=caa strength=1,2", {"pairs"}),
        ("method=caa strength=1 pairs.subset=8,9", {"pairs"}),
        ("method=unsteered seed.sample=0,1", set()),
    ],
)
def test_what_cells_share_comes_in_a_wave_of_its_own(world, tmp_path, asked, kinds):  # noqa: F811
    given = [one for one in arguments(world, tmp_path)[1:] if not one.startswith("pairs")]
    jobs = compose.jobs([*given, *asked.split()], multirun=True)
    cells = [Cell(compose.compose(one), Session()) for one in jobs]
    todo = [launch.Asked(number, cell, plan(cell)) for number, cell in enumerate(cells)]
    assert {key.partition(" ")[0] for one in todo for key in launch._shared(one)} == kinds
    found = [(stage, [one.number for one in wave]) for stage, wave in launch.waves(todo)]
    assert (found[0] == ("shared", [0])) == bool(kinds) and found[-1] == ("cells", [0, 1])


@pytest.mark.usefixtures("without_figures", "launched")
def test_the_first_waves_are_logged_while_they_run(world, tmp_path, monkeypatch):  # noqa: F811
    def ahead(cell, stage):
        sweep = sweep_state.read(sweep_state.folders(tmp_path / "runs")[0])
        assert sweep is not None
        seen.append((stage, [(one.state, one.ahead) for one in sweep.cells]))
        return real(cell, stage)

    real, seen = job._ahead, []
    monkeypatch.setattr(job, "_ahead", ahead)
    assert main(arguments(world, tmp_path, "method=caa", "strength=1,2", "runtime.threads=1", "launcher=joblib")) == 0
    assert seen == [("fits", [("running", "fits"), ("waiting", None)])]


@pytest.mark.usefixtures("without_figures")
def test_a_failing_cell_is_told_and_the_others_go_on(world, tmp_path, launched, monkeypatch, capsys):  # noqa: F811
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("methods.random_direction.RandomDirection.fit", full)
    asked = ("method=unsteered,caa,random_direction", "strength=2", "runtime.threads=1", "launcher=joblib")
    assert main(arguments(world, tmp_path, *asked)) == 2
    assert "No space left" in capsys.readouterr().err
    (sweep,) = [sweep_state.read(folder) for folder in sweep_state.folders(tmp_path / "runs")]
    assert sweep is not None and [one.state for one in sweep.cells] == ["done", "done", "failed"]


def first(monkeypatch, change):
    """Let something happen between the launch and the work of each job."""
    real = job.run

    def run(cfg):
        change(Path(cfg.job.log))
        return real(cfg)

    monkeypatch.setattr(job, "run", run)


SMALL = ("method=unsteered,caa", "strength=2", "runtime.threads=1")


@pytest.mark.usefixtures("without_figures")
def test_yaml_that_is_edited_during_a_sweep_changes_nothing(world, tmp_path, launched, monkeypatch):  # noqa: F811
    assert main(arguments(world, tmp_path / "a", *SMALL)) == 0
    shutil.copytree(folders.folder(), tmp_path / "conf")
    caa = tmp_path / "conf/method/caa.yaml"
    caa.write_text(re.sub(r"^layer: \S+", "layer: 0", caa.read_text(), flags=re.MULTILINE))

    def edit(_):
        for module in (folders, compose):
            monkeypatch.setattr(module, "folder", lambda: tmp_path / "conf")

    first(monkeypatch, edit)
    assert main(arguments(world, tmp_path / "b", *SMALL, "launcher=joblib")) == 0
    assert launched and compose.compose(["method=caa", "model=local", "model.path=m"]).method.layer == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.usefixtures("without_figures", "launched")
@pytest.mark.parametrize("text", [None, "{", "- a list", "seed: ???"])
def test_a_cell_whose_config_a_job_cannot_use_fails_alone(text, world, tmp_path, monkeypatch, capsys):  # noqa: F811
    def damage(log):
        (log / "1.yaml").unlink(missing_ok=True) if text is None else (log / "1.yaml").write_text(text)

    first(monkeypatch, damage)
    asked = ("method=unsteered,caa,random_direction", *SMALL[1:], "launcher=joblib", "runtime.cells_per_job=2")
    assert main(arguments(world, tmp_path, *asked)) == 2
    told = capsys.readouterr().err
    assert "1 of 3 cells failed" in told and "failed: caa" in told and "to run it alone: " in told
    (sweep,) = [sweep_state.read(folder) for folder in sweep_state.folders(tmp_path / "runs")]
    assert sweep is not None and [one.state for one in sweep.cells] == ["done", "failed", "done"]


@pytest.mark.usefixtures("without_figures", "launched")
def test_a_cell_without_its_results_is_no_finished_cell(world, tmp_path, monkeypatch, capsys):  # noqa: F811
    def run(cfg):
        found = real(cfg)
        shutil.rmtree(Path(cfg.job.log).parents[1] / "records")
        return found

    real = job.run
    monkeypatch.setattr(job, "run", run)
    monkeypatch.setattr(finished, "note", lambda *_: pytest.fail("it was noted as finished"))
    assert main(arguments(world, tmp_path, *SMALL, "launcher=joblib")) == 1
    told = capsys.readouterr().err
    assert "not all its results are stored" in told and "2 of 2 cells failed" in told
    assert "to run it alone: " in told
    (sweep,) = [sweep_state.read(folder) for folder in sweep_state.folders(tmp_path / "runs")]
    assert sweep is not None and sweep.count("failed") == 2


@pytest.mark.parametrize("text", ["1e3", "null", "yes", "1:30", "\u2028#: é\n", "\x07\x85", " 😀 "])
def test_a_config_comes_back_as_it_was_written(text, world, tmp_path):  # noqa: F811
    asked = ["method=caa", "strength=1e-7", "limit=3", "sampling.top_p=.9", "sampling.stop=x"]
    cfg = compose.compose([*arguments(world, tmp_path)[1:], *asked])
    cfg.sampling.stop = text
    cell_config.write(tmp_path / "log", 3, cfg)
    found = cell_config.read(tmp_path / "log", 3)
    assert OmegaConf.is_struct(found) and Cell(found, Session()).names.fit_id == Cell(cfg, Session()).names.fit_id
    assert OmegaConf.to_container(found) == OmegaConf.to_container(cfg)  # with interpolations as they are


def lossy(name, launch):
    return Ready(name, launch, lambda: None)


def of_cells(log, count):
    return [Job("cells", str(log.folder), [one], []) for one in range(count)]


def test_a_launcher_that_loses_a_job_says_which_cells_are_left(tmp_path):
    log = Log.begin(tmp_path, [], [("unsteered", False), ("caa x1", False), ("caa x2", False)], "slurm")

    def lost(_):
        for number, message in ((0, None), (1, "no such layer")):
            with log.working(number):
                log.ended(number, message)
        raise RuntimeError("a worker was killed\n\nby somebody\nat /a/b")

    failures = launch._launched(lossy("submitit_slurm", lost), of_cells(log, 3), log)
    assert {number: one.label for number, one in failures.items()} == {1: "caa x1", 2: "caa x2"}
    assert failures[1].message == "no such layer"
    assert failures[2].message == "a job ended before it could say how (RuntimeError: a worker was killed by somebody)"
    failures = launch._launched(lossy("submitit_local", lost), of_cells(log, 3)[2:], log)
    assert "steerbench status" in failures[2].message
    assert launch._launched(lossy("submitit_slurm", lost), [replace(of_cells(log, 3)[2], stage="fits")], log) == {}


def test_of_several_lost_jobs_one_reason_is_no_more_than_that(tmp_path):
    def lost(_):
        raise RuntimeError("job 7 was cancelled")

    log = Log.begin(tmp_path, [], [("caa x1", False), ("caa x2", False)], "slurm")
    failures = launch._launched(lossy("submitit_slurm", lost), of_cells(log, 2), log)
    assert all("several jobs returned nothing, and this is told of one" in one.message for one in failures.values())


def test_a_job_that_meets_a_full_disk_says_what_to_do(tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    log = Log.begin(tmp_path, [], [("caa", False)], "joblib")
    failures = launch._launched(lossy("joblib", full), of_cells(log, 1), log)
    assert "No space left on device; free some space there" in failures[0].message and failures[0].setup
    launch._log_failed(failures, log)
    found = sweep_state.read(log.folder)
    assert found is not None and "No space left" in (found.cells[0].message or "") and found.count("failed") == 1


def test_cells_that_a_dead_process_took_along_are_launched_again(tmp_path, capsys):
    log, launched = Log.begin(tmp_path, [], [(f"caa x{one}", False) for one in range(4)], "joblib"), []

    def ends_one_and_dies(jobs):
        numbers = [int(one[0].partition("numbers:[")[2].partition("]")[0]) for one in jobs]
        launched.append(numbers)
        if numbers == [3]:  # the one that never ends well
            raise RuntimeError("killed")
        (log.folder / "3.json").write_text('{"state": "running"}')  # and nobody holds its lock
        first = next(one for one in numbers if one != 3)
        with log.working(first):
            log.ended(first, "no such layer" if first == 1 else None)
        raise RuntimeError("killed")

    failures = launch._launched(lossy("joblib", ends_one_and_dies), of_cells(log, 4)[::-1], log)
    assert launched == [[3, 2, 1, 0], [1, 0, 3], [0, 3], [3], [3]]  # what was being computed comes last
    assert {number: one.message[:13] for number, one in failures.items()} == {1: "no such layer", 3: "a job ended b"}
    assert "go on in new processes" in capsys.readouterr().err


def test_only_the_cells_that_end_their_process_fail(tmp_path, capsys):
    """Two cells end any process that they are computed in, before another cell has ended."""
    log, launched = Log.begin(tmp_path, [], [(f"caa x{one}", False) for one in range(4)], "joblib"), []

    def dies(jobs):
        numbers = [int(one[0].partition("numbers:[")[2].partition("]")[0]) for one in jobs]
        launched.append(numbers)
        if {1, 3} & set(numbers):
            raise RuntimeError("killed")
        for number in numbers:
            with log.working(number):
                log.ended(number, None)
        return [[] for _ in numbers]

    failures = launch._launched(lossy("joblib", dies), of_cells(log, 4), log)
    assert launched == [[0, 1, 2, 3], [0], [1], [1], [2], [3], [3]]
    assert set(failures) == {1, 3} and "go on one after the other" in capsys.readouterr().err


def test_a_job_that_is_stopped_counts_its_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "_sessions", [Session(written=2)])
    with pytest.raises(SystemExit), job._signals(tmp_path):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
    assert "stopped by SIGTERM; 2 finished results are kept; the same command goes on" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_ends_with_its_launcher(tmp_path):
    """One that is idle, as joblib's are between jobs."""
    program = (
        "import multiprocessing, os, time\n"
        "from bench.run import job\n"
        "def idle():\n"
        "    job._end_with_launcher()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(100)\n"
        "one = multiprocessing.get_context('fork').Process(target=idle)\n"
        "one.start()\n"
        "one.join()\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(launcher.stdout.readline()))
    launcher.kill()
    assert worker.wait(15) is None  # it is nobody's child any more, so its exit code is not known
    assert not worker.is_running()


# -- how far a sweep is ------------------------------------------------------------------------------------------------

DIES = """
import os, sys
from pathlib import Path
from bench.records.sweep_state import Log
with Log(Path(sys.argv[1])).working(1):
    os._exit(9)
"""


def test_each_state_of_a_cell_is_told(tmp_path):
    labels = [("unsteered", True), ("caa", False), ("detox", False), ("act_add", False), ("prompt", False)]
    log = Log.begin(tmp_path, ["-m", "method=caa"], labels, "joblib")
    subprocess.run([sys.executable, "-c", DIES, str(log.folder)], check=False)
    with log.working(2):
        log.ended(2)
    with log.working(3):
        log.ended(3, "strength 3: logits are not finite")
    with log.working(4):
        found = sweep_state.read(sweep_state.folders(tmp_path)[0])
        assert found is not None
        assert [one.state for one in found.cells] == ["known", "stopped", "done", "failed", "running"]
        assert found.cells[3].message == "strength 3: logits are not finite" and found.seconds_left is not None
    assert json.loads(json.dumps(sweep_state.as_json(found)))["cells"][2]["state"] == "done"


def test_status_prints_the_latest_sweep(tmp_path, capsys):
    from bench import status

    assert status.main(["--results", str(tmp_path)]) == 2
    assert "no sweep" in capsys.readouterr().err
    log = Log.begin(tmp_path / "runs", ["method=caa"], [("caa x3", False), ("a|b", False)], None)
    with log.working(0):
        log.ended(0, "no such layer")
    assert status.main(["--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "1 failed, 1 waiting" in shown and "no such layer" in shown and "the same command goes on" in shown


def test_a_damaged_state_and_old_sweeps_are_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_state, "KEPT", 2)
    for day in range(4):
        monkeypatch.setattr(time, "strftime", lambda *_, day=day: f"2026010{day}-000000")
        log = Log.begin(tmp_path, [], [("caa", False)], None)
    assert len(sweep_state.folders(tmp_path)) == 3  # two, and the new one
    (log.folder / "sweep.json").write_text("{")
    assert sweep_state.read(log.folder) is None
