"""How an engine is found, understood and called."""

import dataclasses
import functools
import logging
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from typing_extensions import override

from dialback.errors import ConfigError, DeserializationError, DialbackError
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine, load_engine


async def function(request: Any, context: Context) -> AsyncIterator[Any]:
    yield [context.id(), request]


async def without_context(request: Any) -> AsyncIterator[Any]:
    yield [None, request]


async def coroutine_function(request: Any, context: Context) -> AsyncIterator[Any]:
    return function(request, context)


def plain_function(request: Any, context: Context) -> AsyncIterator[Any]:
    return function(request, context)


async def any_arguments(*arguments: Any) -> AsyncIterator[Any]:
    request, context = arguments
    yield [context.id(), request]


class WithGenerate:
    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id(), request]


class Callable_:  # noqa: N801 -- its name says what it shows
    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield [context.id(), request]


class Stream:
    """An async iterator that is no generator: it has no ``aclose``."""

    def __init__(self, request: Any, context: Context) -> None:
        self._items = iter([[context.id(), request]])

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self._items)
        except StopIteration:
            raise StopAsyncIteration from None


class Unreadable:
    """A callable whose signature cannot be read, like many of C."""

    @property
    def __signature__(self) -> object:
        raise ValueError("no signature")

    def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        return function(request, context)


async def outputs(engine: Engine, value: Any) -> list[Any]:
    stream = await engine.start(engine.convert(value), Context("req-1"))
    return [item async for item in stream]


@pytest.mark.parametrize(
    "target",
    [
        function,
        coroutine_function,
        plain_function,
        any_arguments,
        WithGenerate(),
        WithGenerate().generate,
        Callable_(),
        Stream,
        functools.partial(function),
        Unreadable(),
    ],
)
async def test_engine_may_be_any_callable_of_request_and_context(target: object) -> None:
    assert await outputs(Engine(target), {"n": 1}) == [["req-1", {"n": 1}]]


async def test_engine_may_leave_the_context_out() -> None:
    assert await outputs(Engine(without_context), 5) == [[None, 5]]


@pytest.mark.parametrize("target", [3, "engine", object()])
def test_engine_has_to_be_callable_or_have_generate(target: object) -> None:
    with pytest.raises(ConfigError, match=r"not callable and has no generate\(\)"):
        Engine(target)


def test_engine_has_to_take_a_request() -> None:
    def nothing() -> None: ...

    with pytest.raises(ConfigError, match="takes no request"):
        Engine(nothing)


@pytest.mark.parametrize(("returned", "kind"), [([1], "list"), (None, "NoneType"), (5, "int")])
async def test_engine_has_to_return_an_async_iterator(returned: object, kind: str) -> None:
    def wrong(request: Any) -> Any:
        return returned

    with pytest.raises(TypeError, match=f"returned {kind}, no async iterator"):
        await Engine(wrong, name="mine").start({}, Context("req-1"))


async def test_what_the_engine_raises_when_called_is_passed_on() -> None:
    def refuse(request: Any, context: Context) -> AsyncIterator[Any]:
        raise KeyError("model")

    with pytest.raises(KeyError, match="model"):
        await Engine(refuse).start({}, Context("req-1"))


@pytest.mark.parametrize(
    ("target", "name"),
    [(function, ":function"), (WithGenerate(), ":WithGenerate"), (Stream, ":Stream")],
)
def test_engine_is_named_after_its_module_and_target(target: object, name: str) -> None:
    assert Engine(target).name == __name__ + name


# --- typed requests ---------------------------------------------------------------------------


class Model(pydantic.BaseModel):
    prompt: str
    tokens: int = 16


@dataclasses.dataclass
class Data:
    prompt: str
    tokens: int = 16


class Struct(msgspec.Struct):
    prompt: str
    tokens: int = 16


async def with_model(request: Model, context: Context) -> AsyncIterator[Any]:
    yield [type(request).__name__, request.prompt, request.tokens]


