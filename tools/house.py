"""Measure the structure of a checkout: `python tools/house.py [--tree DIR] [--against DIR] [--json]`.

Reads `kbench/` as text, imports nothing of it, and needs the standard library alone. `--tree` is the checkout to
measure, the one this file lies in unless told; `--against` is an older one to print beside it; `--json` prints every
number with the places behind it. To measure something new, write a function that yields `Measure`s and add it to
`MEASURES`.

What is counted:

- files, lines: `.py` files below `kbench/`, and all lines in them.
- commands: files of `kbench/commands/`; pairs of which one imports the other; modules in the longest chain of such
  imports ("storeys"). A circle counts with all its modules.
- upward imports: pairs of modules of which the lower imports the higher, anywhere in its file. A wing is what stands
  directly in `kbench/`, file or folder. The order of the wings is `TODAY` or `COMING`: the one that has a place for
  more of the wings there are. Wings on one floor (the ground floor of `COMING`) and modules of one wing may
  import each other; allowed exceptions are counted apart. Wings without a place are counted apart too, and their
  imports are not judged.
- circles: groups of modules that reach each other by imports, when loaded or anywhere; groups of folders that do, by
  imports anywhere (a file directly in `kbench/` stands for itself). Imports under `if TYPE_CHECKING:`, names of
  modules in texts, and what `kbench/__init__.py` imports on demand do not count.
- dense branches: each use of `is_dense` and each `isinstance` with a class of the package whose name has the word
  Map, Maps, Mask, Masks or Dense; 35 in the tree of 0.1.0. Above the passes: those in wings above `inference`, and in
  wings without a place.
- other tests of a task: above the passes, comparisons of a `task` with its name or a group of names, cases of
  `match task`, truth tests of a `dense`, and `isinstance` with a class that has a dense sibling (`OutOfFold` beside
  `MapsOutOfFold`). They show whether a branch is gone or only spelled otherwise.
- trio: functions with parameters `setup`, `paths` and `identity`, classes with these fields.
- setting: files in which the name of `--setting` stands as any identifier; and those in which it stands as a field of
  a class, an attribute or a whole text, which leaves out variables and parameters that are only called alike.
- one name: file names, `__init__.py` aside, that more than one folder has.
- dialect: identifiers (names, parameters, attributes, keywords, functions) called `found`, `made` or `given`.
- citations: different ones such as `F-24`; those without a row of a table in `docs/sources.md`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

PACKAGE = "kbench"
PASSES = "inference"
TRIO = frozenset({"setup", "paths", "identity"})
DIALECT = ("found", "made", "given")
LONG = 500
DENSE_WORDS = frozenset({"Map", "Maps", "Mask", "Masks", "Dense"})
CITATION = re.compile(r"\b[FSDB]-\d\d\b")
SPELLING: dict[type[ast.AST], str] = {
    ast.Name: "id", ast.Attribute: "attr", ast.arg: "arg", ast.keyword: "arg", ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name", ast.ClassDef: "name", ast.ExceptHandler: "name", ast.MatchAs: "name",
}  # fmt: skip

Graph = Mapping[str, set[str]]
"""What each module, or each folder, imports."""

Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Layout:
    """The order of the wings, from the top down.

    Attributes:
        name: what the table calls it.
        floors: names of the wings on each floor.
        allowed: pairs of wings of which the lower may import the higher; the package itself is the wing "".
    """

    name: str
    floors: tuple[str, ...]
    allowed: frozenset[tuple[str, str]]

    @cached_property
    def levels(self) -> dict[str, int]:
        """How far down each wing stands; the package itself is below everything."""
        levels = {wing: level for level, wings in enumerate(self.floors) for wing in wings.split()}
        return {**levels, "": len(self.floors)}

    def above(self, wing: str, other: str) -> bool:
        """Return whether one wing stands above another; of wings without a place nothing is known."""
        levels = self.levels
        return wing in levels and other in levels and levels[wing] < levels[other]


TODAY = Layout(
    "today",
    (
        "__main__", "cli", "cli_data", "cli_base", "api", "console", "commands", "report", "orchestrate", "submission",
        "ensemble", "training", "inference", "models", "data", "metrics", "sources", "documents", "merging", "binding",
        "config", "consistency", "registry", "workspace", "yaml12", "files", "machine", "tasks", "errors",
    ),
    frozenset({("commands", "console"), ("orchestrate", "console"), ("", "api")}),
)  # fmt: skip
COMING = Layout(
    "coming",
    (
        "__main__", "cli", "commands", "api", "report", "runs", "pictures", "submission", "training", "ensemble",
        "inference", "models", "drafting", "data", "metrics", "config", "sources",
        "records files processes registry console workspace errors tasks machine",
    ),
    frozenset({("", "api")}),
)  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """One line of the table.

    Attributes:
        key: its name in JSON.
        title: its name in the table.
        number: what was counted.
        places: what is behind the number, one text for each thing counted.
    """

    key: str
    title: str
    number: int
    places: tuple[str, ...] = ()


def counted(key: str, title: str, places: Iterable[str]) -> Measure:
    """Return a measure whose number is that of its places."""
    listed = tuple(places)
    return Measure(key, title, len(listed), listed)


# -- a checkout -------------------------------------------------------------------------------------------------


@dataclass
class Module:
    """A file of the package, read once.

    Attributes:
        name: dotted, that of the folder for `__init__.py`.
        place: path from the checkout, with slashes.
        text: its content.
    """

    name: str
    place: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.place)

    @cached_property
    def nodes(self) -> dict[type[ast.AST], list[ast.AST]]:
        """All nodes of the tree by their kind."""
        kinds = defaultdict(list)
        for node in ast.walk(self.tree):
            kinds[type(node)].append(node)
        return kinds

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a folder."""
        return self.place.endswith("__init__.py")

    @property
    def wing(self) -> str:
        """The part of the house it belongs to; empty for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def folder(self) -> str:
        """The folder it lies in; a file directly in the package stands for itself."""
        return self.name if self.is_package or self.name.count(".") == 1 else self.name.rpartition(".")[0]

    def each(self, kind: type[Node]) -> Iterator[Node]:
        """Yield the nodes of exactly one kind."""
        for node in self.nodes.get(kind, ()):
            assert isinstance(node, kind)
            yield node

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions and methods."""
        return [*self.each(ast.FunctionDef), *self.each(ast.AsyncFunctionDef)]

    @cached_property
    def identifiers(self) -> Counter[str]:
        """How often each name stands in the code; what an import brings in counts by the name it gets."""
        aliases = (item.asname or item.name.rpartition(".")[2] for item in self.each(ast.alias))
        return Counter([*(getattr(node, of) for kind, of in SPELLING.items() for node in self.each(kind)), *aliases])

    def at(self, node: ast.AST) -> str:
        """Return where a node stands and what it says."""
        return f"{self.place}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:90]}"


