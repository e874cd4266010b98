"""What can be counted about the source, counted. Each message says what to do instead."""

import ast
import re
from collections.abc import Callable, Iterator

import grimp
import pytest

from tests.contracts.source import PACKAGE, Source, sources

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "manager", "service", "services"}
HTTP_CLIENTS = (
    "aiohttp", "ftplib", "http.client", "httpcore", "httpx", "pycurl", "requests", "urllib.request", "urllib3", "websockets",
    "xmlrpc.client",
)  # fmt: skip
RESOLVERS = ("aiodns", "dns", "pycares")
CONNECTING = {"create_connection", "open_connection", "open_unix_connection", "sock_connect"}

# Nobody imports these: something outside the package names them.
ENTRY_POINTS = {
    "limner.__main__": "python -m limner",
    "limner.cli.main": "the console script",
    "limner.app": "`limner api` names it to uvicorn",
    "limner.worker": "`limner worker` loads it when it is asked for",
    "limner.db.migrations.env": "Alembic runs it",
    "limner.blocking": "for programs of other people",
}
ENTRY_PATTERNS = {
    r"limner\.db\.migrations\.versions\..*": "Alembic finds revisions by file",
    r"limner\.cli\.\w+": "limner.cli.main loads a command's module when its name is typed",
    r"limner\.media\.images": "the CPU pool's child processes load it by name",
    r"limner\.hub\.providers(\.\w+){1,3}": "adapters and their CPU work are loaded by name, in a child process",
    r"limner\.media\.sandboxed": "a process of its own: media.sandbox starts it by name",
}

# These open an HTTP client by hand.
HTTP_EXEMPT: dict[str, str] = {}

# Sockets that are their libraries' own: where they go is a setting of the operator, and nobody else imports the library.
LIBRARIES_WITH_SOCKETS = {
    "obstore": ("media/store.py", "the object store of LIMNER_STORE_URL"),
    "psycopg_pool": ("db/pools.py", "the database"),
    "smtplib": ("", "nobody sends mail yet"),
}

# An import inside a function hides a dependency from the reader and from the layers.
LATE_IMPORTS: dict[str, str] = {}

FILES = sources()


def a_file_fits_in_a_head(source: Source) -> None:
    lines = source.text.count("\n")

    assert lines <= MAX_FILE_LINES, f"{source.name} has {lines} lines: split it by noun or by verb, never by layer"


def a_function_fits_on_a_page(source: Source) -> None:
    for function in source.functions():
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, (
            f"{source.name}: {function.name} has {length} lines: give its parts names of their own, below it"
        )


def a_module_is_named_for_what_it_holds(source: Source) -> None:
    vague = VAGUE & set(source.module.split("."))

    assert not vague, (
        f"{source.name}: {', '.join(vague)} says nothing: name the noun, or put the function beside its only user"
    )


def only_db_ends_transactions(source: Source) -> None:
    if source.name.startswith("db/"):
        return
    for number, line in enumerate(source.text.splitlines(), start=1):
        assert not re.search(r"\.(commit|rollback)\(", line), (
            f"{source.name}:{number} ends a transaction: take a `tx` and let `tenant_tx` or `system_tx` of limner.db.pools end it"
        )


def only_egress_opens_http_connections(source: Source) -> None:
    if source.name.startswith("egress/") or source.name in HTTP_EXEMPT:
        return
    for line, module in source.imports():
        client = next((c for c in (*HTTP_CLIENTS, *RESOLVERS) if module == c or module.startswith(c + ".")), None)
        assert client is None, (
            f"{source.name}:{line} imports {client}: call through limner.egress, which checks where it goes"
        )


def only_egress_connects_by_hand(source: Source) -> None:
    if source.name.startswith("egress/"):
        return
    for name in CONNECTING:
        for call in _calls(source, name):
            raise AssertionError(
                f"{source.name}:{call.lineno} connects by {name}: call through limner.egress, which checks where it goes"
            )


def a_library_that_opens_sockets_is_used_where_it_is_said(source: Source) -> None:
    for line, module in source.imports():
        where, _ = LIBRARIES_WITH_SOCKETS.get(module.split(".")[0], (source.name, ""))
        assert source.name == where, f"{source.name}:{line} imports {module}, which is {where or 'for nobody'}"


def imports_stand_at_the_top(source: Source) -> None:
    if source.name in LATE_IMPORTS:
        return
    for function in source.functions():
        for node in ast.walk(function):
            assert not isinstance(node, ast.Import | ast.ImportFrom), (
                f"{source.name}:{node.lineno} imports inside {function.name}: move it to the top; if that makes a cycle,"
                " the two files are one noun or the dependency points the wrong way"
            )


def only_the_command_line_prints(source: Source) -> None:
    if source.name.startswith("cli/"):
        return
    for node in source.walk():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input"}, (
                f"{source.name}:{node.lineno} prints: log an event with structlog, or return the text to limner.cli"
            )


