"""Options of launchers: what is refused before a job begins, and what comes from a user's own files."""

from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from bench.config.folders import folder
from bench.config.hydra_launcher import launcher_of
from bench.config.launch_arguments import split
from bench.run import launch
from methods.errors import SetupError


def job_number(_):
    return int(HydraConfig.get().job.num)


@contextmanager
def launcher(place, *given, task=None):
    """The launcher of a command line, and Hydra's own config for it."""
    with launcher_of(split(given)[1], ["runtime.threads=1"], task, place) as found:
        yield found, HydraConfig.get()


def refused(place, *given):
    with pytest.raises(SetupError) as told, launcher(place, *given):
        pytest.fail("it could be launched")
    return str(told.value)


WRONG = {
    "joblib": [
        "n_jobs=0", "n_jobs=x", "backend=threading", "batch_size=x", "batch_size=0", "require=sharedmem",
        "prefer=threads", "mmap_mode=zz", "max_nbytes=x", "timeout=0.5", "pre_dispatch=0",
    ],
    "submitit_local": ["cpus_per_task=0", "timeout_min=0", "mem_gb=-1", "nodes=2", "tasks_per_node=0"],
    "slurm": [
        "cpus_per_task=0", "timeout_min=0", "array_parallelism=0", "mem_gb=-1", "signal_delay_s=-1", "gpus_per_node=-1",
        "max_num_timeout=-1", "additional_parameters.qos=[a]", "additional_parameters=5",
    ],
    "ray": ["num_cpus=-1", "num_gpus=x"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "option"), [(name, one) for name, some in WRONG.items() for one in some])
def test_a_wrong_value_is_refused_before_anything_runs(name, option):
    with pytest.raises(SetupError, match="expected ") as told:
        split([f"launcher={name}", f"hydra.launcher.{option}"])
    assert str(told.value).startswith(f"hydra.launcher.{option}: ")


def test_a_value_that_hydra_makes_is_checked_as_well(tmp_path):
    two = ('hydra.launcher.n_jobs=${oc.decode:"0"}', 'hydra.launcher.batch_size=${oc.decode:"x"}')
    told = refused(tmp_path, "launcher=joblib", *two).splitlines()
    assert [one.partition(": ")[0] for one in told] == ["hydra.launcher.n_jobs=0", "hydra.launcher.batch_size=x"]


def test_right_values_are_taken(tmp_path):
    given = ("n_jobs=-1", "batch_size=3", "max_nbytes=1M", "mmap_mode=r+", "timeout=null", "pre_dispatch=3*n_jobs")
    with launcher(tmp_path, "launcher=joblib", *(f"hydra.launcher.{one}" for one in given)):
        pass
    with launcher(tmp_path, "launcher=slurm", "hydra.launcher.mem_gb=null", "hydra.launcher.gpus_per_node=0"):
        pass


@pytest.mark.parametrize("subdir", ["${hydra.job.num}", "job_${hydra.job.num}_x", "${hydra:job.num}"])
def test_the_number_of_a_job_names_its_folder(subdir, tmp_path):
    given = (
        "launcher=joblib",
        "hydra.launcher.n_jobs=1",
        f"hydra.sweep.dir={tmp_path}",
        f"hydra.sweep.subdir={subdir}",
    )
    with launcher(Path(), *given, task=job_number) as (found, _):
        assert [*found.launch([[], []]), *found.launch([[]])] == [0, 1, 2]
    expected = {"${hydra.job.num}": "{}", "job_${hydra.job.num}_x": "job_{}_x", "${hydra:job.num}": "{}"}[subdir]
    assert {one.name for one in tmp_path.iterdir()} == {expected.format(number) for number in range(3)}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("hydra.sweep.subdir=${hydra.job.override_dirname}", "a job may run several cells"),
        ("hydra.sweep.dir=/tmp/${hydra.job.num}", "only hydra.sweep.subdir"),
        ("hydra.sweep.subdir=${nope}", "hydra.sweep.subdir: Interpolation key 'nope' not found"),
        ("+hydra.job.env_set.X=${nope}", "hydra.job.env_set.X: Interpolation key 'nope' not found"),
        ("hydra.sweep.dir=/proc/x", "hydra.sweep.dir=/proc/x: "),
        ("hydra.launcher.temp_folder=/proc/x", "hydra.launcher.temp_folder=/proc/x: "),
        ("hydra.launcher.additional_parameters.qos=high", "only Slurm has further options"),
    ],
)
def test_what_no_job_could_use_is_refused(given, told, tmp_path):
    assert told in refused(tmp_path, "launcher=joblib", given)


