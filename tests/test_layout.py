"""The build configuration and the tree must tell the same story."""

import doctest
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mmsearch
from mmsearch import errors
from mmsearch.retrieval import metrics

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"].get("setuptools", {})


def test_every_package_folder_is_listed() -> None:
    folders = sorted(
        ".".join(["mmsearch", *init.parent.relative_to(ROOT).parts])
        for top in ("indexes", "retrieval")
        for init in (ROOT / top).rglob("__init__.py")
    )
    assert SETUPTOOLS["packages"] == ["mmsearch", *folders]


def test_no_stray_module_at_the_root() -> None:
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "cli.py", "errors.py"]


def test_root_package_is_stateless() -> None:
    """Pytest imports the root once more, as the checkout's own name: keep that harmless."""
    source = (ROOT / "__init__.py").read_text()
    assert "from ." not in source
    assert "class " not in source


def test_public_names_are_listed_once_and_exist() -> None:
    assert sorted(mmsearch.__all__) == mmsearch.__all__
    assert set(mmsearch._ORIGIN) == set(mmsearch.__all__) - {"__version__"}
    for name in mmsearch.__all__:
        assert getattr(mmsearch, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mmsearch.nonsense  # noqa: B018


def test_every_error_is_listed_and_drawn() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.MmsearchError)
    }
    assert defined == set(errors.__all__) - {"first_line", "quoted"}
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in defined)


def test_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mmsearch.__version__
    assert f"## [{mmsearch.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_importing_the_package_and_asking_for_help_load_nothing_heavy() -> None:
    heavy = "{'torch', 'faiss', 'onnxruntime', 'sqlalchemy', 'PIL', 'numpy', 'rich', 'tokenizers'}"
    for module in ("mmsearch", "mmsearch.cli"):
        code = f"import {module}, sys; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "[]", (module, done.stdout, done.stderr)


def test_examples_in_docstrings_are_true() -> None:
    outcome = doctest.testmod(metrics)
    assert outcome.attempted >= 4
    assert outcome.failed == 0