async def with_dataclass(request: Data, context: Context) -> AsyncIterator[Any]:
    yield [type(request).__name__, request.prompt, request.tokens]


async def with_struct(request: "Struct") -> AsyncIterator[Any]:
    yield [type(request).__name__, request.prompt, request.tokens]


class TypedObject:
    async def generate(self, request: Model, context: Context) -> AsyncIterator[Any]:
        yield [type(request).__name__, request.prompt, request.tokens]


class TypedCallable:
    async def __call__(self, request: Data, context: Context) -> AsyncIterator[Any]:
        yield [type(request).__name__, request.prompt, request.tokens]


TYPED = [
    (with_model, "Model"),
    (with_dataclass, "Data"),
    (with_struct, "Struct"),
    (TypedObject(), "Model"),
    (TypedCallable(), "Data"),
]


@pytest.mark.parametrize(("target", "kind"), TYPED)
async def test_request_becomes_what_the_annotation_names(target: object, kind: str) -> None:
    assert await outputs(Engine(target), {"prompt": "hi"}) == [[kind, "hi", 16]]


@pytest.mark.parametrize("value", [{"tokens": 1}, {"prompt": "hi", "tokens": "many"}, [], None, 3])
@pytest.mark.parametrize(("target", "kind"), TYPED)
def test_request_that_does_not_fit_the_annotation_is_refused(
    target: object, kind: str, value: object
) -> None:
    with pytest.raises(DeserializationError, match="request does not fit the engine: "):
        Engine(target).convert(value)


def test_validator_may_raise_what_it_likes() -> None:
    class Picky(pydantic.BaseModel):
        model: str

        @pydantic.field_validator("model")
        @classmethod
        def _known(cls, value: str) -> str:
            return {"tiny": "tiny-1"}[value]  # a KeyError, which pydantic lets through

    async def generate(request: Picky, context: Context) -> AsyncIterator[Any]:
        yield request.model

    with pytest.raises(DeserializationError, match="request does not fit the engine: 'huge'"):
        Engine(generate).convert({"model": "huge"})


def test_validator_that_exits_refuses_the_request() -> None:
    class Leaving(pydantic.BaseModel):
        model: str

        @pydantic.field_validator("model")
        @classmethod
        def _leave(cls, value: str) -> str:
            sys.exit(3)

    async def generate(request: Leaving, context: Context) -> AsyncIterator[Any]:
        yield request.model

    with pytest.raises(DeserializationError, match="request does not fit the engine: 3"):
        Engine(generate).convert({"model": "huge"})


def _unknown_annotation(request: "NotImported", context: Context) -> Any:  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]
    return function(request, context)


def _unknown_module(request: "sys.nothing", context: Context) -> Any:  # type: ignore[name-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownParameterType]
    return function(request, context)


def _unannotated(request, context):  # type: ignore[no-untyped-def]  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
    return function(request, context)  # pyright: ignore[reportUnknownArgumentType]


def _plain(request: dict[str, int], context: Context) -> AsyncIterator[Any]:
    return function(request, context)


@pytest.mark.parametrize(
    "target",
    [
        _unknown_annotation,
        _unknown_module,
        _unannotated,  # pyright: ignore[reportUnknownArgumentType]
        _plain,
    ],
)
def test_other_annotations_leave_the_request_as_it_is(target: Callable[..., Any]) -> None:
    value = {"n": "any"}
    assert Engine(target).convert(value) is value


# --- startup, shutdown, ready -------------------------------------------------------------------


class Life(WithGenerate):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_ready: object = True

    async def startup(self) -> None:
        self.calls.append("startup")

    def ready(self) -> object:
        return self.is_ready

    def shutdown(self) -> None:
        self.calls.append("shutdown")


