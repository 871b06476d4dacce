"""`gradclip run`: a script behaves as under `python`; only recorded, no bit of it changes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradclip.torch
from distributed.launch import processes
from gradclip.record import read_run
from grads import grad_of
from integration.sinks.test_sinks import events_in
from integration.training import same

from . import train_all

Ran = subprocess.CompletedProcess[str]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

TRAIN = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(int(sys.argv[1]) if len(sys.argv) > 1 else 4):
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().mean().mul(50).backward()
    optimizer.step()
"""


def python(*args: object, cwd: Path, stdin: str = "") -> Ran:
    """Run the interpreter itself."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, input=stdin, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


# ---- A script that is only recorded


@pytest.fixture(scope="module")
def all_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """What `train_all.py` saved, by `python` and by `gradclip run`, and the record."""
    folder = tmp_path_factory.mktemp("all")
    script = str(Path(train_all.__file__))
    for args, out in (([], "plain.pt"), (["-m", "gradclip", "run", "--record", "r"], "run.pt")):
        done = python(*args, script, out, cwd=folder)
        assert done.returncode == 0, done.stderr
    plain, run = (torch.load(folder / name, weights_only=True) for name in ("plain.pt", "run.pt"))
    return plain, run, read_run(folder / "r")


@pytest.mark.parametrize("case", train_all.CASES)
def test_recording_changes_no_bit(case: str, all_trained: tuple[Any, Any, Any]) -> None:
    (plain, _), (run, _), _ = all_trained
    assert plain[case]
    assert same(run[case], plain[case])


def test_recording_draws_no_random_number(all_trained: tuple[Any, Any, Any]) -> None:
    (_, plain), (_, run), _ = all_trained
    assert same(plain, run)


def test_the_record_of_a_loss_scaler_holds_unscaled_numbers(
    all_trained: tuple[Any, Any, Any],
) -> None:
    *_, record = all_trained
    place = {name: i for i, name in enumerate(train_all.CASES)}
    norms, losses = (
        [record.column(name, place[case]) for case in ("GradScaler", "GradScaler, fused")]
        for name in ("norm", "loss")
    )
    # A scaler does not call step() of an optimizer that is not fused where it finds inf.
    for plain, fused in (norms, losses):
        assert (len(plain), len(fused)) == (5, 6)
        np.testing.assert_allclose(fused[[0, 1, 2, 4, 5]], plain, rtol=1e-6)
    assert norms[1][3] == np.inf
    # The scaler makes the first two steps as if it were not there: compare with none.
    with torch.random.fork_rng():
        model = train_all.net()
    loss = train_all.loss_of(model, 0)
    loss.backward()
    gradients = torch.cat([grad_of(p).flatten() for p in model.parameters()])
    assert losses[0][0] == pytest.approx(float(loss.detach()))
    assert norms[0][0] == pytest.approx(float(gradients.double().norm()), rel=1e-6)


# ---- With --clip: as with attach


def test_clipping_is_that_of_attach(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran]
) -> None:
    script = write(TRAIN + "torch.save(model.state_dict(), 'weights.pt')\n")
    ran = gradclip_run("--clip", "norm:0.5", script, 5)
    assert ran.returncode == 0, ran.stderr
    assert "1 optimizer hooked (SGD), 5 steps seen, 5 clipped, 0 skipped" in ran.stderr
    assert "record in run.jsonl" in ran.stderr
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradclip.torch.attach(optimizer, "norm:0.5")
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().mean().mul(50).backward()
        optimizer.step()
    got = torch.load(script.parent / "weights.pt", weights_only=True)
    assert same(dict(got), dict(model.state_dict()))
    run = read_run(script.parent / "run.jsonl")
    assert run.header.policy == "norm:0.5"
    assert run.header.command[:2] == ("gradclip", "run")
    assert [p.name for p in run.optimizers[0].parameters] == ["weight", "bias"]
    np.testing.assert_allclose(run.column("clipped_norm"), 0.5)


# ---- Everything that a script may know of the way it was started

AROUND = """
    import multiprocessing, os, pickle, sys
    import sibling
    print(sys.argv, __name__, __file__, sys.path[0], __package__, __spec__ and __spec__.name)
    print(sorted(k for k in globals() if k.startswith("__") and k != "__annotations__"))
    print(type(__loader__).__name__, __doc__)
    print(sibling.__name__, sys.modules["__main__"].__dict__ is globals())

    class Thing:
        def __eq__(self, other):
            return type(other) is Thing
        def __getitem__(self, index):
            return index * index
        def __len__(self):
            return 4

    if __name__ == "__main__":
        print(pickle.loads(pickle.dumps(Thing())) == Thing(), Thing.__module__)
        print(repr(sys.stdin.read()), flush=True)
        import torch
        for context in ("fork", "spawn"):
            loader = torch.utils.data.DataLoader(
                Thing(), batch_size=2, num_workers=1, multiprocessing_context=context)
            print([batch.tolist() for batch in loader])
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        weight.sum().backward()
        optimizer.step()
        import atexit
        if not __spec__:  # runpy.run_module has taken __main__ away by then.
            atexit.register(lambda: print(len(pickle.dumps(Thing())), sys.argv, flush=True))
        print(sys.path[0], weight.tolist(), flush=True)
