"""The engine contract, and how an engine is found and called.

An engine is a callable ``(request, context)`` (or ``(request)``) that returns an async
iterator, or a coroutine function that returns one; or an object with such a ``generate`` and,
if it likes, ``startup()``, ``ready()`` and ``shutdown()``. Raising when called is a refusal
(error prologue); raising while iterated is a failure (error item).
"""

import dataclasses
import importlib
import inspect
import logging
import sys
import typing
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import contextmanager
from types import AsyncGeneratorType, TracebackType
from typing import Any, Final, Protocol, TypeAlias, TypeGuard, TypeVar, cast

import msgspec

from dialback.errors import ConfigError, DeserializationError, DialbackError
from dialback.ingress.context import Context
from dialback.ingress.resumption import Resume
from dialback.transport.dynamo_errors import describe

logger = logging.getLogger(__name__)

Responses: TypeAlias = AsyncIterator[Any]


class Generate(Protocol):
    """An engine function."""

    def __call__(self, request: Any, context: Context, /) -> Any:
        """Return an async iterator of JSON-able values, or an awaitable of one."""


_RESUME: Final = "resume"
_IMPORTING: Final = (__file__, importlib.__file__, "<frozen importlib")
"""Files whose frames stand before the engine's own in a traceback."""
_Target = TypeVar("_Target")


def engine(*, resume: Resume | str | None = None) -> Callable[[_Target], _Target]:
    """Declare what an engine can do when its worker is lost in mid-stream (overview section 4).

    Use as a decorator of a function or class, or set the class attribute ``resume``.

    Args:
        resume: ``replay`` for an engine that yields the same items when it runs again,
            ``continue`` for one that starts at ``context.resume_from``, ``None`` for neither.

    Raises:
        ConfigError: If it is none of these.
    """
    ability = _ability(resume, "dialback.engine")

    def declare(target: _Target) -> _Target:
        setattr(target, _RESUME, ability)
        return target

    return declare


class Engine:
    """A user's engine behind one interface.

    Attributes:
        name: For logs.
        resume: What it declares that it can do for a stream whose worker was lost.
        quick: Whether its last call let the event loop turn soon. An engine that computes for
            long first must not keep what is queued from leaving.
    """

    quick = False

    def __init__(self, target: object, *, name: str = "") -> None:
        """Take an engine function or object; a class with ``generate`` is instantiated.

        Raises:
            ConfigError: If it is not callable and has no ``generate``.
        """
        target = _instance(target)
        generate: Any = getattr(target, "generate", target)
        if not callable(generate):
            raise ConfigError(
                f"engine {name or target!r} is not callable and has no generate():"
                " write `async def generate(request, context): yield ...`"
            )
        self.name = name or _name_of(target)
        self._target = target
        self._generate: Callable[..., Any] = generate
        self.resume = _declared_resume(target, self.name)
        self._takes_context = _takes_context(generate, self.name)
        self._convert = _converter(generate)

    def convert(self, value: object) -> object:
        """Return the request as the engine's annotation wants it.

        Raises:
            DeserializationError: If it does not fit the annotation.
        """
        if self._convert is None:
            return value
        try:
            return self._convert(value)
        except (Exception, SystemExit) as error:  # the validators are the user's: anything goes
            raise DeserializationError(f"request does not fit the engine: {error}") from error

    async def start(self, request: object, context: Context) -> Responses:
        """Call the engine and return its stream.

        Raises:
            Exception: Whatever the engine raises: it refuses the request.
            TypeError: If it returns no async iterator.
        """
        stream = (
            self._generate(request, context) if self._takes_context else self._generate(request)
        )
        if isinstance(stream, AsyncGeneratorType):
            # As a rule; what follows asks abstract classes, in Python code.
            return stream  # pyright: ignore[reportUnknownVariableType]
        if inspect.isawaitable(stream):
            stream = await stream
        if not _is_async_iterable(stream):
            kind = type(stream).__name__
            raise TypeError(f"engine {self.name} returned {kind}, no async iterator")
        return aiter(stream)

    async def startup(self) -> None:
        """Run the engine's ``startup()``, if it has one.

        Raises:
            ConfigError: The engine's own, which says what is wrong.
            DialbackError: If it raises anything else; the log has the traceback.
        """
        try:
            await self._call("startup")
        except ConfigError:
            raise
        except Exception as error:
            logger.exception("the engine's startup() failed", extra={"engine": self.name})
            raise DialbackError(
                f"engine {self.name!r}: startup() failed: {_on_one_line(error)}"
            ) from error

    async def shutdown(self) -> None:
        """Run the engine's ``shutdown()``, if it has one."""
        await self._call("shutdown")

    async def ready(self) -> bool:
        """Return what the engine's ``ready()`` says; True without one."""
        answer = await self._call("ready")
        return True if answer is None else bool(answer)

    async def _call(self, name: str) -> object:
        method = getattr(self._target, name, None)
        if method is None or self._generate is self._target:
            return None
        try:
            answer = method()
            return await answer if inspect.isawaitable(answer) else answer
        except SystemExit as error:
            raise exited(error) from error


