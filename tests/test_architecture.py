"""The house stands as `docs/` describes it: reading order is import order, and each door is in one place."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

from kbench import registry

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "kbench").rglob("*.py"))
}
ORDER = (
    "__main__", "cli", "commands", "api", "report", "runs", "pictures", "submission", "training", "ensemble",
    "inference", "models", "drafting", "data", "metrics", "config", "sources", "registry", "workspace", "console",
    "records", "files", "processes", "machine", "tasks", "errors",
)  # fmt: skip
GROUND = ORDER[ORDER.index("config") :]
UPWARDS = {  # who may look up, and why
    ("", "api"): "`kbench.open_run`, loaded when it is asked for",
}
LONG = {"kbench.files": "all that writes is one door"}  # files of more than 500 lines, and why they stay whole
HEAVY = ("torch", "torchvision", "sklearn", "pandas", "numpy", "cv2", "timm", "albumentations", "matplotlib", "scipy")


@cache
def tree(module: str) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all below it, except what stands under `if TYPE_CHECKING:`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from walk(child)


def imported(module: str, *, top: bool = False) -> set[str]:
    """Return the modules a module imports, anywhere or only when it is loaded itself."""
    nodes = tree(module).body if top else list(walk(tree(module)))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            names = {f"{node.module}.{item.name}" for item in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


def wing(module: str) -> str:
    """Return the part of the house a module belongs to; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


def level(module: str) -> int:
    """Return how deep a module stands; the package itself is below everything."""
    return ORDER.index(wing(module)) if wing(module) else len(ORDER)


def others(*but: str) -> list[str]:
    """Return all modules but some."""
    return [module for module in MODULES if module not in but]


def constants(module: str) -> Iterator[tuple[str, ast.Constant]]:
    """Yield every text of a module with its place."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, node


def calls(module: str) -> Iterator[tuple[ast.Call, str]]:
    """Yield every call with the text of what is called."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def at(module: str, node: ast.AST) -> str:
    """Return where something stands, for the message."""
    return f"{module}:{getattr(node, 'lineno', '?')}: {ast.unparse(node)[:90]}"