"""


@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
def test_the_script_sees_what_it_sees_under_python(
    module: bool,
    write: Callable[..., Path],
    gradclip_run: Callable[..., Ran],
    tmp_path: Path,
) -> None:
    write("", "sub/sibling.py")
    write(AROUND, "sub/around.py")
    if module:
        write("", "sibling.py")
    target = ["-m", "sub.around"] if module else ["sub/around.py"]
    args = [*target, "--lr", "1", "--help", "-m", "--", "x y"]
    expected = python(*args, cwd=tmp_path, stdin="some\ntext")
    assert expected.returncode == 0, expected.stderr
    ran = gradclip_run(*args, stdin="some\ntext")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == expected.stdout
    assert "'--lr', '1', '--help', '-m', '--', 'x y'" in ran.stdout


def test_a_folder_runs_as_under_python(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    write("import sys, sibling; print(sys.argv[1:], sys.path[0], __file__)", "app/__main__.py")
    write("", "app/sibling.py")
    assert gradclip_run("app", 1).stdout == python("app", 1, cwd=tmp_path).stdout != ""


# ---- Exit codes and tracebacks

ENDS = {
    "sys.exit(7)": 7,
    "sys.exit(-1)": 255,
    "sys.exit('some text')": 1,
    "sys.exit(['a', 'list'])": 1,
    "raise SystemExit(4)": 4,
    "1 / 0": 1,
    "os._exit(9)": 9,
    "raise KeyboardInterrupt": 130,
    "os.kill(os.getpid(), 9)": -9,
    "print('x', file=sys.stderr); torch.zeros(2).sum().backward()": 1,
    "exec('def f(:')": 1,
    "import no_such_module": 1,
    "chained()": 1,
    "sys.excepthook = lambda *e: print('hooked', e[0].__name__); 1 / 0": 1,
}
ENDING = """
    import os, sys
    if {torch}:
        import torch

    def chained():
        try:
            deep(3)
        except ZeroDivisionError as error:
            raise ValueError("outer") from error

    def deep(n):
        return deep(n - 1) if n else 1 / 0

    print("out", flush=True)
    {statement}
