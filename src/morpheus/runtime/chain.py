"""Chains of transforms: batches are pushed through, each with the state of its user.

A `Segment` is the value that crosses to worker processes; a `Chain` is a segment that is open in
one process, with the live states of its stages. `GracefulShutdown` ends an unbounded input by
Ctrl+C or SIGTERM.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, takewhile
from types import FrameType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
import polars as pl

from morpheus.core.batch import Batch, Events, Scored, Table, WithModel, take_outputs
from morpheus.core.stage import PreparesUsers, ProcessesUsers, Stage, StageContext, Transform
from morpheus.core.state import State, StateKey, decode_state, encode_state
from morpheus.errors import STOPPING_MESSAGE
from morpheus.text import NOTICE

if TYPE_CHECKING:
    from morpheus.runtime.states import SavedStates, StateStore

logger = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
_NO_USER_YET = object()

UserBatches = list[Batch]
"""All batches of one user."""


def name_stages(stages: Iterable[Transform]) -> tuple[str, ...]:
    """Name each stage by its word and its number among the stages of that word.

    The names key states, so they stay the same when other stages are added to a pipeline.
    """
    counts: Counter[str] = Counter()
    names = []
    for stage in stages:
        counts[stage.name] += 1
        names.append(f"{stage.name}#{counts[stage.name]}")
    return tuple(names)


def find_feature_stages(stages: Iterable[Stage]) -> tuple[Transform, ...]:
    """Return the stages that can add features to events before `train-ae`.

    These are the keyed stages in front of it that name `Events` in `takes`, return them and read
    their rows. Stages that take any batch are not among them.
    The runtime applies them to the training events too; see `add_features`.
    """
    transforms = [stage for stage in stages if isinstance(stage, Transform)]
    before = takewhile(lambda stage: stage.gives in {None, Events}, transforms)
    found = tuple(stage for stage in before if _adds_features(stage))
    return found if any(stage.gives is WithModel for stage in transforms) else ()


def _adds_features(stage: Transform) -> bool:
    return stage.scope == "keyed" and stage.needs.rows and Events in stage.takes


def add_features(
    stages: Sequence[Transform], user: str | None, table: Table, context: StageContext
) -> Table:
    """Pass training events through stages that add features.

    The stages start with new states, so training events and input do not affect each other.

    Args:
        stages: The stages.
        user: The user.
        table: The user's training events, in time order.
        context: What stages get when they are opened.
    """
    batches: list[Any] = [Events(user=user, table=table)]
    for stage in stages:
        state = stage.open(replace(context, user=user))
        outputs = [
            out for each in batches for out in take_outputs(stage, stage.process(each, state))
        ]
        batches = [*outputs, *take_outputs(stage, stage.flush(state), "flush")]
    frames = [batch.table.to_frame() for batch in batches]
    return Table(pl.concat(frames, how="diagonal")) if frames else table.clear()


@dataclass(frozen=True)
class Segment:
    """Stages that run one after the other, as a value that any process can use.

    Attributes:
        stages: The stages, in order.
        names: Name of each stage, which keys its states; see `name_stages`.
        population: Sample of all users' histories, for stages that need it.
        unbounded: The input has no end, so a user's batches can arrive at any time.
        drops_model: Batches leave without fingerprint and codes, because no later stage needs them.
        saves: Encode the states of finished users, so that they can be saved.
        cache: Values that stages compute once for all users of a process.
    """

    stages: tuple[Transform, ...]
    names: tuple[str, ...]
    population: Any = field(default=None, repr=False, compare=False)
    unbounded: bool = False
    drops_model: bool = False
    saves: bool = False
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_stages(cls, stages: Sequence[Transform], *, unbounded: bool = False) -> Segment:
        """Make a segment with the default names."""
        return cls(tuple(stages), name_stages(stages), unbounded=unbounded)

    @cached_property
    def feature_stages(self) -> tuple[Transform, ...]:
        """The stages that add features to training events too; see `find_feature_stages`."""
        return find_feature_stages(self.stages)

    @cached_property
    def train_position(self) -> int:
        """Position of `train-ae`; 0 without it."""
        return next((i for i, stage in enumerate(self.stages) if stage.gives is WithModel), 0)

    @property
    def is_cpu_bound(self) -> bool:
        """Whether a user's events cost more than passing them to a worker process."""
        return any(stage.needs.cpu_bound for stage in self.stages)

    @property
    def users_per_bundle(self) -> int:
        """How many users the stages prefer to prepare together."""
        return max((stage.needs.users_per_bundle for stage in self.stages), default=1)

    def open(
        self,
        saved: SavedStates | None = None,
        resources: ExitStack | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> Chain:
        """Open the chain of the stages in this process.

        Args:
            saved: States to restore.
            resources: Closes what sinks open.
            wait: See `StageContext`.
        """
        context = StageContext(
            unbounded=self.unbounded,
            population=self.population,
            cache=self.cache,
            resources=resources or ExitStack(),
            wait=wait,
        )
        return Chain(self, context, KeyedStates(dict(saved or {})))


class KeyedStates(msgspec.Struct):
    """The live states of one process.

    Attributes:
        saved: Encoded states to restore from.
        live: States in use, by user and stage.
    """

    saved: dict[StateKey, bytes] = msgspec.field(default_factory=dict)
    live: dict[str | None, dict[str, Any]] = msgspec.field(default_factory=dict)

    def get(self, key: StateKey, open_state: Callable[[], Any]) -> Any:  # noqa: ANN401 - each stage has its own
        """Return the state of a key: the live one, the saved one, or a new one.

        Args:
            key: Stage and user.
            open_state: Makes the state of a new user. Its class decodes a saved state.
        """
        states = self.live.setdefault(key.user, {})
        if key.stage not in states:
            state = open_state()
            data = self.saved.pop(key, None)
            if data is not None and isinstance(state, State):
                state = decode_state(type(state), data)
            states[key.stage] = state
        return states[key.stage]

    def has(self, key: StateKey) -> bool:
        """Return whether a key has a live state."""
        return key.stage in self.live.get(key.user, {})

    def pop(self, key: StateKey) -> Any:  # noqa: ANN401 - each stage has its own
        """Remove a live state and return it."""
        states = self.live.get(key.user, {})
        state = states.pop(key.stage, None)
        if not states:
            self.live.pop(key.user, None)
        return state

    def users(self, stage: str) -> list[str | None]:
        """Return the users with a live state of a stage, in the order of their first batch."""
        return [user for user, states in self.live.items() if stage in states]


@dataclass
class Chain:
    """Pushes batches through the stages of a segment, and holds the state of each stage and user.

    On a bounded input a user's batches are consecutive: when the next user's first batch arrives,
    the states of the last user are flushed, encoded if `Segment.saves`, and released. `run_users`
    takes the batches of several users, and then does so with each of them. On an unbounded input a
    user's batches can arrive at any time, so states stay live until the input ends.

    Attributes:
        segment: The stages.
        context: What stages get when they are opened.
        states: The live states.
        changed: Encoded states of finished users, if `Segment.saves`.
        recent: Users with live states on an unbounded input, the latest one last.
        unsaved: Users whose states have changed since the last `take_changes`.
    """

    segment: Segment
    context: StageContext
    states: KeyedStates
    changed: dict[StateKey, bytes] = field(default_factory=dict)
    recent: dict[str | None, None] = field(default_factory=dict)
    unsaved: set[str | None] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._stages = self.segment.stages
        self._users: list[object] = [_NO_USER_YET] * len(self._stages)
        self._feature_stages = self.segment.feature_stages
        self._histories: dict[str | None, Table] = {}
        self._saved_names = {
            name
            for name, stage in zip(self.segment.names, self._stages, strict=True)
            if stage.scope == "keyed" and not stage.needs.per_run
        }
        # Open sinks now, so that an output that cannot be written fails before anything is read.
        for position, stage in enumerate(self._stages):
            if stage.scope != "keyed":
                self._state(position, None)

    def prepare(self, groups: Sequence[UserBatches]) -> None:
        """Let the first stage work on several users together, before their batches are pushed."""
        if self._stages and isinstance(self._stages[0], PreparesUsers):
            users = [(self._state(0, group[0].user), group) for group in groups]
            self._stages[0].prepare(users)

    def push(self, batch: Batch, start: int = 0) -> list[Batch]:
        """Push a batch through the stages, and return the batches that leave the last one.

        Args:
            batch: The batch.
            start: Position of the first stage that processes it.
        """
        if self.context.unbounded and not start:
            self._note_user(batch.user)
        batches = [batch] if start or not self._feature_stages else [self._take_history(batch)]
        for position, stage in enumerate(self._stages[start:], start):
            if self._histories and position == self.segment.train_position:
                batches = [self._give_history(each) for each in batches]
            outputs: list[Batch] = []
            for each in batches:
                if stage.scope == "keyed":
                    outputs += self._switch_user(position, each.user)
                given = stage.process(each, self._state(position, each.user))
                outputs += take_outputs(stage, given)
            batches = outputs
        return self._drop_model(batches)

    def _drop_model(self, batches: list[Batch]) -> list[Batch]:
        if self.segment.drops_model:
            released = {"fingerprint": None, "encoded": None}
            with_scores = released | {"daily": None}
            return [
                each.change(**(with_scores if isinstance(each, Scored) else released))
                for each in batches
            ]
        return batches

    def push_many(self, batches: Sequence[Batch]) -> list[Batch]:
        """Push the batches of many users, and return the batches that leave the last stage.

        It gives what `push` gives for one batch after the other, in the same order. Stages process
        several users together if they can; see `ProcessesUsers`.

        Args:
            batches: The batches; those of one user in time order. On a bounded input, all batches
                of these users.
        """
        if self._feature_stages:
            return [output for batch in batches for output in self.push(batch)]
        passed = list(batches)
        for batch in passed if self.context.unbounded else ():
            self._note_user(batch.user)
        for position in range(len(self._stages)):
            bundles = split_repeated(passed)
            passed = [out for bundle in bundles for out in self._process_users(position, bundle)]
        return self._drop_model(passed)

    def run_users(self, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Push all batches of some users of a bounded input, and flush each user.

        Args:
            batches: One batch of each user.
        """
        outputs: dict[str | None, list[Batch]] = {batch.user: [] for batch in batches}
        for output in self.push_many(batches):
            outputs[output.user].append(output)
        for user in list(outputs):
            yield from outputs.pop(user)
            yield from self.flush_user(user)

    def _note_user(self, user: str | None) -> None:
        self.recent.pop(user, None)
        self.recent[user] = None
        self.unsaved.add(user)

    def _process_users(self, position: int, batches: Sequence[Batch]) -> Iterator[Batch]:
        """Let a stage process batches of different users."""
        stage, states = self._stages[position], self._list_states(position, batches)
        if isinstance(stage, ProcessesUsers) and len(batches) > 1:
            yield from chain.from_iterable(stage.process_users(batches, states))
        else:
            for batch, state in zip(batches, states, strict=True):
                yield from take_outputs(stage, stage.process(batch, state))

    def _take_history(self, batch: Batch) -> Batch:
        """Add features to the training events of a batch, and keep them for `train-ae`."""
        if not isinstance(batch, Events) or batch.history is None:
            return batch
        self._histories[batch.user] = add_features(
            self._feature_stages, batch.user, batch.history, self.context
        )
        return replace(batch, history=None)

    def _give_history(self, batch: Batch) -> Batch:
        """Return the first batch of a user with the training events."""
        history = self._histories.pop(batch.user, None)
        if history is None or not isinstance(batch, Events):
            return batch
        return replace(batch, history=history)

    def restore(self, states: SavedStates) -> None:
        """Take over saved states, for users that come next. States of other chains are left out."""
        names = set(self.segment.names)
        self.states.saved.update((key, data) for key, data in states.items() if key.stage in names)

    def take_changes(self) -> dict[StateKey, bytes]:
        """Encode the states that have changed since the last call, on an unbounded input."""
        changed: dict[StateKey, bytes] = {}
        for stage, name in zip(self._stages, self.segment.names, strict=True):
            users = self.unsaved if stage.scope == "keyed" else {None} if self.unsaved else set()
            for user in users:
                state = self.states.live.get(user, {}).get(name)
                if isinstance(state, State):
                    changed[StateKey(name, user)] = encode_state(state)
        self.unsaved = set()
        return changed

    def evict(self, max_users: int) -> list[str | None]:
        """Drop the live states of users who have not come for longest, once they are saved.

        Args:
            max_users: Number of users whose states stay.

        Returns:
            The users.
        """
        return self.drop(list(self.recent)[: max(0, len(self.recent) - max_users)])

    def drop(self, users: Iterable[str | None]) -> list[str | None]:
        """Drop the live states of some users, once they are saved.

        Returns:
            The users whose states are dropped: not those for whom a stage holds events.
        """
        keyed = {
            name: stage
            for stage, name in zip(self._stages, self.segment.names, strict=True)
            if stage.scope == "keyed"
        }
        evicted: list[str | None] = []
        for user in users:
            states = self.states.live.get(user, {})
            if (
                user in self.recent
                and user not in self.unsaved
                and all(
                    _can_drop(keyed[name], states[name]) for name in keyed.keys() & states.keys()
                )
            ):
                for name in keyed:
                    self.states.pop(StateKey(name, user))
                del self.recent[user]
                evicted.append(user)
        return evicted

    def flush_user(self, user: str | None) -> list[Batch]:
        """End the events of a user: flush all stages, from the first to the last."""
        return self._flush([user])

    def flush(self) -> list[Batch]:
        """End the input: flush all stages for all users, from the first to the last."""
        return self._flush(None)

    def run(
        self, batches: Iterable[Batch], store: StateStore | None = None
    ) -> Generator[Batch, None, None]:
        """Push a whole stream through, then flush.

        Args:
            batches: The stream.
            store: Gives the saved states of each user, and takes over the changed ones.
        """
        restored: set[str | None] = set()
        for batch in batches:
            if store is not None and batch.user not in restored:
                restored.add(batch.user)
                # A stage may hold batches back, so a later stage may need a state much later.
                self.states.saved.update(
                    (key, data)
                    for key, data in store.load([batch.user]).items()
                    if key.stage in self._saved_names
                )
            yield from self.push(batch)
        yield from self.flush()
        if store is not None:
            store.save(self.changed)

    def _switch_user(self, position: int, user: str | None) -> list[Batch]:
        """Flush the last user's state of a stage when another user's batch arrives."""
        last, outputs = self._users[position], list[Batch]()
        if not self.context.unbounded and last is not _NO_USER_YET and last != user:
            outputs = self._flush_stage(position, [last])  # type: ignore[list-item]  # a user
        self._users[position] = user
        return outputs

    def _flush(self, users: list[str | None] | None) -> list[Batch]:
        return [
            output
            for position in range(len(self._stages))
            for batch in self._flush_stage(position, users)
            for output in self.push(batch, position + 1)
        ]

    def _flush_stage(self, position: int, users: list[str | None] | None) -> list[Batch]:
        """Flush the states of a stage and release them; for None, of all users with a state."""
        stage, name = self._stages[position], self.segment.names[position]
        if stage.scope != "keyed":
            return take_outputs(stage, stage.flush(self._state(position, None)), "flush")
        outputs: list[Batch] = []
        for user in self.states.users(name) if users is None else users:
            key = StateKey(name, user)
            if not self.states.has(key):
                continue
            state = self.states.pop(key)
            outputs += take_outputs(stage, stage.flush(state), "flush")
            if self.segment.saves and isinstance(state, State) and not stage.needs.per_run:
                self.changed[key] = encode_state(state)
        self._users[position] = _NO_USER_YET
        return outputs

    def _list_states(self, position: int, batches: Sequence[Batch]) -> list[Any]:
        """Return the state of a stage for each batch; as `_state`, but faster if it is open."""
        name, live = self.segment.names[position], self.states.live
        if self._stages[position].scope != "keyed":
            return [self._state(position, None)] * len(batches)
        return [
            known[name]
            if (known := live.get(batch.user)) is not None and name in known
            else self._state(position, batch.user)
            for batch in batches
        ]

    def _state(self, position: int, user: str | None) -> Any:  # noqa: ANN401 - each stage has its own
        stage = self._stages[position]
        key = StateKey(self.segment.names[position], user if stage.scope == "keyed" else None)
        return self.states.get(key, lambda: stage.open(replace(self.context, user=key.user)))


def split_repeated(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Cut batches into consecutive parts in which no user occurs twice."""
    part: dict[str | None, Batch] = {}
    for batch in batches:
        if batch.user in part:
            yield list(part.values())
            part = {}
        part[batch.user] = batch
    if part:
        yield list(part.values())


def _can_drop(stage: Transform, state: object) -> bool:
    """Return whether the state of a stage can be restored, or opened again."""
    return state is None or isinstance(state, State) or stage.needs.reopens


class WaitStoppedError(KeyboardInterrupt):
    """The first signal came while a stage waited for a service."""


class GracefulShutdown(Generic[ItemT]):
    """An iterator that the first Ctrl+C or SIGTERM ends, so that work in progress is finished.

    A second signal raises `KeyboardInterrupt`. Outside the main thread, where Python delivers no
    signals, the iterator is passed through.

    Attributes:
        stream: The items.
        stopped: Whether a signal ended it.
    """

    def __init__(self, stream: Iterator[ItemT]) -> None:
        self.stream = stream
        self.stopped = False
        self._waiting = False

    def __iter__(self) -> Iterator[ItemT]:
        with _install_handler(self._on_signal):
            while not self.stopped:
                self._waiting = True
                try:
                    item = next(self.stream)
                except (StopIteration, KeyboardInterrupt):
                    return
                except BaseException:
                    # In a callback of polars, the interrupt becomes an exception of polars.
                    if self.stopped:
                        return
                    raise
                finally:
                    self._waiting = False
                yield item

    def wait(self, seconds: float) -> None:
        """Wait, while an item is processed.

        Raises:
            WaitStoppedError: A signal came, before the wait or in it.
        """
        self._waiting = True
        try:
            if not self.stopped:
                time.sleep(seconds)
                return
        except KeyboardInterrupt as error:
            raise WaitStoppedError from error
        finally:
            self._waiting = False
        raise WaitStoppedError

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True
        logger.warning(STOPPING_MESSAGE, extra=NOTICE)
        if self._waiting:
            raise KeyboardInterrupt


@contextmanager
def _install_handler(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, old_handler in previous.items():
            signal.signal(number, old_handler)