async def test_hooks_of_an_engine_object_are_called_awaitable_or_not() -> None:
    life = Life()
    engine = Engine(life)
    await engine.startup()
    await engine.shutdown()
    assert life.calls == ["startup", "shutdown"]


@pytest.mark.parametrize(
    ("says", "ready"), [(True, True), (False, False), (0, False), (None, True)]
)
async def test_ready_is_what_the_engine_says(says: object, ready: bool) -> None:
    life = Life()
    life.is_ready = says
    assert await Engine(life).ready() is ready


@pytest.mark.parametrize("target", [function, WithGenerate()])
async def test_engine_without_hooks_is_ready(target: object) -> None:
    engine = Engine(target)
    await engine.startup()
    await engine.shutdown()
    assert await engine.ready()


class Exiting(WithGenerate):
    """Calls ``sys.exit()`` in every hook."""

    async def startup(self) -> None:
        sys.exit(9)

    def ready(self) -> bool:
        sys.exit(9)

    async def shutdown(self) -> None:
        sys.exit(9)


class Unable(WithGenerate):
    """Cannot start."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def startup(self) -> None:
        raise self._error


async def test_startup_that_fails_is_a_sentence_and_a_traceback_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(DialbackError) as caught:
        await Engine(Unable(OSError("no GPU\nat all")), name="m:e").startup()
    assert str(caught.value) == "engine 'm:e': startup() failed: OSError: no GPU at all"
    (record,) = caplog.records
    assert (record.levelno, vars(record)["engine"]) == (logging.ERROR, "m:e")
    assert "raise self._error" in caplog.text


async def test_startup_may_say_that_its_settings_are_wrong(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match=r"^set MODEL$"):
        await Engine(Unable(ConfigError("set MODEL"))).startup()
    assert caplog.records == []


async def test_hooks_that_exit_have_failed() -> None:
    engine = Engine(Exiting())
    with pytest.raises(DialbackError, match=r"RuntimeError: the engine raised SystemExit\(9\)"):
        await engine.startup()
    for hook in (engine.ready, engine.shutdown):
        with pytest.raises(RuntimeError, match=r"the engine raised SystemExit\(9\)"):
            await hook()


# --- load_engine ------------------------------------------------------------------------------


class EngineFolder:
    """A folder that is the working directory, with modules whose names no other test uses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.written: list[str] = []

    def write(self, module: str, text: str) -> str:
        (self._path / f"{module}.py").write_text(text)
        self.written.append(module)
        return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineFolder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return EngineFolder(tmp_path)


_MODULE = """
async def generate(request, context):
    yield request

class Model:
    async def generate(self, request, context):
        yield ["model", request]

class Box:
    instance = Model()
"""


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [("generate", [1]), ("Model", [["model", 1]]), ("Box.instance", [["model", 1]])],
)
async def test_engine_is_loaded_from_the_working_directory(
    folder: EngineFolder, attribute: str, expected: list[Any]
) -> None:
    reference = f"{folder.write('engines_here', _MODULE)}:{attribute}"
    engine = load_engine(reference)
    assert engine.name == reference
    assert await outputs(engine, 1) == expected


@pytest.mark.parametrize(
    "reference",
    ["", "examples.echo", ":generate", "examples.echo:", ".echo:generate", "./echo.py:generate"],
)
def test_reference_needs_module_and_attribute(reference: str) -> None:
    with pytest.raises(ConfigError, match="is not MODULE:ATTRIBUTE"):
        load_engine(reference)


@pytest.mark.parametrize("reference", ["no_such_module:generate", "no_such.module:generate"])
def test_module_that_is_not_here_is_named(reference: str) -> None:
    module = reference.partition(":")[0]
    with pytest.raises(ConfigError, match=f"no module '{module}' here; run from the folder"):
        load_engine(reference)