"""


@pytest.mark.parametrize("statement", ENDS)
def test_exit_code_and_traceback_are_the_scripts(
    statement: str, write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    script = write(ENDING.format(statement=statement, torch="torch" in statement))
    ran = gradclip_run("script.py")
    assert ran.returncode == ENDS[statement]
    expected = python("script.py", cwd=tmp_path)
    if statement != "raise KeyboardInterrupt":  # Python then ends itself by the signal.
        assert ran.returncode == expected.returncode
    assert ran.stdout == expected.stdout
    assert ran.stderr.startswith(expected.stderr)
    ours = ran.stderr.removeprefix(expected.stderr).splitlines()
    assert all(line.startswith("gradclip: ") for line in ours)
    record = read_run(script.parent / "run.jsonl")
    died = "_exit" in statement or "kill" in statement
    assert (record.end is None) == died
    if record.end:
        assert record.end.status.startswith("error: ")


def test_a_syntax_error_is_printed_as_under_python(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    write("def f(:\n    pass\n")
    ran = gradclip_run("script.py")
    assert ran.returncode == 1
    assert ran.stderr.startswith(python("script.py", cwd=tmp_path).stderr)


def test_no_step_is_a_loud_error(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran]
) -> None:
    write("print('trains nothing')")
    ran = gradclip_run("--clip", "norm:1", "script.py")
    assert ran.returncode == 3
    assert ran.stdout == "trains nothing\n"
    assert "ERROR: no step of any torch optimizer was seen" in ran.stderr


def test_a_fork_of_the_script_says_nothing(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    write(
        TRAIN
        + "import os\nchild = os.fork()\nif child: os.waitpid(child, 0)\n"
        + "optimizer.step()\nprint(child == 0)\n"
    )
    ran = gradclip_run("script.py")
    assert sorted(ran.stdout.split()) == ["False", "True"]
    assert ran.stderr.count("steps seen") == 1
    assert len(read_run(tmp_path / "run.jsonl").steps) == 5


def test_too_many_skips_end_the_script_with_its_traceback(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    write(TRAIN.replace("mul(50)", "mul(50 if step < 1 else float('nan'))"))
    ran = gradclip_run("--clip", "norm:1", "--max-skips", 2, "script.py", 9)
    assert ran.returncode == 1
    assert 'script.py", line 9, in <module>\n    optimizer.step()' in ran.stderr
    assert "gradclip.errors.NonFiniteError: 3 steps in a row were skipped (max_skips=2)" in (
        ran.stderr
    )
    assert "weight, bias" in ran.stderr
    assert "runner.py" not in ran.stderr
    assert "session.py" not in ran.stderr
    assert "4 steps seen, 1 clipped, 3 skipped" in ran.stderr
    run = read_run(tmp_path / "run.jsonl")
    assert run.end is not None
    assert run.end.status.startswith("error: NonFiniteError")
    assert run.nonfinite == [(n, ("weight", "bias")) for n in (2, 3, 4)]


def test_a_policy_that_fits_no_parameter_is_one_line(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran]
) -> None:
    write(TRAIN)
    ran = gradclip_run("--clip", "lstm.*=norm:1;*=norm:2", "script.py")
    assert ran.returncode == 2
    assert re.fullmatch(
        r"gradclip: pattern='lstm\.\*' is not usable: .* weight, bias\n", ran.stderr
    )


def test_a_killed_run_leaves_a_readable_record(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    write(TRAIN + "import os; os.kill(os.getpid(), 9)")
    assert gradclip_run("script.py", 160).returncode == -9
    run = read_run(tmp_path / "run.jsonl")
    assert run.end is None
    assert len(run.steps) >= 100  # All but the last batches.


def test_a_sink_gets_the_steps_of_the_record(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX")
    write(TRAIN)
    ran = gradclip_run("--clip", "norm:1", "--sink", "tensorboard:tb", "script.py", 60)
    assert ran.returncode == 0, ran.stderr
    run = read_run(tmp_path / "run.jsonl")
    assert not run.events
    stored = events_in(tmp_path / "tb")
    for name, column in {"grad_norm/pre": "norm", "clip/coef": "coef", "loss": "loss"}.items():
        assert list(stored[name]) == run.steps.tolist() == list(range(1, 61))
        np.testing.assert_allclose(list(stored[name].values()), run.column(column), rtol=1e-6)


def test_the_scripts_own_clipping_is_told(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    own = "torch.nn.utils.clip_grad_norm_(parameters=model.parameters(), max_norm=0.25)"
    write(TRAIN.replace("optimizer.step", own + "; optimizer.step"))
    ran = gradclip_run("script.py")
    assert ran.returncode == 0
    assert "gradclip: note: the script clips by itself: clip_grad_norm_(…, 0.25)\n" in ran.stderr
    (event,) = read_run(tmp_path / "run.jsonl").events
    assert (event.name, event.step) == ("script-clips", 1)
    assert "clip_grad_norm_" in event.text


def test_the_scripts_own_clipping_is_taken_over(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    own = "print(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)))"
    write(TRAIN.replace("optimizer.step", own + "; optimizer.step"))
    ran = gradclip_run("--clip", "norm:0.5", "--take-over", "script.py")
    assert ran.returncode == 0
    assert "note: taken over: clip_grad_norm_(…, 0.25) only measures" in ran.stderr
    run = read_run(tmp_path / "run.jsonl")
    norms = [float(line) for line in ran.stdout.split()]
    np.testing.assert_allclose(run.column("norm"), norms, rtol=1e-6)
    np.testing.assert_allclose(run.column("clipped_norm").max(), 0.5, rtol=1e-6)
    assert [event.name for event in run.events] == ["taken-over"]


def test_taking_over_needs_a_policy(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran]
) -> None:
    write(TRAIN)
    ran = gradclip_run("--take-over", "script.py")
    assert ran.returncode == 2
    assert "--take-over" in ran.stderr
    assert "give --clip too" in ran.stderr


# ---- torchrun

DDP = """
    import os, sys, torch, torch.distributed as dist
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        optimizer.zero_grad()
        model(torch.full((2, 3), 1.0 + rank)).square().mean().mul(50).backward()
        optimizer.step()
    both = [torch.empty(3) for _ in range(2)]
    dist.all_gather(both, model.module.weight.detach()[0])
    sys.stdout.write(f"equal {torch.equal(*both)}\\n")
    sys.stdout.flush()
    dist.destroy_process_group()
    sys.exit(int(sys.argv[1]) if rank == 1 else 0)
