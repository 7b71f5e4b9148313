"""The page about sizes says what its script computes; the examples are what they claim to be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "scale"


@pytest.fixture
def sizing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("sizing", ROOT / "benchmarks" / "sizing.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up.
    monkeypatch.setitem(sys.modules, "sizing", module)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_the_script(sizing: ModuleType) -> None:
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert sizing.written(page) == page
    for name in sizing.TABLES:
        assert f"<!-- {name} -->\n|" in page


def test_sizes_by_hand(sizing: ModuleType) -> None:
    thousand_million = sizing.Size(10**9)
    # (560 + 1,024) bytes each.
    assert thousand_million.catalog_gib == pytest.approx(1584e9 / 2**30)
    # 2,780 bytes each in machines that take 192 GiB: 13.5 of them.
    assert thousand_million.nodes("graph_bytes") == 14
    # 22 a second.
    assert thousand_million.core_hours == pytest.approx(12626.26, rel=1e-4)
    assert sizing.cores_for_a_gpu() == 41


def documents(name: str) -> list[Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the examples; pip install pyyaml")
    with (EXAMPLES / name).open() as file:
        return list(yaml.safe_load_all(file))


def test_the_compose_file_opens_ports_on_this_machine_only() -> None:
    (compose,) = documents("compose.yaml")
    services = compose["services"]
    assert services.keys() == {"postgres", "etcd", "minio", "milvus"}
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:19530:19530", "127.0.0.1:5432:5432"]
    volumes = {
        volume.partition(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
    }
    assert volumes == compose["volumes"].keys()
    assert set(services["milvus"]["depends_on"]) <= services.keys()


@pytest.mark.parametrize("engine", ["milvus", "ray", "postgresql"])
def test_values_are_named_in_the_instructions(engine: str) -> None:
    name = f"{engine}-values.yaml"
    (values,) = documents(name)
    assert isinstance(values, dict)
    assert f"-f {name}" in (EXAMPLES / "README.md").read_text("utf-8")