class House:
    """The package of a checkout."""

    def __init__(self, root: Path) -> None:
        """Read all of `root/kbench`.

        Raises:
            OSError: there is none.
        """
        package = root / PACKAGE
        if not package.is_dir():
            raise FileNotFoundError(f"'{root}' is not a checkout: it has no folder '{PACKAGE}'")
        self.root = root
        modules = [read_module(root, path) for path in sorted(package.rglob("*.py"))]
        self.modules = {module.name: module for module in modules}
        self.wings = {module.wing for module in modules}
        folders = any((package / name).is_dir() for name in ("cli", "config", "runs"))
        likely = (COMING, TODAY) if folders else (TODAY, COMING)
        self.layout = min(likely, key=lambda layout: len(self.wings - set(layout.levels)))

    @cached_property
    def anywhere(self) -> Graph:
        """The imports of each module, also those inside functions."""
        return {name: self._imports(module, loading=False) for name, module in self.modules.items()}

    @cached_property
    def on_load(self) -> Graph:
        """The imports of each module that happen when it is loaded."""
        return {name: self._imports(module, loading=True) for name, module in self.modules.items()}

    @cached_property
    def pairs(self) -> list[tuple[Module, Module]]:
        """Each module with each that it imports, anywhere."""
        return [(self.modules[a], self.modules[b]) for a, others in self.anywhere.items() for b in sorted(others)]

    def above_passes(self) -> Iterator[Module]:
        """Yield the modules above the passes over batches; those of wings without a place among them."""
        for module in self.modules.values():
            if module.wing not in self.layout.levels or self.layout.above(module.wing, PASSES):
                yield module

    def _imports(self, module: Module, *, loading: bool) -> set[str]:
        names: set[str] = set()
        for node, deferred in import_statements(module.tree.body):
            if not (loading and deferred):
                names |= {self._module(name) for name in imported_names(node, module)}
        return names - {"", module.name}

    def _module(self, name: str) -> str:
        """Return the module an imported name is or lies in; nothing when it is not of the package."""
        return next((text for text in (name, name.rpartition(".")[0]) if text in self.modules), "")