def exited(error: SystemExit) -> RuntimeError:
    """Return what stands for an engine's ``sys.exit()``, which would end the event loop."""
    return RuntimeError(f"the engine raised {error!r}")


def load_engine(reference: str) -> Engine:
    """Import ``module:attribute`` with the working directory on the path, as uvicorn does.

    A class with ``generate`` is instantiated without arguments.

    Raises:
        ConfigError: If the reference is malformed, if module or attribute do not exist, or if
            the engine's own code raises; the log has its traceback then.
    """
    module_name, colon, attribute = reference.partition(":")
    if not colon or not attribute or not all(module_name.split(".")):
        raise ConfigError(
            f"engine {reference!r} is not MODULE:ATTRIBUTE, e.g. examples.echo:generate"
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    with _faults_named(reference, "imported"):
        found = _find(reference, module_name, attribute)
    with _faults_named(reference, "instantiated"):
        found = _instance(found)
    return Engine(found, name=reference)


def _find(reference: str, module_name: str, attribute: str) -> object:
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # something that the engine's module imports
        raise ConfigError(
            f"engine {reference!r}: no module {module_name!r} here; run from the folder that has it"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"engine {reference!r}: {module_name} has no {attribute!r}")
        found = getattr(found, part)
    return found


def _instance(target: object) -> object:
    """Return an object of a class with ``generate``, and anything else as it is."""
    return target() if inspect.isclass(target) and hasattr(target, "generate") else target


@contextmanager
def _faults_named(reference: str, verb: str) -> Generator[None]:
    """Make a sentence of what the engine's own code raises; its traceback goes to the log."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        trace = (type(error), error, _own_frames(error))
        logger.exception("engine cannot be loaded", extra={"engine": reference}, exc_info=trace)
        raise ConfigError(
            f"engine {reference!r}: cannot be {verb}: {_on_one_line(error)}"
        ) from error


def _own_frames(error: BaseException) -> TracebackType | None:
    """Return a traceback from the engine's first frame on; none for a module with bad syntax."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_IMPORTING):
        frames = frames.tb_next
    return frames


def _on_one_line(error: BaseException) -> str:
    return " ".join(describe(error).split())


def _declared_resume(target: object, name: str) -> Resume | None:
    declared = getattr(target, _RESUME, None)
    return None if callable(declared) else _ability(declared, f"engine {name}")


def _ability(declared: object, who: str) -> Resume | None:
    if declared is None:
        return None
    try:
        return Resume(cast("str", declared))
    except ValueError as error:
        allowed = ", ".join(Resume)
        raise ConfigError(f"{who}: resume {declared!r} is none of {allowed}") from error


def _is_async_iterable(value: object) -> TypeGuard[AsyncIterable[Any]]:
    return isinstance(value, AsyncIterable)


def _name_of(target: object) -> str:
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{getattr(named, '__qualname__', '')}"


def _takes_context(generate: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(generate).parameters.values()
    except (TypeError, ValueError):
        return True
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not positional:
        raise ConfigError(f"engine {name} takes no request: write `def generate(request, context)`")
    return len(positional) > 1


def _converter(generate: Callable[..., Any]) -> Callable[[Any], Any] | None:
    """Return how a plain value becomes the type of the engine's first parameter, if it has to."""
    function = generate if inspect.isroutine(generate) else getattr(generate, "__call__", generate)  # noqa: B004
    try:
        hints = typing.get_type_hints(function)
        first = next(iter(inspect.signature(function).parameters))
    except (TypeError, ValueError, NameError, AttributeError, StopIteration):
        return None
    wanted = hints.get(first)
    validate = getattr(wanted, "model_validate", None)  # pydantic's, without importing it
    if callable(validate):
        return cast("Callable[[Any], Any]", validate)
    is_struct = inspect.isclass(wanted) and issubclass(wanted, msgspec.Struct)
    if is_struct or (inspect.isclass(wanted) and dataclasses.is_dataclass(wanted)):
        return lambda value: msgspec.convert(value, wanted)
    return None
