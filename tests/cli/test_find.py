"""`-A`: which app is found, and what is said when none is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskline.cli.find import find
from taskline.errors import ConfigurationError
from taskline.loading import AppNotFound, BrokenModule, find_app

APP = "from taskline import Taskline\napp = Taskline('shop', broker='memory://')\n"

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into a working directory of its own; what is imported there is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", ".")])
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        places = (getattr(module, "__file__", ""), getattr(module, "__path__", ""))
        if str(tmp_path) in str(places):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "target", "path"),
    [
        ("proj.py", "proj", "proj:app"),
        ("proj.py", "proj:app", "proj:app"),
        ("proj.py", "proj.app", "proj:app"),
        ("proj/__init__.py", "proj", "proj:app"),
        ("proj/app.py", "proj", "proj.app:app"),
        ("proj/app.py", "proj.app", "proj.app:app"),
        ("proj/app.py", "proj.app.app", "proj.app:app"),
        ("proj/tasks.py", "proj", "proj.tasks:app"),
        ("proj/celery.py", "proj", "proj.celery:app"),
        ("proj/taskline.py", "proj", "proj.taskline:app"),
        ("proj/worker.py", "proj", "proj.worker:app"),
        ("proj/deep/down.py", "proj.deep.down:app", "proj.deep.down:app"),
    ],
)
def test_an_app_is_found_where_people_put_it(
    write: Write, file: str, target: str, path: str
) -> None:
    write(file, APP)
    app, found = find(target)
    assert (app.name, found) == ("shop", path)


def test_the_only_app_is_found_under_any_name(write: Write) -> None:
    write("proj.py", APP.replace("app =", "mine ="))
    assert find("proj")[1] == "proj:mine"


def test_one_app_under_two_names_is_one_app(write: Write) -> None:
    write("proj.py", APP.replace("app =", "celery = application ="))
    assert find("proj")[1] == "proj:celery"


def test_app_is_preferred_among_several(write: Write) -> None:
    write("proj.py", APP + "other = Taskline('other', broker='memory://')\n")
    assert find("proj")[0].name == "shop"


def test_an_attribute_of_an_object_can_be_named(write: Write) -> None:
    write("proj.py", APP + "class Site: tasks = app\ndel app\n")
    assert find("proj:Site.tasks")[1] == "proj:Site.tasks"


def test_the_modules_in_include_are_imported(write: Write) -> None:
    write("proj/app.py", APP.replace("'memory://'", "'memory://', include=['proj.more']"))
    write("proj/more.py", "from proj.app import app\n@app.task\ndef add(a, b): return a + b\n")
    assert "proj.more.add" in find("proj")[0].tasks


def test_a_spawned_worker_finds_the_app_by_the_path_that_find_gave(write: Write) -> None:
    write("proj/app.py", APP.replace("'memory://'", "'memory://', include=['proj.more']"))
    write("proj/more.py", "from proj.app import app\n@app.task\ndef add(a, b): return a + b\n")
    assert "proj.more.add" in find_app("proj.app:app").tasks


def test_what_the_module_prints_stays_out_of_standard_output(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("proj.py", "print('hello')\n" + APP)
    find("proj")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("prj", "no module 'prj' in {cwd} or on Python's path; did you mean proj?"),
        ("prj:app", "did you mean proj?"),
        ("prj.tasks:app", "did you mean proj.tasks?"),
        ("proj.taks", "no module 'taks' in proj (proj/__init__.py); did you mean proj.tasks?"),
        ("proj.tasks.more", "no module 'more' in proj.tasks (proj/tasks.py)"),
        ("proj", "no Taskline app in proj (proj/__init__.py), proj.tasks (proj/tasks.py)"),
        ("proj.tasks", "no Taskline app in proj.tasks (proj/tasks.py): name it"),
        ("proj.tasks:app", "there is no 'app' in proj.tasks (proj/tasks.py)"),
        ("proj.tasks:nubmer", "did you mean number?"),
        ("proj.tasks:number", "proj.tasks:number is of type builtins.int, not a Taskline app"),
        ("proj.tasks:Thing", "proj.tasks:Thing is the class Thing, not a Taskline app"),
        ("proj:tasks", "proj:tasks is a module, not a Taskline app"),
        ("proj/tasks.py", "-A takes a module, not a file: try -A proj.tasks instead of"),
        ("./proj/tasks.py", "try -A proj.tasks instead of"),
        ("proj.py", "try -A proj instead of"),
        ("proj/tasks", "try -A proj.tasks instead of"),
        ("proj tasks", "-A 'proj tasks' is not a module's name"),
        ("", "-A '' is not a module's name"),
        (":app", "-A ':app' is not a module's name"),
        ("proj:", "-A 'proj:' names nothing after the colon"),
        ("proj..tasks", "is not a module's name"),
        ("json", "no Taskline app in json (" + os.path.dirname(os.__file__)),
    ],
)
def test_what_is_not_found_is_said_in_one_line(
    write: Write, tmp_path: Path, target: str, said: str
) -> None:
    write("proj/__init__.py", "import proj.tasks as tasks\n")
    write("proj/tasks.py", "number = 1\nclass Thing: pass\n")
    with pytest.raises(AppNotFound) as caught:
        find(target)
    assert said.format(cwd=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_apps_are_named(write: Write) -> None:
    write("proj.py", (APP + APP.replace("app =", "more =")).replace("app =", "first ="))
    with pytest.raises(AppNotFound, match=r"several apps in proj.*of proj:first, proj:more"):
        find("proj")


def test_a_mistake_in_the_users_module_shows_only_their_frames(write: Write) -> None:
    write("proj/__init__.py", "")
    write("proj/app.py", "from proj import helper\n" + APP)
    write("proj/helper.py", "def work():\n    return 1 / 0\n\nwork()\n")
    with pytest.raises(BrokenModule) as caught:
        find("proj")
    assert str(caught.value) == "importing proj.app failed: ZeroDivisionError: division by zero"
    lines = [line.strip() for line in caught.value.trace.splitlines()]
    files = [line.split('"')[1].rpartition("/")[2] for line in lines if line.startswith("File")]
    assert files == ["app.py", "helper.py", "helper.py"]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_the_cause_of_a_mistake_is_trimmed_too(write: Write) -> None:
    write(
        "proj.py",
        "try:\n    import no_such_package\nexcept ImportError as error:\n"
        "    raise RuntimeError('install it') from error\n",
    )
    with pytest.raises(BrokenModule) as caught:
        find("proj")
    assert "No module named 'no_such_package'" in caught.value.trace
    assert "importlib" not in caught.value.trace


def test_a_module_that_the_users_module_misses_is_their_mistake(write: Write) -> None:
    write("proj.py", "import no_such_package\n" + APP)
    with pytest.raises(BrokenModule, match="No module named 'no_such_package'") as caught:
        find("proj")
    assert "proj.py" in caught.value.trace


def test_a_syntax_error_is_shown_with_its_place(write: Write) -> None:
    write("proj.py", "x = = 1\n")
    with pytest.raises(BrokenModule, match="importing proj failed: SyntaxError") as caught:
        find("proj")
    assert "x = = 1" in caught.value.trace


def test_a_script_that_exits_is_told_of(write: Write) -> None:
    write("proj.py", "import sys\nsys.exit(3)\n")
    with pytest.raises(BrokenModule, match=r"ended the program \(exit code 3\): put what it runs"):
        find("proj")


def test_a_wrong_setting_in_the_users_module_is_said_with_its_place(write: Write) -> None:
    write("proj.py", APP.replace("broker", "brokre"))
    with pytest.raises(ConfigurationError, match=r"brokre.*\(proj.py, line 2\)"):
        find("proj")


def test_a_module_that_include_names_and_is_not_there(write: Write) -> None:
    write("proj.py", APP.replace("'memory://'", "'memory://', include=['proj_more']"))
    with pytest.raises(
        BrokenModule, match=r"importing proj_more failed.*No module named"
    ) as caught:
        find("proj")
    assert caught.value.trace == ""