def read_module(root: Path, path: Path) -> Module:
    """Read a file of the package."""
    place = path.relative_to(root)
    return Module(
        ".".join(place.with_suffix("").parts).removesuffix(".__init__"), place.as_posix(), path.read_text("utf-8")
    )


# -- imports ----------------------------------------------------------------------------------------------------


def import_statements(
    body: Sequence[ast.AST], *, deferred: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield the imports of a body, and whether they wait for a call; those for type checkers are left out."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, deferred
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from import_statements(node.orelse, deferred=deferred)
        else:
            waits = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for part in ("body", "handlers", "cases", "orelse", "finalbody"):
                inner = getattr(node, part, ())
                if isinstance(inner, list):
                    yield from import_statements(inner, deferred=waits)


def imported_names(node: ast.Import | ast.ImportFrom, module: Module) -> list[str]:
    """Return the dotted names an import statement of a module brings in."""
    if isinstance(node, ast.Import):
        return [item.name for item in node.names]
    start = node.module or ""
    if node.level:
        parts = module.name.split(".")
        above = ".".join(parts[: len(parts) - node.level + module.is_package])
        start = f"{above}.{start}" if start else above
    return [f"{start}.{item.name}" for item in node.names]


def groups(graph: Graph) -> list[list[str]]:
    """Return the groups that reach each other (Tarjan's strongly connected components), what is imported first."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: list[str] = []
    closed: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        open_.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
            if other in open_:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            start = open_.index(name)
            closed.append(sorted(open_[start:]))
            del open_[start:]

    for name in graph:
        if name not in order:
            visit(name)
    return closed


def longest_chain(graph: Graph) -> list[str]:
    """Return the longest chain of imports, the importer first; a group that reaches itself stands in it whole."""
    chains: dict[str, list[str]] = {}
    for group in groups(graph):
        below = {other for name in group for other in graph[name]} - set(group)
        chain = group + max((chains[other] for other in sorted(below)), key=len, default=[])
        chains |= dict.fromkeys(group, chain)
    return max(chains.values(), key=len, default=[])


def without_root(graph: Graph) -> Graph:
    """Return a graph in which the package itself imports nothing: its API is loaded on demand."""
    return {name: set() if name == PACKAGE else others for name, others in graph.items()}


def circles(key: str, title: str, graph: Graph) -> Measure:
    """Count the groups of more than one that import each other."""
    tangled = [group for group in groups(without_root(graph)) if len(group) > 1]
    return counted(key, title, (", ".join(group) for group in tangled))


# -- measures ---------------------------------------------------------------------------------------------------


def size(house: House, setting: str) -> Iterator[Measure]:
    """Measure how large the package is, and its longest files."""
    lengths = {module.place: len(module.text.splitlines()) for module in house.modules.values()}
    yield Measure("files", "files", len(lengths))
    yield Measure("lines", "lines", sum(lengths.values()))
    ranked = sorted(lengths, key=lambda place: -lengths[place])
    longest = [f"{place}: {lengths[place]}" for place in ranked]
    yield Measure("longest_file", "lines of the longest file", max(lengths.values(), default=0), tuple(longest[:5]))
    yield counted("long_files", f"files over {LONG} lines", longest[: sum(lines > LONG for lines in lengths.values())])
    names = Counter(place.rpartition("/")[2] for place in lengths)
    shared = {name for name, times in names.items() if times > 1} - {"__init__.py"}
    yield counted("shared_names", "file names in two folders or more", sorted(shared))


def commands(house: House, setting: str) -> Iterator[Measure]:
    """Measure how the commands lean on each other."""
    inside = {module.name for module in house.modules.values() if module.wing == "commands"}
    graph = {name: house.anywhere[name] & inside for name in sorted(inside)}
    edges = [f"{name} -> {other}" for name in graph for other in sorted(graph[name])]
    yield counted("command_files", "commands: files", (house.modules[name].place for name in graph))
    yield counted("command_imports", "commands: imports of each other", edges)
    yield counted("command_storeys", "commands: storeys", longest_chain(graph))


def order(house: House, setting: str) -> Iterator[Measure]:
    """Measure what imports from above."""
    layout = house.layout
    wrong = [(a, b) for a, b in house.pairs if layout.above(b.wing, a.wing)]
    texts = {(a.name, b.name): f"{a.name} -> {b.name}" for a, b in wrong}
    allowed = [(a.name, b.name) for a, b in wrong if (a.wing, b.wing) in layout.allowed]
    yield counted("upward_imports", "upward imports", (text for pair, text in texts.items() if pair not in allowed))
    yield counted("allowed_upward_imports", "upward imports allowed", (texts[pair] for pair in allowed))
    yield counted("unplaced_wings", "wings without a place in the order", sorted(house.wings - set(layout.levels)))


def rings(house: House, setting: str) -> Iterator[Measure]:
    """Measure what imports itself by way of others."""
    yield circles("circles_on_load", "circles of modules, on load", house.on_load)
    yield circles("circles_anywhere", "circles of modules, in functions too", house.anywhere)
    folders: dict[str, set[str]] = {module.folder: set() for module in house.modules.values()}
    for module, other in house.pairs:
        folders[module.folder] |= {other.folder} - {module.folder}
    yield circles("folder_circles", "circles of folders", folders)


def branches(house: House, setting: str) -> Iterator[Measure]:
    """Measure how often the code asks whether a task has maps."""
    classes = {node.name for module in house.modules.values() for node in module.each(ast.ClassDef)}
    dense = {name for name in classes if DENSE_WORDS & set(words(name))}
    plain = {"".join(word for word in words(name) if word not in DENSE_WORDS) for name in dense} & classes - dense
    above = list(house.above_passes())
    everywhere = [place for module in house.modules.values() for place in dense_branches(module, dense)]
    yield counted("dense_branches", "dense branches", everywhere)
    high = [place for module in above for place in dense_branches(module, dense)]
    yield counted("dense_branches_above", "dense branches above the passes", high)
    other = [place for module in above for place in task_tests(module, plain)]
    yield counted("task_tests_above", "other tests of a task above the passes", other)


def trio(house: House, setting: str) -> Iterator[Measure]:
    """Measure what is handed setup, paths and identity one by one."""
    functions, classes = [], []
    for module in house.modules.values():
        functions += [f"{module.place}: {node.name}" for node in module.functions if parameters(node) >= TRIO]
        classes += [f"{module.place}: {node.name}" for node in module.each(ast.ClassDef) if set(fields(node)) >= TRIO]
    yield counted("trio_functions", "functions given the trio", functions)
    yield counted("trio_classes", "classes holding the trio", classes)


def settings(house: House, setting: str) -> Iterator[Measure]:
    """Measure how many files a setting is spread over."""
    modules = house.modules.values()
    named = [module.place for module in modules if module.identifiers[setting]]
    yield counted("setting_names", f"files with a name '{setting}'", named)
    known = [module.place for module in modules if knows(module, setting)]
    yield counted("setting_files", f"files with a field, attribute or text '{setting}'", known)


def dialect(house: House, setting: str) -> Iterator[Measure]:
    """Measure how often names say nothing but that something was found, made or given."""
    for word in DIALECT:
        times = {module.place: module.identifiers[word] for module in house.modules.values()}
        places = tuple(f"{place}: {number}" for place, number in times.items() if number)
        yield Measure(f"dialect_{word}", f"identifiers '{word}'", sum(times.values()), places)


def citations(house: House, setting: str) -> Iterator[Measure]:
    """Measure what is cited, and whether a reader can look it up."""
    cited = sorted({code for module in house.modules.values() for code in CITATION.findall(module.text)})
    page = house.root / "docs" / "sources.md"
    lines = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
    rows = {code for line in lines if line.lstrip().startswith("|") for code in CITATION.findall(line)}
    yield counted("citations", "sources cited", cited)
    yield Measure("sources_page", "docs/sources.md is there", int(page.is_file()))
    yield counted("citations_unexplained", "sources cited that have no row there", sorted(set(cited) - rows))


MEASURES: tuple[Callable[[House, str], Iterator[Measure]], ...] = (
    size, commands, order, rings, branches, trio, settings, dialect, citations,
)  # fmt: skip
"""Each takes a checkout and the name of a setting."""


# -- what they look for -----------------------------------------------------------------------------------------


def words(name: str) -> list[str]:
    """Return the words of a name in capitals: `MapsOutOfFold` is Maps, Out, Of and Fold."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", name)