"""


@pytest.mark.parametrize("code", [0, 5])
def test_torchrun_makes_one_record(code: int, write: Callable[..., Path], tmp_path: Path) -> None:
    write(DDP)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    ours = ["-m", "gradclip", "run", "--clip", "norm:1", "--record", "run.jsonl"]
    command = [sys.executable, *launch, *ours, "script.py", str(code)]
    ran = processes(command, cwd=tmp_path)
    assert (ran.returncode == 0) == (code == 0), ran.stderr
    assert ran.stdout.count("equal True") == 2
    if code:
        assert re.search(r"exitcode\s*: 5 ", ran.stderr)
        return
    assert ran.stderr.count("6 steps seen, 6 clipped") == 1
    run = read_run(tmp_path / "run.jsonl")
    assert run.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in run.optimizers[0].parameters] == ["weight", "bias"]


# ---- A record that exists, or goes away


def test_a_second_run_has_a_record_of_its_own_unless_the_user_says_otherwise(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    script = write(TRAIN)
    for options, name, steps in (
        ([], "run.jsonl", 2),
        ([], "run.2.jsonl", 2),
        (["--append"], "run.jsonl", 4),
        (["--overwrite"], "run.jsonl", 2),
    ):
        ran = gradclip_run(*options, script, 2)
        assert ran.returncode == 0, ran.stderr
        assert f"record in {name}\n" in ran.stderr
        assert ("run.jsonl exists and stays as it is" in ran.stderr) == (name == "run.2.jsonl")
        assert len(read_run(tmp_path / name).steps) == steps
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["run.2.jsonl", "run.jsonl"]


def test_a_record_that_the_script_deletes_comes_back_and_the_last_line_is_true(
    write: Callable[..., Path], gradclip_run: Callable[..., Ran], tmp_path: Path
) -> None:
    script = write(TRAIN + "import os; os.remove('run.jsonl'); os.chdir('/')\n")
    ran = gradclip_run(script, 3)
    assert ran.returncode == 0, ran.stderr
    assert "run.jsonl was deleted or moved: the record goes on in run.jsonl" in ran.stderr
    assert "record in run.jsonl\n" in ran.stderr
    assert read_run(tmp_path / "run.jsonl").steps.tolist() == [1, 2, 3]