def a_packages_front_page_holds_words_not_wiring(source: Source) -> None:
    if source.path.name != "__init__.py":
        return
    code = [
        node for node in source.tree.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    allowed = (
        {"__version__", "HERE", "run_sql"} if source.name in {"__init__.py", "db/migrations/__init__.py"} else set()
    )

    for node in code:
        names = {getattr(node, "name", "")} | {t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)}
        imports = isinstance(node, ast.Import | ast.ImportFrom)
        assert (imports and allowed) or names & allowed, (
            f"{source.name}:{node.lineno}: move code to a noun's file; other domains import modules, not names"
        )
    assert ast.get_docstring(source.tree), (
        f"{source.name} needs a docstring: Owns · Words · Invariants · Leaves to others"
    )


def everything_public_says_what_it_is(source: Source) -> None:
    assert ast.get_docstring(source.tree) or not source.text.strip(), (
        f"{source.name} needs a first line that says what it holds"
    )


RULES = [
    a_file_fits_in_a_head,
    a_function_fits_on_a_page,
    a_module_is_named_for_what_it_holds,
    only_db_ends_transactions,
    only_egress_opens_http_connections,
    only_egress_connects_by_hand,
    a_library_that_opens_sockets_is_used_where_it_is_said,
    imports_stand_at_the_top,
    only_the_command_line_prints,
    a_packages_front_page_holds_words_not_wiring,
    everything_public_says_what_it_is,
]
"""Each asserts what one file keeps."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_each_rule(rule: Callable[[Source], None]) -> None:
    wrong = []
    for source in FILES:
        try:
            rule(source)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n".join(wrong)


def test_no_file_is_left_that_nobody_imports() -> None:
    graph = grimp.build_graph("limner", cache_dir=None)
    packages = {source.module for source in FILES if source.path.name == "__init__.py"}

    orphans = {
        module
        for module in graph.modules - packages
        if not graph.find_modules_that_directly_import(module) and module not in ENTRY_POINTS
        if not any(re.fullmatch(pattern, module) for pattern in ENTRY_PATTERNS)
    }

    assert orphans == set(), "import them, name them an entry point here with a reason, or delete them"


def test_no_import_cycle_not_even_inside_a_domain() -> None:
    graph = grimp.build_graph("limner", cache_dir=None)

    cycles = [
        (module, graph.find_shortest_chain(imported, module))
        for module in sorted(graph.modules)
        for imported in graph.find_modules_directly_imported_by(module)
        if graph.find_shortest_chain(imported, module)
    ]

    assert cycles == [], "turn one of the edges around, or pass the value in"


def test_sql_files_fit_in_a_head_too() -> None:
    for path in PACKAGE.rglob("*.sql"):
        lines = path.read_text().count("\n")
        assert lines <= MAX_FILE_LINES, f"{path.name} has {lines} lines: split it by noun"


def test_a_system_transaction_says_why() -> None:
    """Going around tenant scope needs a visible mark, with a reason for the reader."""
    for source in FILES:
        for call in _calls(source, "system_tx"):
            named = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
            reason: ast.expr | None = next(iter([*call.args[1:], *named]), None)
            assert reason is not None, f"{source.name}:{call.lineno}: say why tenant scope is gone around"
            literal = reason.value if isinstance(reason, ast.Constant) else None
            assert literal is None or len(str(literal)) > 8, f"{source.name}:{call.lineno}: a reason is a sentence"


def test_set_role_is_for_migrations_alone() -> None:
    for source in FILES:
        if not source.name.startswith("db/migrat"):
            assert not re.search(r"SET (LOCAL |SESSION )?(ROLE|SESSION AUTHORIZATION)", source.text), (
                f"{source.name} changes its role: use the pool of the role instead (docs/operate/database.md)"
            )


def _calls(source: Source, name: str) -> Iterator[ast.Call]:
    for node in source.walk():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name:
            yield node


# the counters count: each of them finds what it is there for


@pytest.fixture
def planted(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A file full of what is refused, in a package of its own."""
    folder = tmp_path_factory.mktemp("planted") / "limner"
    (folder / "utils").mkdir(parents=True)
    path = folder / "utils" / "helpers.py"
    body = "\n".join("    x = 1" for _ in range(MAX_FUNCTION_LINES))
    path.write_text(
        f"import httpx, obstore\n\ndef f():\n    import os\n    conn.commit()\n    print(x)\n    socket.create_connection(x)\n{body}\n"
        + "#\n" * MAX_FILE_LINES
    )
    monkeypatch.setattr("tests.contracts.source.PACKAGE", folder)
    monkeypatch.setattr("tests.contracts.source.REPOSITORY", folder.parent)
    return Source(path)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule is not a_packages_front_page_holds_words_not_wiring])
def test_each_rule_would_find_its_defect(planted: Source, rule: Callable[[Source], None]) -> None:
    with pytest.raises(AssertionError):
        rule(planted)
