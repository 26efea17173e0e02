"""What the user types to set up: a workspace, its choice, its cache, this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from kbench.cli.app import Competition, Json, choose, command


@command()
def init(folder: Annotated[str, typer.Argument(help="The new workspace.")] = ".") -> None:
    """Make a folder a workspace."""
    from kbench import console
    from kbench.commands import workspace

    console.wrote(workspace.init(folder))
    console.next_command("kbench demo, or kbench new NAME --data FOLDER")


@command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="A kind of part, such as loss or metric.")] = None,
    competition: Competition = None,
    json: Json = False,
) -> None:
    """List competitions and runs, or the names of a kind of part."""
    from kbench import console
    from kbench.commands import workspace

    result = workspace.listing(kind, choose(competition))
    if json:
        console.show_json(result)
        return
    console.show_table(result["rows"])
    if kind is None:
        console.note(f"kinds of parts: {', '.join(result['kinds'])}")


@command()
def use(name: Annotated[str, typer.Argument(help="A competition.")]) -> None:
    """Choose the current competition."""
    from kbench import console
    from kbench.commands import workspace

    workspace.use(name)
    console.next_command("kbench download, then kbench train")


@command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False, json: Json = False
) -> None:
    """Show the image cache, or clear it."""
    from kbench import console
    from kbench.commands.cache import cache as run_cache

    result = run_cache(clear=clear)
    if json:
        console.show_json(result)
        return
    console.show_table(result["rows"], title=result["folder"])
    if clear:
        console.result(f"freed {result['freed_mb']} MB")


@command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask Kaggle.")] = False, json: Json = False
) -> None:
    """Check the device, the disk and the Kaggle sign-in; show no secret."""
    from kbench import console
    from kbench.commands.doctor import doctor as diagnose

    result = diagnose(online=not offline)
    if json:
        console.show_json(result)
    else:
        for row in result["rows"]:  # no table: what is to be typed must not be cut
            console.result(f"{row['level']}: {row['what']}" + (f"\n  next: {row['todo']}" if row["todo"] else ""))
    if not result["ok"]:
        raise typer.Exit(1)


@command(long=True)
def pack(
    run: Annotated[str | None, typer.Argument(help="The run; default: the current experiment's.")] = None,
    competition: Competition = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="The file; default: RUN.zip here.")] = None,
    json: Json = False,
) -> None:
    """Write a run into one file with its checksums, to go on with elsewhere."""
    from kbench import console
    from kbench.commands.pack import pack as run_pack

    packed = run_pack(choose(competition, None, run), output)
    if json:
        console.show_json(packed)
        return
    console.wrote(packed["file"])
    console.next_command(f"kbench unpack {packed['file']}, in a workspace with the same competition and folds")


@command(long=True)
def unpack(
    file: Annotated[str, typer.Argument(help="What `kbench pack` wrote.")],
    run: Annotated[str | None, typer.Option("--run", help="Another name for the run.")] = None,
    json: Json = False,
) -> None:
    """Bring a run in from one file, and say what keeps it from going on as if it had stayed."""
    from kbench import console
    from kbench.commands.pack import unpack as run_unpack

    unpacked = run_unpack(file, name=run)
    if json:
        console.show_json(unpacked)
        return
    console.wrote(unpacked["folder"])
    console.next_command(f"kbench train -c {unpacked['competition']} --run {unpacked['run']}")
