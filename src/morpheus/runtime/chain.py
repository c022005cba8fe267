"""A chain of transforms: batches are pushed through, each with its user's state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from morpheus.core.batch import Batch
from morpheus.core.stage import PreparesUsers, StageContext, Transform
from morpheus.core.state import State, StateKey, encode_state
from morpheus.runtime.states import KeyedStates, SavedStates

_NO_USER_YET = object()

UserBatches = list[Batch]
"""All batches of one user."""


def name_stages(stages: Iterable[Transform]) -> tuple[str, ...]:
    """Name each stage by its word and its number among the stages of that word.

    The names key states, so they stay the same when other stages are added to a pipeline.
    """
    seen: Counter[str] = Counter()
    names = []
    for stage in stages:
        seen[stage.name] += 1
        names.append(f"{stage.name}#{seen[stage.name]}")
    return tuple(names)


@dataclass(frozen=True)
class Segment:
    """Stages that run one after the other, as a value that any process can use.

    Attributes:
        stages: The stages, in order.
        names: Name of each stage, which keys its states; see `name_stages`.
        population: A sample of all users' histories, for stages that need it.
        unbounded: The input has no end, so users come again and again.
        drops_model: Batches leave without fingerprint and codes, which no later stage needs.
        saves: Changed states are wanted.
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
        """Make a segment of stages alone."""
        return cls(tuple(stages), name_stages(stages), unbounded=unbounded)

    @property
    def is_cpu_bound(self) -> bool:
        """Whether its users are worth a worker process each."""
        return any(stage.needs.cpu_bound for stage in self.stages)

    @property
    def users_per_bundle(self) -> int:
        """How many users its stages prefer to prepare together."""
        return max((stage.needs.users_per_bundle for stage in self.stages), default=1)

    def open(self, saved: SavedStates | None = None, resources: ExitStack | None = None) -> Chain:
        """Open the chain of its stages in this process.

        Args:
            saved: States to restore.
            resources: Closes what sinks open.
        """
        context = StageContext(
            unbounded=self.unbounded,
            population=self.population,
            cache=self.cache,
            resources=resources or ExitStack(),
        )
        return Chain(self, context, KeyedStates(saved or {}))


@dataclass
class Chain:
    """Pushes batches through the stages of a segment, and keeps the state of each stage and user.

    On a bounded input a user's batches come together: when the next user comes, the states of the
    last one are flushed, encoded if `Segment.saves`, and released. On an unbounded input users come
    again and again, and states stay live until the input ends.

    Attributes:
        segment: The stages.
        context: What stages are told when they are opened.
        states: The live states.
        changed: Encoded states of the users who are done, if `Segment.saves`.
    """

    segment: Segment
    context: StageContext
    states: KeyedStates
    changed: dict[StateKey, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stages = self.segment.stages
        self._users: list[object] = [_NO_USER_YET] * len(self._stages)
        # What a sink cannot open is told before anything is read.
        for position, stage in enumerate(self._stages):
            if stage.scope != "keyed":
                self._state(position, None)

    def prepare(self, groups: Sequence[UserBatches]) -> None:
        """Let the first stage work on several users together, before their batches are pushed."""
        if self._stages and isinstance(self._stages[0], PreparesUsers):
            users = [(self._state(0, group[0].user), group) for group in groups]
            self._stages[0].prepare(users)

    def push(self, batch: Batch) -> list[Batch]:
        """Push one batch through all stages; returns what comes out at the end."""
        batches = [batch]
        for position in range(len(self._stages)):
            batches = [out for each in batches for out in self._process(position, each)]
        return self._drop_models(batches)

    def flush_user(self, user: str | None) -> list[Batch]:
        """End a user's events: flush all stages, from the first to the last."""
        return self._flush_all([user])

    def flush(self) -> list[Batch]:
        """End the input: flush all stages for all users, from the first to the last."""
        return self._flush_all(None)

    def run(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Push batches through, then flush."""
        for batch in batches:
            yield from self.push(batch)
        yield from self.flush()

    def _flush_all(self, users: list[str | None] | None) -> list[Batch]:
        batches: list[Batch] = []
        for position in range(len(self._stages)):
            batches = [out for each in batches for out in self._process(position, each)]
            batches += self._flush_stage(position, users)
        return self._drop_models(batches)

    def _process(self, position: int, batch: Batch) -> Iterable[Batch]:
        stage, user = self._stages[position], batch.user
        out: list[Batch] = []
        if stage.scope == "keyed":
            last = self._users[position]
            if not self.context.unbounded and last is not _NO_USER_YET and last != user:
                out += self._flush_stage(position, [last])  # type: ignore[list-item]  # a user
            self._users[position] = user
        out += stage.process(batch, self._state(position, user))
        return out

    def _state(self, position: int, user: str | None) -> Any:  # noqa: ANN401 - each stage has its own
        stage = self._stages[position]
        key = StateKey(self.segment.names[position], user if stage.scope == "keyed" else None)
        return self.states.get(key, lambda: stage.open(replace(self.context, user=key.user)))

    def _flush_stage(self, position: int, users: list[str | None] | None) -> list[Batch]:
        """Flush the states of a stage and release them; of all users with a state for None."""
        stage, name = self._stages[position], self.segment.names[position]
        if stage.scope != "keyed":
            return list(stage.flush(self._state(position, None)))
        out: list[Batch] = []
        for user in self.states.users(name) if users is None else users:
            key = StateKey(name, user)
            if not self.states.has(key):
                continue
            state = self.states.pop(key)
            out += stage.flush(state)
            if self.segment.saves and isinstance(state, State) and not stage.needs.per_run:
                self.changed[key] = encode_state(state)
        self._users[position] = _NO_USER_YET
        return out

    def _drop_models(self, batches: list[Batch]) -> list[Batch]:
        if not self.segment.drops_model:
            return batches
        return [replace(batch, fingerprint=None, encoded=None) for batch in batches]