@pytest.mark.parametrize("attribute", ["nothing", "Model.nothing", "Model..generate"])
def test_attribute_that_is_not_there_is_named(folder: EngineFolder, attribute: str) -> None:
    module = folder.write("engines_here", _MODULE)
    with pytest.raises(ConfigError, match=f"engines_here has no '{attribute}'"):
        load_engine(f"{module}:{attribute}")


@pytest.mark.parametrize("missing", ["not_installed", "engine"])
def test_dependency_that_the_engine_lacks_is_not_blamed_on_the_engine(
    folder: EngineFolder, missing: str
) -> None:
    module = folder.write("engine_here", f"import {missing}\n")
    wanted = f"cannot be imported: ModuleNotFoundError: No module named '{missing}'"
    with pytest.raises(ConfigError, match=wanted):
        load_engine(f"{module}:generate")


@pytest.mark.parametrize(
    ("text", "attribute", "wanted"),
    [
        ("def (:\n", "x", "imported: SyntaxError: invalid syntax (engine_here.py, line 1)"),
        ("1 / 0\n", "x", "imported: ZeroDivisionError: division by zero"),
        ("raise ValueError('two\\nlines')\n", "x", "imported: ValueError: two lines"),
        ("import sys; sys.exit(9)\n", "x", "imported: SystemExit: 9"),
        ("def __getattr__(name): 1 / 0\n", "x", "imported: ZeroDivisionError: division by zero"),
        (
            "class E:\n    generate = None\n    def __init__(self): raise OSError('no GPU')\n",
            "E",
            "instantiated: OSError: no GPU",
        ),
    ],
)
def test_fault_of_the_engines_own_code_is_a_sentence(
    text: str, attribute: str, wanted: str, folder: EngineFolder
) -> None:
    reference = f"{folder.write('engine_here', text)}:{attribute}"
    with pytest.raises(ConfigError) as caught:
        load_engine(reference)
    assert str(caught.value) == f"engine '{reference}': cannot be {wanted}"


def test_traceback_of_an_engine_that_cannot_be_loaded_begins_with_its_own_code(
    folder: EngineFolder, caplog: pytest.LogCaptureFixture
) -> None:
    helper = folder.write("engine_helper", "1 / 0\n")
    module = folder.write("engine_here", f"import {helper}\n")
    with pytest.raises(ConfigError):
        load_engine(f"{module}:generate")
    (record,) = caplog.records
    assert (record.levelno, vars(record)["engine"]) == (logging.ERROR, "engine_here:generate")
    files = [line for line in caplog.text.splitlines() if line.startswith("  File ")]
    assert [Path(line.split('"')[1]).name for line in files] == [
        "engine_here.py",
        "engine_helper.py",
    ]


def test_engine_that_says_itself_what_is_wrong_is_quoted(folder: EngineFolder) -> None:
    text = "import dialback\nraise dialback.ConfigError('set MODEL to a path')\n"
    with pytest.raises(ConfigError, match=r"^set MODEL to a path$"):
        load_engine(f"{folder.write('engine_here', text)}:generate")


def test_attribute_that_is_no_engine_is_refused(folder: EngineFolder) -> None:
    module = folder.write("engine_here", "generate = 3\n")
    with pytest.raises(ConfigError, match=r"engine 'engine_here:generate' is not callable"):
        load_engine(f"{module}:generate")


class Refusing(WithGenerate):
    @override
    async def generate(self, request: Any, context: Context) -> AsyncIterator[Any]:
        raise ValueError("never")
        yield


async def test_raising_in_a_generator_is_no_refusal() -> None:
    stream = await Engine(Refusing()).start({}, Context("req-1"))
    with pytest.raises(ValueError, match="never"):
        await anext(stream)


async def test_a_class_is_instantiated_wherever_an_engine_is_given() -> None:
    class Echoing:
        async def generate(self, request: object, context: Context) -> AsyncIterator[object]:
            yield request

    stream = await Engine(Echoing).start("hello", Context("req-1"))
    assert [item async for item in stream] == ["hello"]