def test_a_dry_run_makes_no_folder(tmp_path):
    cfg = OmegaConf.create({"runtime": {"device": "cpu", "threads": 1, "results": str(tmp_path / "r")}})
    launch.check(
        [cfg], ["launcher=joblib", f"hydra.sweep.dir={tmp_path}/a/b", f"hydra.launcher.temp_folder={tmp_path}"]
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match="file/a: Not a directory; choose another folder"):
        launch.check([cfg], ["launcher=joblib", f"hydra.sweep.dir={tmp_path}/file/a"])


@pytest.mark.parametrize("name", ["submitit_local", "slurm"])
def test_submitit_expands_no_folder_of_results(name, tmp_path):
    assert "has a %" in refused(tmp_path / "100%j", f"launcher={name}")
    with launcher(tmp_path / "100%j", f"launcher={name}", f"hydra.sweep.dir={tmp_path}"):
        pass
    with launcher(tmp_path / "it's %j", "launcher=joblib") as (_, cfg):
        assert cfg.sweep.dir.startswith(f"{tmp_path}/it's %j/")


FREE = "hydra.launcher.additional_parameters"


@pytest.mark.parametrize(
    ("given", "more"),
    [
        (f"+{FREE}.qos=high", {"requeue": True, "qos": "high"}),
        (f"{FREE}.mail-user=a", {"requeue": True, "mail-user": "a"}),
        (
            f"{FREE}={{qos:high,nice:10,exclusive:true}}",
            {"requeue": True, "qos": "high", "nice": 10, "exclusive": True},
        ),
        (f"{FREE}.requeue=false", {}),
        (f"{FREE}={{requeue:null}}", {}),
    ],
)
def test_slurm_takes_further_options_under_any_name(given, more, tmp_path):
    with launcher(tmp_path, "launcher=slurm", given) as (_, cfg):
        assert cfg.launcher.additional_parameters == more


def test_a_further_option_of_slurm_has_a_name_that_sbatch_knows(tmp_path):
    """And its value is data: Hydra would call what _target_ names."""
    assert "sbatch has no such option" in refused(tmp_path, "launcher=slurm", f"{FREE}={{_target_:os.getcwd}}")
    assert "expected a line of text" in refused(tmp_path, "launcher=slurm", f"{FREE}.comment='a\nb'")


def own(place, **changed):
    text = (folder() / "launcher/joblib.yaml").read_text()
    for old, new in changed.items():
        assert old in text
        text = text.replace(old, new)
    (place / "launcher").mkdir(exist_ok=True)
    (place / "launcher/mine.yaml").write_text(text)
    return f"hydra.searchpath=[{place}]"


def test_a_user_has_launchers_of_their_own(tmp_path):
    given = own(tmp_path, **{"n_jobs: -1": "n_jobs: 3"})
    with launcher(tmp_path, "launcher=mine", given) as (found, cfg):
        assert found.name == "joblib" and cfg.launcher.n_jobs == 3
        assert not any("searchpath" in one for one in cfg.overrides.hydra)  # jobs need none
    assert "Allowed: launcher=joblib|mine|ray|slurm|submitit_local," in refused(tmp_path, "launcher=nobody", given)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("n_jobs: -1", "n_jobs: 0", "hydra.launcher.n_jobs=0: expected"),
        ("n_jobs: -1", "n_jobs: x", "Value 'x' of type 'str' could not be converted to Integer"),
        ("n_jobs: -1", "_target_: os.system", "and nothing else"),
        ("hydra:", "seed: 3\nhydra:", "and nothing else"),
        ("  launcher:\n", "  run: {dir: x}\n  launcher:\n", "and nothing else"),
        ("  - override /hydra/launcher: joblib", "  - _self_", "and nothing else"),
        ("  - override", "  - /method: caa\n  - override", "and nothing else"),
    ],
)
def test_a_launcher_of_ones_own_is_checked(old, new, told, tmp_path):
    assert told in refused(tmp_path, "launcher=mine", own(tmp_path, **{old: new}))