def last_name(node: ast.AST) -> str:
    """Return `c` of `a.b.c` or of `c`, nothing of anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Return the names of a function's parameters."""
    arguments = function.args
    return {item.arg for item in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}


def fields(node: ast.ClassDef) -> list[str]:
    """Return the names a class annotates in its body."""
    return [last_name(item.target) for item in node.body if isinstance(item, ast.AnnAssign)]


def knows(module: Module, setting: str) -> bool:
    """Return whether a setting is a field of a class, an attribute or a text of a module."""
    return (
        any(node.attr == setting for node in module.each(ast.Attribute))
        or any(node.value == setting for node in module.each(ast.Constant))
        or any(setting in fields(node) for node in module.each(ast.ClassDef))
    )


def instance_tests(module: Module, classes: set[str]) -> Iterator[ast.Call]:
    """Yield each `isinstance` that names one of some classes, alone or among others."""
    for call in module.each(ast.Call):
        asked = {last_name(node) for item in call.args[1:] for node in ast.walk(item)}
        if last_name(call.func) == "isinstance" and asked & classes:
            yield call


def dense_branches(module: Module, dense: set[str]) -> Iterator[str]:
    """Yield where a module uses `is_dense` or asks for an instance of a dense class."""
    for node in (*module.each(ast.Name), *module.each(ast.Attribute)):
        if last_name(node) == "is_dense":
            yield module.at(node)
    for call in instance_tests(module, dense):
        yield module.at(call)


