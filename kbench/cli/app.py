"""What every command of the command line shares: the application, its options, its ends.

A command's function stands in the file of its part of the job: `workspace`, `data`, `training`, `predicting`,
`submitting`. Each imports its module of `commands/` inside the function, so that `--help` stays quick.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from kbench.errors import KbenchError
from kbench.machine import wait_asleep

if TYPE_CHECKING:
    from kbench.workspace import Choice

CODES = {
    0: "done",
    1: "an error, in three parts: what was wrong, what was expected, what to type next",
    2: "no such command or option",
    3: "it is not known whether a submission counted",
    4: "some folds failed",
    5: "stopped in time (--time-limit, SIGTERM, SIGUSR1); the same command goes on",
    6: "a fold is another worker's",
    130: "interrupted; the same command goes on",
}

app = typer.Typer(
    name="kbench",
    help="The workbench for image competitions: download, folds, train, ensemble, submit.",
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {what}" for code, what in CODES.items()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Competition = Annotated[str | None, typer.Option("-c", "--competition", help="Competition; default: the chosen one.")]
Experiment = Annotated[str | None, typer.Option("-e", "--experiment", help="Experiment; default: the baseline.")]
Run = Annotated[str | None, typer.Option("--run", help="Run; default: <experiment>-s<seed>.")]
Assign = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE: one value of the YAML, for this run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Do again what is done.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Folds at once.")]
Devices = Annotated[int, typer.Option("--devices", min=1, help="GPUs, or with --device cpu processes, for each fold.")]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        envvar="KBENCH_CLUSTER",
        show_envvar=True,
        help="dask://HOST:PORT or ray://HOST:PORT: its workers train the folds; they share this folder.",
    ),
]
TimeLimit = Annotated[
    str | None,
    typer.Option(
        "--time-limit",
        envvar="KBENCH_TIME_LIMIT",
        show_envvar=True,
        help="Such as 11h: stop in time, at a resume point; the same command goes on.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads of a fold; default: all there are.")]
Progress = Annotated[
    str,
    typer.Option(
        "--progress", envvar="KBENCH_PROGRESS", help="bar, or jsonl: stderr is one JSON object a line, for programs."
    ),
]
_Command = TypeVar("_Command", bound=Callable[..., None])
_debug = False


def _show_version(asked: bool) -> None:
    if asked:
        from kbench import __version__, console

        console.result(f"kbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Set what holds for every command."""
    global _debug
    _debug = debug or bool(os.environ.get("KBENCH_DEBUG"))


def main() -> None:
    """Run the command line; turn every error into a message and an exit code."""
    try:
        app()
    except KbenchError as error:
        _fail(error)
    except KeyboardInterrupt:
        from kbench import console

        console.note("stopped; the same command goes on from the last resume point")
        sys.exit(130)


def script() -> None:
    """Be the program `kbench`: `main`, then an end at once.

    Where PyTorch is loaded, taking the interpreter apart lasts two seconds and changes nothing: what has to be done
    at an exit is done and what was printed is flushed before.
    """
    wait_asleep()  # before PyTorch is loaded
    code: str | int | None = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # else nobody reads on
            os.write(
                2,
                f"error: what was printed cannot be written: {error.strerror}\n"
                "  expected: room where the output goes\n  next: free some space, then run this again\n".encode(),
            )
        os._exit(1)
    if "torch" not in sys.modules or isinstance(code, str):
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stderr.flush()
    os._exit(code or 0)


def _fail(error: KbenchError) -> None:
    if _debug:
        raise error
    from kbench import console

    console.show_error(error)
    sys.exit(error.exit_code)


def command(name: str | None = None, *, long: bool = False) -> Callable[[_Command], _Command]:
    """Register a command whose interruptions and defects end in a message; a long one has `--progress`."""

    def add(function: _Command) -> _Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                if long:
                    _show_progress(kwargs.pop("progress"))
                function(*args, **kwargs)
            except KeyboardInterrupt as stop:
                from kbench import console

                again = f"stopped; `{' '.join(['kbench', *sys.argv[1:]])}` goes on from the last resume point"
                console.note(str(stop) or again)
                sys.exit(getattr(stop, "exit_code", 130))
            except (KbenchError, typer.Exit):
                raise
            except BrokenPipeError:  # `kbench list | head`: nobody reads on
                os._exit(1)  # without the flush that would complain again
            except Exception as error:  # whatever it is, the user is told in three parts
                if _debug:
                    raise
                raise KbenchError(
                    f"a defect of kbench: {type(error).__name__}: {error}",
                    "no such error; your files are as they were before the command",
                    "`kbench --debug` before the same command shows where; please report it",
                ) from error

        if long:
            signature = inspect.signature(function, eval_str=True)
            option = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default="bar", annotation=Progress)
            vars(guarded)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
            guarded.__annotations__ = {**function.__annotations__, "progress": Progress}
        app.command(name)(guarded)
        return function

    return add


def _show_progress(how: str) -> None:
    from kbench import console

    if how not in ("bar", "jsonl"):
        from kbench.errors import ConfigError

        raise ConfigError(f"--progress '{how}' is no way of telling", "bar or jsonl", "`--progress jsonl`")
    console.tell_in_lines(how == "jsonl")


def refuse_together(options: Mapping[str, object]) -> None:
    """Refuse options that exclude each other.

    Raises:
        ConfigError: more than one is given.
    """
    if sum(map(bool, options.values())) > 1:
        from kbench.errors import ConfigError

        raise ConfigError(f"{' with '.join(options)}", "one of the two", "remove one of them")


def next_of(run: str, choice: Choice, *, full: bool = False) -> str:
    """Return what to type after a run was trained, so that it is this run that is sent."""
    where = f" -c {choice.competition}" if choice.competition else ""
    own = f" {run}" if choice.experiment or choice.run or choice.assignments else ""
    return f"kbench ensemble{own}{where}{' --full' if full else ''} && kbench submit{where}"


def choose(
    competition: str | None,
    experiment: str | None = None,
    run: str | None = None,
    assign: list[str] | None = None,
) -> Choice:
    """Return what the common options chose."""
    from kbench.workspace import Choice

    return Choice(competition, experiment, run, tuple(assign or ()))