def run(code: str) -> str:
    """Run Python in a process of its own and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- import order -----------------------------------------------------------------------------------------------


def test_every_part_of_the_house_has_its_place() -> None:
    assert {wing(module) for module in MODULES} - {""} == set(ORDER)


def test_a_module_imports_only_from_below() -> None:
    assert [
        f"{module} -> {target}"
        for module in MODULES
        for target in imported(module)
        if target in MODULES and level(target) < level(module) and (wing(module), wing(target)) not in UPWARDS
    ] == []


def test_no_exception_to_the_order_is_left_over() -> None:
    used = {(wing(module), wing(target)) for module in MODULES for target in imported(module) if target in MODULES}
    assert set(UPWARDS) <= used


def test_no_modules_import_each_other_when_they_are_loaded() -> None:
    waiting = {module: imported(module, top=True) & set(MODULES) - {module} for module in MODULES}
    while ready := [module for module, needs in waiting.items() if not needs & set(waiting)]:
        for module in ready:
            del waiting[module]
    assert waiting == {}


def test_the_modules_of_the_registry_exist() -> None:
    assert {module for modules in registry.MODULES.values() for module in modules} <= set(MODULES)


def test_the_page_of_the_house_names_every_floor_and_files_that_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(kbench/[\w/.]+)`", page))
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
    floors = {f"kbench/{name}" + ("/" if (ROOT / "kbench" / name).is_dir() else ".py") for name in ORDER}
    assert floors - named - {"kbench/__main__.py"} == set()


# -- the five doors ---------------------------------------------------------------------------------------------

WRITES = {
    "os.replace", "os.rename", "os.unlink", "os.remove", "os.mkdir", "os.makedirs", "os.rmdir", "os.symlink", "os.link",
    "os.truncate", "os.removedirs", "os.open", "os.chmod", "os.mkfifo",
}  # fmt: skip
WRITERS = (
    "write_text", "write_bytes", "unlink", "mkdir", "rmdir", "touch", "symlink_to", "hardlink_to", "rmtree", "to_csv",
    "to_parquet", "to_pickle", "to_json", "savefig", "imwrite", "save_file", "tofile", "extractall", "open_memmap",
    "copyfile", "copytree", "copy2", "chmod",
)  # fmt: skip


def writes(call: ast.Call, name: str) -> bool:
    """Return whether a call changes the disk."""
    last = name.rpartition(".")[2]
    if name.startswith("files."):
        return False
    if name in WRITES or (name.startswith(("shutil.", "tempfile.")) and last not in ("disk_usage", "which")):
        return True
    if name in ("np.save", "np.savez", "numpy.save", "torch.save", "json.dump", "yaml.dump") and len(call.args) > 1:
        return True
    if last == "to_csv":
        return bool(call.args)
    if last == "rename":
        return len(call.args) == 1
    if last == "open" and not name.startswith("self."):
        modes = [arg.value for arg in [*call.args[:2], *(word.value for word in call.keywords if word.arg == "mode")]
                 if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]  # fmt: skip
        return any(set(mode) & set("wax+") and len(mode) <= 3 for mode in modes)
    return last in WRITERS


def temporaries(module: str) -> Iterator[tuple[ast.With, str]]:
    """Yield every `with files.replacing(...) as name` with the name."""
    for node in ast.walk(tree(module)):
        for item in node.items if isinstance(node, ast.With) else ():
            if ast.unparse(item.context_expr).startswith(("files.replacing", "files.staging_folder")):
                assert isinstance(node, ast.With)
                yield node, ast.unparse(item.optional_vars) if item.optional_vars else ""


def test_only_the_door_of_the_disk_writes() -> None:
    found = []
    for module in others("kbench.files"):
        allowed = {
            id(call)
            for block, name in temporaries(module)
            for call in ast.walk(block)
            if isinstance(call, ast.Call) and name and name in ast.unparse(call)
        }
        found += [at(module, call) for call, name in calls(module) if writes(call, name) and id(call) not in allowed]
    assert found == []


def test_the_test_of_the_door_finds_what_writes() -> None:
    lines = ["open(p, 'w')", "p.open('ab')", "open(p, mode='r+')", "p.write_text('')", "os.replace(a, b)", "p.unlink()",
             "shutil.rmtree(p)", "p.mkdir()", "frame.to_csv(p)", "np.save(p, a)", "p.rename(q)"]  # fmt: skip
    reads = ["open(p)", "open(p, 'rb')", "p.open()", "files.remove(p)", "text.replace('a', 'b')", "frame.to_csv()",
             "frame.rename(columns=x)", "zip.open('w')[:0]"]  # fmt: skip
    found = [ast.walk(ast.parse(line)) for line in lines]
    assert all(any(isinstance(n, ast.Call) and writes(n, ast.unparse(n.func)) for n in nodes) for nodes in found)
    for line in reads[:-1]:
        call = next(n for n in ast.walk(ast.parse(line)) if isinstance(n, ast.Call))
        assert not writes(call, ast.unparse(call.func)), line


def test_only_the_workspace_joins_its_paths() -> None:
    owners = re.compile(r"(?:^|\.)(?:workspace|paths|place|run|fold)(?:\(.*\))?\.(?:root|competitions)$")
    assert [
        at(module, node)
        for module in others("kbench.workspace")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and owners.search(ast.unparse(node.left))
    ] == []


def test_only_the_workspace_names_the_files_of_a_run() -> None:
    file = re.compile(r"\.?[a-z]+\.(json|jsonl|yaml|log)|\.kbench")
    named = {text for text, _ in constants("kbench.workspace") if file.fullmatch(text)}
    assert {"run.json", "config.yaml", "log.jsonl", ".kbench"} <= named
    assert [
        at(module, node) for module in others("kbench.workspace") for text, node in constants(module) if text in named
    ] == []


def test_only_one_module_imports_the_client_of_kaggle() -> None:
    assert [
        f"{module}: {name}"
        for module in others("kbench.sources.kaggle.client")
        for name in imported(module)
        if name.split(".")[0] in ("kaggle", "kagglesdk")
    ] == []


def test_only_one_module_loads_weights() -> None:
    loads = re.compile(r"(^|\.)(torch\.load|load_file|safe_open|load_state_dict_from_url|pickle\.loads?)$|^torch\.hub")
    loaders = ("safetensors", "pickle", "joblib.numpy_pickle")
    for module in others("kbench.models.checkpoint", "kbench.runs.rank_processes"):  # which talks to its own ranks
        assert [at(module, call) for call, name in calls(module) if loads.search(name)] == []
        assert [name for name in imported(module) if name.startswith(loaders)] == []


def test_only_the_console_prints() -> None:
    printed = re.compile(r"^print$|^pprint|sys\.(stdout|stderr)\.(write|buffer)|^typer\.echo$|^warnings\.warn$")
    assert [
        at(module, call) for module in others("kbench.console") for call, name in calls(module) if printed.search(name)
    ] == []


# -- what stays light -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["--help", "list", "list --json", "use digits", "train --help"])
def test_what_only_looks_loads_nothing_heavy(words: str, tmp_path: Path) -> None:
    (tmp_path / "competitions").mkdir()
    (tmp_path / "competitions" / "digits.yaml").write_text("title: x")
    code = f"""