def task_tests(module: Module, plain: set[str]) -> Iterator[str]:
    """Yield where a module asks for its task in another way: by name, by a flag, or for what is not dense."""
    for compare in module.each(ast.Compare):
        sides = [compare.left, *compare.comparators]
        if any(last_name(side) == "task" for side in sides) and any(says_tasks(side) for side in sides):
            yield module.at(compare)
    for match in module.each(ast.Match):
        if last_name(match.subject) == "task":
            yield from (module.at(case.pattern) for case in match.cases)
    for node in truth_tests(module):
        if last_name(node) == "dense":
            yield module.at(node)
    for call in instance_tests(module, plain):
        yield module.at(call)


def says_tasks(node: ast.AST) -> bool:
    """Return whether an expression is the name of a task, several, or a constant such as SEGMENTATION."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(says_tasks(item) for item in node.elts)
    return last_name(node).isupper() or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def truth_tests(module: Module) -> Iterator[ast.AST]:
    """Yield what stands alone as a condition: of `if` and its like, or beside `and`, `or` and `not`."""
    yield from (node.test for node in module.each(ast.If))
    yield from (node.test for node in module.each(ast.IfExp))
    yield from (node.test for node in module.each(ast.While))
    for loop in module.each(ast.comprehension):
        yield from loop.ifs
    for several in module.each(ast.BoolOp):
        yield from several.values
    for negated in module.each(ast.UnaryOp):
        if isinstance(negated.op, ast.Not):
            yield negated.operand


# -- what is printed --------------------------------------------------------------------------------------------


def measured(house: House, setting: str) -> list[Measure]:
    """Return all measures of a checkout."""
    return [measure for measure_of in MEASURES for measure in measure_of(house, setting)]


def as_json(house: House, measures: list[Measure]) -> dict[str, object]:
    """Return the numbers of a checkout and the places behind them."""
    return {
        "tree": str(house.root),
        "order": house.layout.name,
        "numbers": {measure.key: measure.number for measure in measures},
        "places": {measure.key: list(measure.places) for measure in measures if measure.places},
    }


def table(trees: Mapping[str, tuple[House, list[Measure]]]) -> Iterator[str]:
    """Yield the lines of the table, one column for each checkout."""
    for name, (house, _) in trees.items():
        yield f"{name}: {house.root} (order: {house.layout.name})"
    rows = list(zip(*(measures for _, measures in trees.values()), strict=True))
    width = max(len(row[0].title) for row in rows)
    yield ""
    yield " " * width + "".join(f"{name:>9}" for name in trees)
    for row in rows:
        yield f"{row[0].title:<{width}}" + "".join(f"{measure.number:>9}" for measure in row)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the structure of a checkout.")
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="checkout to measure; this one")
    parser.add_argument("--against", type=Path, help="older checkout to print beside it")
    parser.add_argument("--setting", default="draws", help="setting whose files are counted; draws")
    parser.add_argument("--json", action="store_true", help="print numbers and places as JSON")
    asked = parser.parse_args(argv)
    paths = {"before": asked.against, "after": asked.tree} if asked.against else {"now": asked.tree}
    try:
        houses = {name: House(path) for name, path in paths.items()}
        trees = {name: (house, measured(house, asked.setting)) for name, house in houses.items()}
    except (OSError, SyntaxError) as error:
        parser.error(str(error))
    if asked.json:
        content = {name: as_json(*tree) for name, tree in trees.items()}
        sys.stdout.write(json.dumps(content if asked.against else content["now"], indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(table(trees)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
