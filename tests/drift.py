"""Find every call into the libraries we depend on, and bind its arguments to the signatures that are installed.

The sources are read, not run: imports (also late ones), constructors, class methods, and methods of objects whose class
is known from a constructor, an annotation or a function's return type. `**options` is followed to the dictionary it was
built from, and through our own functions that pass their `**settings` on. What cannot be decided is reported as well,
so that it is either listed by name with its reason (`test_drift.py`) or fails.

    python tests/drift.py          list every call that was found, with what it was bound to
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import resolve_name
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from signatures import FORWARD_NAMES, LIBRARIES, UnreadableError, bind, duck_targets, known_result, look_up, member  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Symbol:
    """Something importable, by its dotted path: a module, class or function, ours or a library's."""

    path: str
    own: frozenset[str] = frozenset()  # members that a class of ours adds to the library's class at `path`


@dataclass(frozen=True)
class Instance:
    """An object of the class with this dotted path."""

    path: str
    own: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Group:
    """A tuple of values, as a function returns it."""

    values: tuple


@dataclass
class Keywords:
    """A dictionary that may become `**keywords`: its known keys, and the parameter it continues, if any."""

    names: set[str] = field(default_factory=set)
    rest: str | None = None


@dataclass(frozen=True)
class Call:
    """One call as written: where, into what, with what."""

    file: str
    line: int
    text: str  # the callee as written, such as `AutoTokenizer.from_pretrained`
    target: str  # its dotted path
    positional: int  # −1 where a `*list` hides the number
    names: tuple[str, ...]
    hidden: bool = False  # a `**mapping` whose keys cannot be read
    whole: bool = True  # no further arguments are passed on from a caller

    def problem(self) -> str | None:
        """Return why the call cannot work with what is installed, None where it can."""
        return bind(self.target, self.positional, self.names, self.whole and not self.hidden)


