"""`Calls`: the ways to send a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from taskline.batch import CHUNK, send_many
from taskline.context import running
from taskline.errors import ConfigurationError, InvalidArguments, SerializationError
from taskline.message import VERSION, Header, Message, new_id
from taskline.options import CallOptions
from taskline.result import AsyncResult, ResultSet
from taskline.signature import TaskSignature

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from taskline.app import Taskline
    from taskline.options import SendOptions
    from taskline.workflows.steps import Start, TaskStep

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
T = TypeVar("T")
Q = ParamSpec("Q")
V = TypeVar("V")
First = TypeVar("First", contravariant=True)
Item = TypeVar("Item", contravariant=True)


class TakesOne(Protocol[Item, R]):
    """A task that can be called with one positional argument, for `map`."""

    def delay(self, item: Item, /) -> AsyncResult[R]:
        """See `Calls.delay`."""


class TakesFirst(Protocol[First, Q, R]):
    """A task with a first positional argument, for `s`."""

    def delay(self, first: First, /, *args: Q.args, **kwargs: Q.kwargs) -> AsyncResult[R]:
        """See `Calls.delay`."""


class Calls(Generic[P, R]):
    """The ways to send a task, with the options that go with every call."""

    def __init__(
        self, app: Taskline, name: str, signature: TaskSignature | None, options: CallOptions
    ) -> None:
        self.app = app
        self.name = name
        self._options = options
        self._signature = signature
        self._model = app.queues.model(options.queue)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Send one call. When this returns, the broker has stored it.

        Raises `InvalidArguments` when the arguments do not fit the signature,
        `SerializationError` when they cannot be encoded, and `TransportError`.
        """
        return self._send(self._message(args, kwargs))

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """As `delay`, for coroutines: does not block the event loop."""
        import asyncio

        message = self._message(args, kwargs)
        return await asyncio.to_thread(self._send, message)

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[SendOptions],
    ) -> AsyncResult[R]:
        """As `delay`, with the arguments as a sequence and a mapping, and with options.

        See `options` for them. A type checker does not know the arguments here:
        `task.options(...).delay(...)` is the typed way.
        """
        calls = self.options(**options) if options else self
        return calls._send(calls._message(tuple(args), dict(kwargs or {})))

    def options(self, **options: Unpack[SendOptions]) -> Calls[P, R]:
        """This task with options for its calls, checked now.

        `countdown` (seconds) or `eta` (a datetime, or Unix seconds; a datetime without
        a time zone is this machine's local time): not before. `expires` (seconds from
        the call, or a datetime): not to be started after. `queue`, `priority` (0 to 9),
        `retry`, `timeout`, `soft_timeout`, `result_ttl` (seconds), `serializer`: instead of
        the task's own. `headers`: JSON values that the task finds in its request.
        `task_id`: an id of your own; a second call with it, while the first is still
        stored, changes nothing. `idempotency_key`: a second call with it gets the result of
        the first. `unique`, `throttle`, `debounce` and what goes with them: as in `app.task`;
        `unique=False` for none, `unique_key` for a key of your own. Raises `ConfigurationError`.
        """
        queue = options.get("queue")
        if queue is not None and options.get("serializer") is None:
            serializer = self.app.queues.serializer(queue)
            if serializer is not None:
                options["serializer"] = serializer
        return Calls(self.app, self.name, self._signature, self._options.changed(options))

    @property
    def is_unique(self) -> bool:
        """Whether its calls are unique, throttled or debounced."""
        return self._options.rule is not None

    def map(self: TakesOne[T, R], iterable: Iterable[T]) -> ResultSet[R]:
        """Send one call for each item, many in one round trip.

        The items are taken and sent a thousand at a time. When one does not fit
        the signature this raises, and the thousands before it have been sent.
        """
        calls = cast("Calls[..., R]", self)
        return calls._send_all((item,) for item in iterable)

    def starmap(self, iterable: Iterable[Sequence[Any]]) -> ResultSet[R]:
        """As `map`, where each item is a sequence of positional arguments."""
        return self._send_all(tuple(item) for item in iterable)

    @overload
    def s(self: TakesFirst[T, Q, V], *args: Q.args, **kwargs: Q.kwargs) -> TaskStep[T, V]: ...
    @overload
    def s(self: Calls[Q, V], *args: Q.args, **kwargs: Q.kwargs) -> TaskStep[Start, V]: ...
    def s(self, *args: Any, **kwargs: Any) -> TaskStep[Any, Any]:
        """A step of a workflow: this call, with the result of the step before as first argument.

        As the first step it takes none and needs all its arguments. See `docs/workflows.md`.
        """
        return self._step(args, kwargs, immutable=False)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> TaskStep[object, R]:
        """As `s`, for a step that takes no result, wherever it stands."""
        return self._step(args, kwargs, immutable=True)

    def _step(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, immutable: bool
    ) -> TaskStep[Any, Any]:
        from taskline.workflows.steps import TaskStep

        if self._options.rule is not None:
            raise ConfigurationError(
                f"{self.name} is unique, throttled or debounced, and each step of a workflow must "
                "run: .options(unique=False) before s() or si() makes it a step like others"
            )
        options = self._options
        if options.fair is not None:  # not all of its arguments are known yet
            options = options.shared_by(None)
        return TaskStep(
            self.app, self.name, self._signature, options, args, kwargs, immutable=immutable
        )

    def _message(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
        if self._signature is not None:
            self._signature.check(args, kwargs)
        if self._model is not None:
            self._model.check(self.name, args, kwargs)
        app, options = self.app, self._options
        now = app.now()
        header = Header(
            VERSION,
            options.task_id or new_id(),
            self.name,
            options.queue,
            now,
            options.serializer,
            "",
            1,
            options.priority,
        )
        if not options.plain:
            _apply(options, header, now)
            if options.rule is not None:
                options.rule.mark(app, header, self._signature, args, kwargs, now)
            if options.fair is not None:
                options.fair.mark(app, header, args, kwargs)
        request = running()
        if request is not None:
            parent = request.header
            header.parent = parent.id
            header.root = parent.root or parent.id
            request.sent(header.id)
        if app.hooks.of_sends:
            app.hooks.call("before_send", header, args, kwargs)
        return app.codec.encode(header, (args, kwargs))

    def _send(self, message: Message) -> AsyncResult[R]:
        app = self.app
        if message.header.unique is not None:
            return self._send_unique([message])[0]
        if app.settings.eager:
            return app.run_here(message)
        app.send((message,))
        return AsyncResult(app, message.header.id, message.header)

    def _send_unique(self, messages: Sequence[Message]) -> list[AsyncResult[R]]:
        from taskline import claims

        app = self.app
        if app.settings.eager:
            return [claims.run_eagerly(app, each) for each in messages]
        found: list[AsyncResult[R]]
        found = [AsyncResult(app, each.header.id, each.header) for each in messages]
        claims.deliver(app, messages, found)
        return found

    def _send_all(self, calls: Iterable[tuple[Any, ...]]) -> ResultSet[R]:
        if self._options.task_id is not None:
            raise ConfigurationError("task_id names one task: it cannot be given for many calls")
        app = self.app
        if app.settings.eager:
            return ResultSet(app, [self._send(each) for each in self._messages(calls)])
        results: list[AsyncResult[R]] = []
        if self._options.rule is not None:
            every = self._messages(calls)
            while chunk := list(islice(every, CHUNK)):
                results += self._send_unique(chunk)
            return ResultSet(app, results)
        header: Header | None = None  # one for all, since a million of them would weigh

        def stored(chunk: list[Message]) -> None:
            nonlocal header
            header = header or chunk[0].header
            results.extend([AsyncResult(app, each.header.id, header) for each in chunk])

        send_many(app, self._messages(calls), stored)
        return ResultSet(app, results)

    def _messages(self, calls: Iterable[tuple[Any, ...]]) -> Iterator[Message]:
        for index, args in enumerate(calls):
            try:
                yield self._message(args, {})
            except (InvalidArguments, SerializationError) as error:
                raise type(error)(f"item {index}: {error}") from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def header_of(options: CallOptions, id: str, task: str, now: float, compression: str) -> Header:
    """The header of a call with these options, made at `now`, of a body that is compressed so."""
    header = Header(
        VERSION,
        id,
        task,
        options.queue,
        now,
        options.serializer,
        compression,
        1,
        options.priority,
    )
    if not options.plain:
        _apply(options, header, now)
    return header


def _apply(options: CallOptions, header: Header, now: float) -> None:
    """Write the less usual options into a header."""
    if options.countdown is not None:
        header.eta = now + options.countdown
    elif options.eta is not None:
        header.eta = options.eta
    if options.expires is not None:
        header.expires = now + options.expires
    elif options.expires_at is not None:
        header.expires = options.expires_at
    header.timeout = options.timeout
    header.soft_timeout = options.soft_timeout
    header.result_ttl = options.result_ttl
    header.retry = options.retry
    header.headers = dict(options.headers)
