"""A technique's records, retold as a victim's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from uuid import UUID

import numpy as np

from morpheus.models.training import derive_user_seed
from morpheus.replay.techniques import Record, Technique
from morpheus.replay.tell_tales import clean_agent, neutral, public, rewrite
from morpheus.replay.victims import Values, Victim, account_of, name_of

STRANGER = "111122223333"
"""Account of a victim whose log names none."""
_KEPT = ("eventVersion", "eventTime", "eventSource", "eventName", "eventType", "userIdentity")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_KEY = re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b")
_UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")


@dataclass(frozen=True)
class Retelling:
    """How the records of a technique become those of a victim.

    Wherever the intruder's account, name, access key or region stand in a record, the victim's
    stand instead; every other key and UUID becomes a fresh one, always the same for the same.

    Attributes:
        technique: Whose records.
        victim: In whose name.
        persona: Who the victim is on that day; see `Victim.persona`.
        seed: Of the fresh ids.
    """

    technique: Technique
    victim: Victim
    persona: Values
    seed: int

    def records(self) -> Iterator[Record]:
        """The records, in order; times and identities, which others set, as they were."""
        for record in self.technique.records:
            told = {n: v if n in _KEPT else rewrite(v, self._text) for n, v in record.items()}
            yield told | self._client(record) | {"awsRegion": self._region(record)}

    def fresh(self, old: str) -> np.random.Generator:
        """What draws the stand-in of an id."""
        return np.random.default_rng(derive_user_seed(self.seed, f"{self.victim.user}\n{old}"))

    def _client(self, record: Record) -> Record:
        browser = record["eventSource"].startswith("signin.")
        agent, address = (str(record.get(n) or "") for n in ("userAgent", "sourceIPAddress"))
        return {
            "userAgent": clean_agent(agent, browser=browser),
            "sourceIPAddress": public(address, self.seed) or None,
        }

    def _region(self, record: Record) -> str:
        return self.victim.region_of(record["eventSource"])

    def _text(self, text: str) -> str:
        for region in self._regions:
            text = text.replace(region, self.victim.region)
        text = self._names.sub(lambda found: self._known[found[0]], text)
        return _UUID.sub(self._uuid, _KEY.sub(self._key, neutral(text)))

    def _key(self, found: re.Match[str]) -> str:
        if found[0] in {*self.persona.values()}:
            return found[0]
        letters = self.fresh(found[0]).integers(len(_LETTERS), size=16)
        return found[0][:4] + "".join(_LETTERS[at] for at in letters)

    def _uuid(self, found: re.Match[str]) -> str:
        return str(UUID(bytes=self.fresh(found[0]).bytes(16), version=4))

    @cached_property
    def _regions(self) -> list[str]:
        """The intruder's regions, longest first, so that none hides in another."""
        recorded = {str(one["awsRegion"]) for one in self.technique.records if "awsRegion" in one}
        return sorted(recorded, key=lambda region: (-len(region), region))

    @cached_property
    def _known(self) -> dict[str, str]:
        """What names the intruder -> what names the victim."""
        first = self.technique.records[0]["userIdentity"]
        account = account_of(self.persona) or STRANGER
        name = name_of(self.persona, self.victim.user)
        known: dict[str | None, str | None] = {first.get("userName"): name}
        for part in ("arn", "principalId", "accessKeyId"):
            known[first.get(part)] = self.persona.get(f"userIdentity{part}")
        for record in self.technique.records:
            known[record["userIdentity"].get("accountId")] = account
            known[record.get("recipientAccountId")] = account
        return {old: new for old, new in known.items() if old and new}

    @cached_property
    def _names(self) -> re.Pattern[str]:
        longest = sorted(self._known, key=lambda name: (-len(name), name))
        any_of = "|".join(map(re.escape, longest)) or r"(?!)"
        return re.compile(rf"(?<![\w-])(?:{any_of})(?![\w-])")