def sources(root: Path = ROOT) -> dict[str, str]:
    """Return `file → program text`: package, benchmarks, tests, and the code cells of all notebooks."""
    found = {}
    for folder in ("problama_utils", "benchmarks", "tools", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
            found[path.relative_to(root).as_posix()] = re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", code)
    return found


class Reader:
    """Reads all sources: `calls` is what was found, `broken` what could not be imported or decided."""

    def __init__(self, texts: dict[str, str], only: str | None = None):
        """Read all texts, or `only` one of them and what it takes to follow its calls."""
        self.texts, self.trees = texts, {}
        self.modules = {_module(name): name for name in texts if name.endswith(".py")}
        self.calls: list[Call] = []
        self.broken: list[tuple[str, str, str]] = []  # file, what, why
        self.passed_on: dict[str, list[str]] = {}  # our function → the callees its **parameter ends up in
        self.scopes: dict[str, dict] = {}
        known = -1
        while known < len(self.passed_on):  # again, once more is known about what passes its **settings on
            known = len(self.passed_on)
            self.calls, self.broken, self.scopes = [], [], {}
            for name in [only] if only else texts:
                self.scope_of(name)

    def tree(self, file: str) -> ast.Module:
        if file not in self.trees:
            self.trees[file] = ast.parse(self.texts[file], file)
        return self.trees[file]

    def scope_of(self, file: str) -> dict:
        if file not in self.scopes:
            self.scopes[file] = {}
            _File(self, file, self.scopes[file]).run()
        return self.scopes[file]

    def origin(self, path: str) -> str:
        """Return where a name that a face of the package offers is defined; any other path is returned as it is."""
        face, _, name = path.rpartition(".")
        file = f"{face.replace('.', '/')}/__init__.py"
        for node in ast.walk(self.tree(file)) if file in self.texts else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "face":
                for module, names in ast.literal_eval(node.args[1]).items():
                    if name in names.split():
                        return f"{resolve_name(f'.{module}', face)}.{name}"
        return path

    def definition(self, path: str) -> tuple[ast.AST, dict] | None:
        """Return one of our own functions or classes, with the scope of its module."""
        module, _, name = path.rpartition(".")
        file = self.modules.get(module) or (module if module in self.texts else None)
        if not file:
            return None
        for node in self.tree(file).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
                return node, self.scope_of(file)
        return None


class _File:
    """Walks one file in the order in which it runs: the module's statements, then the bodies of its functions."""

    def __init__(self, reader: Reader, file: str, scope: dict):
        self.reader, self.file, self.scope, self.later = reader, file, scope, []

    def run(self) -> None:
        self.block(self.reader.tree(self.file).body, self.scope)
        while self.later:
            node, scope, owner = self.later.pop(0)
            self.function(node, dict(scope), owner)

    def block(self, body: list[ast.stmt], scope: dict) -> None:
        for statement in body:
            self.statement(statement, scope)

    def statement(self, node: ast.stmt, scope: dict) -> None:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imports(node, scope)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scope[node.name] = Symbol(f"{_module(self.file)}.{node.name}")
            self.later.append((node, scope, None))
        elif isinstance(node, ast.ClassDef):
            self.class_(node, scope)
        else:
            self.expressions(node, scope)
            self.bindings(node, scope)
            for inner in ("body", "orelse", "finalbody"):
                self.block(getattr(node, inner, []), scope)
            for handler in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
                self.block(handler.body, scope)

    def class_(self, node: ast.ClassDef, scope: dict) -> None:
        bases = [self.value(base, scope) for base in node.bases]
        above = next((b for b in bases if isinstance(b, Symbol) and _library(b.path)), None)
        base = above.path if above else None
        scope[node.name] = Symbol(f"{_module(self.file)}.{node.name}")
        if above:
            scope[node.name] = Symbol(above.path, above.own | _members(node))
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef):
                if base and inner.name.startswith("on_"):  # a hook that no one calls any more would fall silent
                    self.found(inner, f"{node.name}.{inner.name}", f"{base}.{inner.name}", -1, [])
                self.later.append((inner, scope, scope[node.name] if base else None))
            elif not isinstance(inner, ast.ClassDef):
                self.statement(inner, scope)

    def imports(self, node: ast.Import | ast.ImportFrom, scope: dict) -> None:
        for alias in node.names:
            whole = alias.name if isinstance(node, ast.Import) else self.reader.origin(f"{node.module}.{alias.name}")
            bound = alias.name if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]
            top = isinstance(node, ast.Import) and not alias.asname  # `import a.b` binds a
            scope[alias.asname or bound] = Symbol(bound if top else whole)
            if _library(whole):
                try:
                    look_up(whole)
                except UnreadableError as error:
                    self.reader.broken.append((self.file, whole, f"line {node.lineno}: {error}"))

    def function(self, node: ast.FunctionDef, scope: dict, owner: Symbol | None) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in [*arguments, *filter(None, [node.args.vararg])]:
            scope[argument.arg] = self.annotated(argument.annotation, scope)
        if owner and arguments and arguments[0].arg == "self":
            scope["self"] = Instance(owner.path, owner.own)
        if node.args.kwarg:
            scope[node.args.kwarg.arg] = Keywords(rest=f"{_module(self.file)}.{node.name}")
        self.block(node.body, scope)

    def bindings(self, node: ast.stmt, scope: dict) -> None:
        """Follow `a = …`, `a: T = …`, `a["key"] = …`, `with … as a`; a name bound otherwise is unknown from here on."""
        pairs: list[tuple[ast.expr, object]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, self.value(node.value, scope)) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            value = self.value(node.value, scope) if node.value else None
            pairs = [(node.target, value or self.annotated(node.annotation, scope))]
        elif isinstance(node, ast.With):
            pairs = [(item.optional_vars, self.value(item.context_expr, scope)) for item in node.items
                     if item.optional_vars]
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            pairs = [(node.target, None)]
        for target, value in pairs:
            self.bind_name(target, value, scope)

    def bind_name(self, target: ast.expr, value: object, scope: dict) -> None:
        if isinstance(target, ast.Name):
            scope[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            values = value.values if isinstance(value, Group) else ()
            for i, inner in enumerate(target.elts):
                self.bind_name(inner, values[i] if i < len(values) else None, scope)
        elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            known = self.value(target.value, scope)
            if isinstance(known, Keywords):
                known.names.add(str(target.slice.value))

    def annotated(self, node: ast.expr | None, scope: dict) -> object:
        """Return the value that an annotation promises: `Dataset`, `type[X]`, `tuple[A, B]`, `X | None`, "X"."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotated(ast.parse(node.value, mode="eval").body, scope)
        if isinstance(node, ast.BinOp):
            return self.annotated(node.left, scope) or self.annotated(node.right, scope)
        if isinstance(node, ast.Subscript):
            outer, inner = ast.unparse(node.value), node.slice
            if outer == "type":
                found = self.annotated(inner, scope)
                return Symbol(found.path, found.own) if isinstance(found, Instance) else None
            if outer == "tuple" and isinstance(inner, ast.Tuple):
                return Group(tuple(self.annotated(item, scope) for item in inner.elts))
            return None
        value = self.value(node, scope) if node is not None else None
        return Instance(value.path, value.own) if isinstance(value, Symbol) else None

    def value(self, node: ast.expr | None, scope: dict) -> object:
        """Return what an expression is known to be; None = unknown."""
        if isinstance(node, ast.Name):
            return self.derived(scope.get(node.id))
        if isinstance(node, ast.Attribute):
            base = self.value(node.value, scope)
            if isinstance(base, Instance) and _library(base.path):
                kind, path = member(base.path, node.attr)
                # a property or a submodule: what it holds is not known
                return Symbol(f"{path}.{node.attr}") if kind == "method" and node.attr not in base.own else None
            return Symbol(f"{base.path}.{node.attr}") if isinstance(base, (Symbol, Instance)) else None
        if isinstance(node, ast.Call):
            return self.result(node, scope)
        if isinstance(node, ast.Dict):
            return self.dictionary(node, scope)
        if isinstance(node, ast.Tuple):
            return Group(tuple(self.value(item, scope) for item in node.elts))
        if isinstance(node, ast.BoolOp):
            return next(filter(None, (self.value(item, scope) for item in node.values)), None)
        if isinstance(node, ast.IfExp):
            return self.value(node.body, scope) or self.value(node.orelse, scope)
        return None

    def derived(self, value: object) -> object:
        """Return a class of ours that extends a library's as that library's, with what ours adds."""
        own = self.reader.definition(value.path) if isinstance(value, Symbol) and not _library(value.path) else None
        if own and isinstance(own[0], ast.ClassDef):
            return own[1].get(own[0].name, value)
        return value

    def dictionary(self, node: ast.Dict, scope: dict) -> Keywords | None:
        keywords = Keywords()
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                inner = self.value(value, scope)
                if not isinstance(inner, Keywords):
                    return None
                keywords.names |= inner.names
                keywords.rest = keywords.rest or inner.rest
            elif isinstance(key, ast.Constant):
                keywords.names.add(str(key.value))
            else:
                return None
        return keywords

    def result(self, node: ast.Call, scope: dict) -> object:
        text = ast.unparse(node.func)
        first = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if text in ("pytest.importorskip", "__import__") and isinstance(first, str):
            return Symbol(first)
        if text == "super":
            here = scope.get("self")
            return Instance(here.path) if isinstance(here, Instance) else None
        if text == "dict" and not node.args:
            return self.dictionary(ast.Dict([k.arg and ast.Constant(k.arg) for k in node.keywords],
                                            [k.value for k in node.keywords]), scope)
        callee = self.value(node.func, scope)
        if not isinstance(callee, Symbol):
            return None
        if _library(callee.path):
            found = known_result(callee.path)
            return Instance(found, callee.own) if found else None
        own = self.reader.definition(callee.path)
        if own and isinstance(own[0], ast.FunctionDef):
            return self.annotated(own[0].returns, own[1])
        return Instance(callee.path) if own else None

    def expressions(self, node: ast.stmt, scope: dict) -> None:
        """Report the calls in a statement's own expressions (its inner blocks come later, in order)."""
        for part in _own_expressions(node):
            for call in [inner for inner in ast.walk(part) if isinstance(inner, ast.Call)]:
                self.call(call, scope)

    def call(self, node: ast.Call, scope: dict) -> None:
        text, callee = ast.unparse(node.func), self.value(node.func, scope)
        explicit = [keyword.arg for keyword in node.keywords if keyword.arg]
        if isinstance(callee, Symbol) and _library(callee.path):
            self.found(node, text, callee.path, _positional(node), *self.keywords(node, scope, callee.path))
        elif isinstance(callee, Instance) and _library(callee.path):
            called = f"{callee.path}.__call__"
            self.found(node, text, called, _positional(node), *self.keywords(node, scope, called))
        elif isinstance(callee, Symbol) and callee.path in self.reader.passed_on:
            own = self.reader.definition(callee.path)[0].args
            ours = {argument.arg for argument in [*own.posonlyargs, *own.args, *own.kwonlyargs]}
            for target in self.reader.passed_on[callee.path]:
                self.found(node, text, target, -1, *self.keywords(node, scope, target, ours))
        elif callee is None and self.missing(node, scope):
            self.reader.broken.append((self.file, text, f"line {node.lineno}: {self.missing(node, scope)}"))
        elif callee is None:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            targets = duck_targets(name)
            if not targets and FORWARD_NAMES & set(explicit):
                targets = ("transformers.LlamaForCausalLM.forward",)
            if targets:
                names, hidden, whole = self.keywords(node, scope, targets[0])
                fits = [target for target in targets if not bind(target, _positional(node), tuple(names), whole)]
                self.found(node, text, (fits or targets)[0], _positional(node), names, hidden, whole)

    def missing(self, node: ast.Call, scope: dict) -> str | None:
        """Say which class lacks the method that is called, where the class is known."""
        owner = self.value(node.func.value, scope) if isinstance(node.func, ast.Attribute) else None
        if not isinstance(owner, Instance) or not _library(owner.path) or node.func.attr in owner.own:
            return None
        if member(owner.path, node.func.attr)[0] == "missing":
            return f"{owner.path} has no {node.func.attr!r}"
        return None

    def keywords(self, node: ast.Call, scope: dict, target: str, ours: set[str] = frozenset()
                 ) -> tuple[list[str], bool, bool]:
        """Return the keyword names that reach `target`, whether a `**mapping` hides more, and whether that is all."""
        names, hidden, whole = [], False, True
        for keyword in node.keywords:
            if keyword.arg:
                names.append(keyword.arg)
                continue
            known = self.value(keyword.value, scope)
            if not isinstance(known, Keywords):
                hidden = True
                continue
            names += sorted(known.names)
            if known.rest:
                whole = False
                targets = self.reader.passed_on.setdefault(known.rest, [])
                targets.extend([target] if target not in targets else [])
        return [name for name in names if name not in ours], hidden, whole

    def found(self, node, text: str, target: str, positional: int, names: list[str], hidden: bool = False,
              whole: bool = True) -> None:
        call = Call(self.file, node.lineno, text, target, positional, tuple(names), hidden, whole)
        self.reader.calls.append(call)


def _members(node: ast.ClassDef) -> frozenset[str]:
    """Return what a class body defines: its functions, its fields, and what is assigned to `self`."""
    names = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
            names.add(inner.attr)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store) and inner in _class_level(node):
            names.add(inner.id)
    return frozenset(names)


def _class_level(node: ast.ClassDef) -> list[ast.expr]:
    assigned = [inner for inner in node.body if isinstance(inner, (ast.Assign, ast.AnnAssign))]
    return [target for inner in assigned for target in getattr(inner, "targets", None) or [inner.target]]


def _module(file: str) -> str:
    """Return the dotted name a file is imported by (tests import each other by their bare names)."""
    if not file.endswith(".py"):
        return file
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".").removeprefix("tests.")


def _library(path: str) -> bool:
    return path.split(".")[0] in LIBRARIES


def _positional(node: ast.Call) -> int:
    return -1 if any(isinstance(argument, ast.Starred) for argument in node.args) else len(node.args)


def _own_expressions(node: ast.stmt) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name not in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, ast.AST))


def main() -> None:
    """Print every call with what became of it."""
    reader = Reader(sources())
    for call in reader.calls:
        print(f"{call.file}:{call.line}  {call.text}({', '.join(call.names)})  ->  {call.target}"
              f"{'  **?' if call.hidden else ''}  {call.problem() or 'ok'}")
    for file, what, why in reader.broken:
        print(f"{file}  {what}: {why}")


if __name__ == "__main__":
    main()