import os, sys, json
os.chdir({str(tmp_path)!r})
sys.argv = ["kbench", *{words.split()!r}]
from kbench.cli.app import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    assert json.loads(run(code).splitlines()[-1]) == []


def test_the_package_itself_loads_nothing_heavy() -> None:
    code = f"import sys, kbench; print([name for name in {(*HEAVY, 'pydantic', 'yaml')!r} if name in sys.modules])"
    assert run(code) == "[]\n"


def test_the_ground_floor_loads_neither_numpy_nor_torch() -> None:
    names = [f"kbench.{name}" for name in GROUND]
    code = f"import sys, {', '.join(names)}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(code) == "[]\n"


def test_torch_is_loaded_only_where_tensors_are() -> None:
    light = {"sources", "metrics", "ensemble", "submission"}
    with_tensors = {"kbench.data.dataset", "kbench.data.seeds", "kbench.data.whole_images"}
    names = [name for name in MODULES if wing(name) in light or (wing(name) == "data" and name not in with_tensors)]
    code = f"import sys, {', '.join(names)}; print([name for name in ('torch', 'timm') if name in sys.modules])"
    assert run(code) == "[]\n"


# -- files ------------------------------------------------------------------------------------------------------


def test_a_file_is_short_enough_to_be_read() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: lines for module, lines in lengths.items() if lines > 500 and module not in LONG} == {}
    assert [module for module in LONG if lengths[module] <= 350] == [], "exceptions that are none any more"


def test_a_module_says_what_it_is_for() -> None:
    first = {module: (ast.get_docstring(tree(module)) or " ").splitlines()[0] for module in MODULES}
    assert [module for module, text in first.items() if not text.endswith((".", ";", ":"))] == []


def test_files_that_are_named_exist() -> None:
    folders = ("kbench", "tests", "benchmarks", "docs", "tools", "competitions")
    names = {f"/{path.relative_to(ROOT).as_posix()}" for folder in folders for path in (ROOT / folder).rglob("*.py")}
    texts = [*MODULES.values(), *ROOT.glob("*.md"), *ROOT.glob("docs/adr/*.md"), *ROOT.glob("benchmarks/*.md")]
    assert [
        f"{path.name}: {name}"
        for path in texts
        if path.name != "CHANGELOG.md"  # tells of files that were
        for name in re.findall(r"`([\w./]+\.py)`", path.read_text(encoding="utf-8"))
        if not any(known.endswith(f"/{name.removeprefix('./')}") for known in names)
    ] == []


def tracked() -> list[Path]:
    """Return the text files of the repository."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".npy", ".zip", ".gz", ".ipynb")]


def test_no_file_holds_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.~$}/-])/(?:home|Users|root|work|mnt|scratch)/[A-Za-z]")
    found = [path.name for path in tracked() if machine.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []


def test_no_file_holds_the_address_of_a_package_index() -> None:
    index = re.compile(
        "|".join(["py" + "pi.org", "files.python" + "hosted", "index" + "-url", "/simple" + "/", "find" + "-links"])
    )
    found = [path.name for path in tracked() if index.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert found == []
