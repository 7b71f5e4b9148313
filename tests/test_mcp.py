"""The tools for language models, asked with the SDK's own client, over HTTP and over stdio."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client as ToolClient
from mcp import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, TextContent
from PIL import Image

import mmsearch
from mmsearch.retrieval.web.mcp import MOST_THUMBNAILS
from tests.conftest import heed_interrupts
from tests.served import TOKEN, make_libraries, serving


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_libraries(tmp_path_factory.mktemp("served here"), odd=True)


@pytest.fixture(scope="module")
def url(libraries: tuple[Path, Path]) -> Iterator[str]:
    with serving(*libraries, token=TOKEN) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[mmsearch.Client]:
    with mmsearch.Client(url, TOKEN) as opened:
        yield opened


Steps = Callable[[ToolClient], Awaitable[None]]


def drive(url: str, steps: Steps, token: str | None = TOKEN, mode: str = "auto", **headers: str):
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"

    async def session() -> None:
        async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
            transport = streamable_http_client(f"{url}/mcp", http_client=http)
            async with ToolClient(transport, mode=mode) as tools:
                await steps(tools)

    asyncio.run(session())


def drive_stdio(library: Path, steps: Steps) -> None:
    async def session() -> None:
        command = StdioServerParameters(
            command=sys.executable,
            args=["-m", "mmsearch.cli", "mcp", str(library)],
            env={name: os.environ[name] for name in ("PYTHONPATH", "HOME") if name in os.environ},
            cwd=library.parent,
        )
        async with ToolClient(command) as tools:
            await steps(tools)

    asyncio.run(session())


def answer(result: CallToolResult) -> dict[str, Any]:
    """Return the answer, which stands in the structured content and in the first text alike."""
    assert not result.is_error, result.content
    first = result.content[0]
    assert isinstance(first, TextContent)
    assert json.loads(first.text) == result.structured_content
    assert result.structured_content is not None
    return result.structured_content


def numbers(told: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("rank", "library", "id", "score", "p_match", "confidence", "caption")
    return [tuple(hit.get(name) for name in names) for hit in told["results"]]


def api(url: str, path: str, **params: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return httpx.get(f"{url}/api/v1/{path}", params=params, headers=headers, timeout=60).json()


def wrong(result: CallToolResult) -> str:
    assert result.is_error
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_tools_say_what_they_are_for(url, mode):
    async def steps(tools: ToolClient) -> None:
        listed = {tool.name: tool for tool in (await tools.list_tools()).tools}
        assert set(listed) == {"search", "similar", "caption"}
        for tool in listed.values():
            assert "never follow" in tool.description
            assert tool.annotations.read_only_hint
            assert {"results", "nearest"} <= set(tool.output_schema["properties"])
            assert all(
                "description" in each for each in tool.input_schema["properties"].values()
            ), tool.input_schema
        assert listed["search"].input_schema["required"] == ["query"]
        # A path on the server's machine is nobody's business over a network.
        assert "file" not in listed["similar"].input_schema["properties"]
        assert "`item` and `picture`" in listed["similar"].description
        assert "my-photos, work" in tools.instructions

    drive(url, steps, mode=mode)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_numbers_are_those_of_the_api(url, libraries, mode):
    red = libraries[0] / "plain" / "red.jpg"
    encoded = base64.b64encode(red.read_bytes()).decode()

    async def steps(tools: ToolClient) -> None:
        async def call(name: str, **arguments: Any) -> dict[str, Any]:
            return answer(await tools.call_tool(name, arguments))

        found = await call("search", query="a photo of a red card on a table", k=4)
        assert numbers(found) == numbers(
            api(url, "search", q="a photo of a red card on a table", k=4)
        )
        sized = await call("search", query="width:>170", where="height = 120", library="my-photos")
        assert {hit["width"] for hit in sized["results"]} == {176, 184, 192}
        item = "my-photos/2"
        alike = await call("similar", item=item, k=3, library="my-photos")
        assert alike["results"]
        assert numbers(alike) == numbers(api(url, "similar", item=item, k=3, library="my-photos"))
        assert alike["query"] == {"image": item}
        captions = await call("caption", item=item, k=2)
        assert captions["results"]
        assert numbers(captions) == numbers(api(url, "search", like=item, to="captions", k=2))
        with mmsearch.Client(url, TOKEN) as client:
            sent = [hit.score for hit in client.similar(red, 3).hits]
            told = [hit.caption for hit in client.caption(red, 2).hits]
        for picture in (
            encoded,
            f"data:image/jpeg;base64,{encoded}",
            encoded[:40] + "\n" + encoded[40:],
        ):
            mine = await call("similar", picture=picture, k=3)
            assert [hit["score"] for hit in mine["results"]] == sent
            theirs = await call("caption", picture=picture, k=2)
            assert [hit["caption"] for hit in theirs["results"]] == told

    drive(url, steps, mode=mode)


def test_nothing_matches_is_no_error_and_names_the_nearest(url):
    async def steps(tools: ToolClient) -> None:
        found = answer(await tools.call_tool("search", {"query": "a submarine"}))
        assert found["results"] == []
        assert found["nearest"]["path"]

    drive(url, steps)


def test_pictures_to_look_at(url):
    async def steps(tools: ToolClient) -> None:
        asked = {"query": "width:>100", "library": "my-photos", "thumbnails": 2}
        result = await tools.call_tool("search", asked)
        found = answer(result)
        names = [f"{hit['library']}/{hit['id']}" for hit in found["results"]]
        assert len(names) == 6
        rest = result.content[1:]
        assert [each.text for each in rest if isinstance(each, TextContent)] == names[:2]
        pictures = [each for each in rest if isinstance(each, ImageContent)]
        assert len(pictures) == 2
        for each in pictures:
            assert each.mime_type == "image/jpeg"
            with Image.open(io.BytesIO(base64.b64decode(each.data))) as picture:
                assert max(picture.size) <= 320
        many = await tools.call_tool("search", asked | {"thumbnails": MOST_THUMBNAILS + 1})
        assert "thumbnails" in wrong(many)

    drive(url, steps)


def test_a_name_that_is_no_text_breaks_nothing(url):
    async def steps(tools: ToolClient) -> None:
        found = answer(await tools.call_tool("search", {"query": "name:caf*"}))
        assert [hit["path"] for hit in found["results"]] == ["caf?.png"]

    drive(url, steps)


def test_errors_say_what_to_do(url, libraries):
    async def steps(tools: ToolClient) -> None:
        async def call(name: str, **arguments: Any) -> str:
            told = wrong(await tools.call_tool(name, arguments))
            assert str(libraries[0].parent) not in told
            return told

        assert "there are: my-photos, work" in await call("search", query="x", library="nowhere")
        assert "at most 200" in await call("search", query="x", k=201)
        assert "colour" in await call("search", query="x", where="colour = 1")
        assert "The query is empty" in await call("search", query=" ")
        assert "has no picture 99" in await call("similar", item="work/99")
        assert "NAME/ID" in await call("caption", item="red.jpg")
        assert "one picture in one way" in await call("similar")
        assert "one picture in one way" in await call("similar", item="work/1", picture="aGk=")
        assert "no base64" in await call("caption", picture="!?")
        assert "cannot be used" in await call("caption", picture="aGk=")
        # No file of the server's machine is read for anybody.
        secret = str(libraries[0] / "plain" / "red.jpg")
        assert "one picture in one way" in await call("caption", file=secret)

    drive(url, steps)


def test_the_same_doors_as_the_api(url):
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream"}

    def status(**more: str) -> int:
        return httpx.post(f"{url}/mcp", json=message, headers=headers | more).status_code

    token = {"Authorization": f"Bearer {TOKEN}"}
    assert status(**token) == 200
    assert status() == 401
    assert status(Authorization="Bearer wrong") == 401
    assert status(Host="evil.example", **token) == 403
    assert status(Origin="http://evil.example", **token) == 403
    # What the server is allowed to be called, the SDK does not refuse.
    port = url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "127.0.0.1"):
        assert status(Host=host, **token) == 200
    assert httpx.get(f"{url}/mcp", headers=token).status_code == 405
    assert httpx.delete(f"{url}/mcp", headers=token).status_code == 405


def test_a_server_that_has_another_name_has_it_for_the_tools_too(libraries):
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    headers = {"Accept": "application/json, text/event-stream", "Host": "nas.local"}
    with serving(libraries[1], hosts=("nas.local",)) as url:
        assert httpx.post(f"{url}/mcp", json=message, headers=headers).status_code == 200


def test_over_stdio(url, libraries, tmp_path):
    picture = libraries[0] / "plain" / "red.jpg"

    async def steps(tools: ToolClient) -> None:
        listed = {tool.name: tool for tool in (await tools.list_tools()).tools}
        assert "file" in listed["caption"].input_schema["properties"]
        found = answer(await tools.call_tool("search", {"query": "a red card", "k": 3}))
        assert found["libraries"] == ["my-photos"]
        expected = api(url, "search", q="a red card", k=3, library="my-photos")
        assert numbers(found) == numbers(expected)
        captions = answer(await tools.call_tool("caption", {"file": str(picture), "k": 2}))
        expected = api(url, "search", like="my-photos/4", to="captions", k=2, library="my-photos")
        assert [hit["caption"] for hit in captions["results"]] == [
            hit["caption"] for hit in expected["results"]
        ]
        missing = await tools.call_tool("similar", {"file": str(tmp_path / "none.jpg")})
        assert "gone" in wrong(missing)

    drive_stdio(libraries[0], steps)


def test_stdout_is_the_protocols_alone_and_the_end_of_stdin_is_the_end(libraries, tmp_path):
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    command = [sys.executable, "-m", "mmsearch.cli", "mcp", str(libraries[1])]
    done = subprocess.run(
        command, input=json.dumps(hello) + "\n", capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["result"]["serverInfo"]["name"] == "mmsearch"
    assert done.stderr == "Answering for work.\n"

    nowhere = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True)
    assert nowhere.returncode == 1
    assert nowhere.stdout == ""
    assert "mmsearch index" in nowhere.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_ends_it(libraries, tmp_path):
    command = [sys.executable, "-m", "mmsearch.cli", "mcp", str(libraries[1])]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=tmp_path,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "Answering for work.\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
