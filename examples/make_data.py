"""Write the data of the notebooks: `python make_data.py [--seed N] [--into DIRECTORY]`.

The same seed gives the same bytes. The input of user123 starts 314 events before the intrusion.
Earlier events are training data.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random

from generator.events import Event, sort_by_time
from generator.role_g import ROLE_G
from generator.user123 import BREAK_IN, INTRUDER, USER123

SEED = 42
FIRST_DAY, DAYS = date(2024, 2, 5), 177
TRAINING = {"role-g": 1887, "user123": 2387}
INPUT = {"role-g": 314, "user123": 847}
BEFORE_BREAK_IN = 314
HEAD_START = timedelta(days=1)
"""The input of role-g starts this much earlier than the input of user123."""

ACCOUNT = "123456789012"
PRINCIPALS = {"role-g": "AROAU4XROLEG00000001", "user123": "AROAU4XUSER123000001"}
DETAILS = (
    "tlsDetailsclientProvidedHostHeader",
    "requestParametersownersSetitems",
    "requestParametersmaxResults",
    "requestParametersinstancesSetitems",
    "requestParametersmaxItems",
    "requestParametersinstanceType",
    "requestParametersroleArn",
    "requestParametersroleSessionName",
    "responseElementsassumedRoleUserassumedRoleId",
    "responseElementsassumedRoleUserarn",
    "responseElementsrequestId",
    "responseElementsinstancesSetitems",
    "responseElementsreservationId",
)


def main() -> None:
    """Parse the command line and write the four files."""
    parser = argparse.ArgumentParser(description="Write the data of the notebooks.")
    parser.add_argument("--seed", type=int, default=SEED, help="random seed")
    folder = Path(__file__).parent / "data"
    parser.add_argument("--into", type=Path, default=folder, help="output folder")
    arguments = parser.parse_args()
    write(arguments.into, arguments.seed)


def write(folder: Path, seed: int = SEED) -> None:
    """Write the training data and the input of both users to `folder`."""
    for user, (training, scored) in lesson_events(seed).items():
        write_events(folder / "training-data" / f"{user}.csv", user, training)
        write_events(folder / "input-data" / f"{user}.csv", user, scored)


def lesson_events(seed: int) -> dict[str, tuple[list[Event], list[Event]]]:
    """Return the training events and the input events of each user.

    Each user has a separate random generator. A change to one does not affect the other.
    """
    person = split_user123(Random(f"user123 {seed}"))  # noqa: S311 - made-up logs, not secrets
    start = person[1][0].when - HEAD_START
    return {"role-g": split_role_g(start, Random(f"role-g {seed}")), "user123": person}  # noqa: S311 - the same


def split_user123(random: Random) -> tuple[list[Event], list[Event]]:
    """Return user123's events before and after the split; the latter include the intruder's."""
    own = USER123.events(FIRST_DAY, DAYS, random)
    intrusion = INTRUDER.events(BREAK_IN, random)
    num_before = sum(event.when < BREAK_IN for event in own)
    first = num_before - BEFORE_BREAK_IN
    last = first + INPUT["user123"] - len(intrusion)
    training = own[first - TRAINING["user123"] : first]
    return training, sort_by_time([*own[first:last], *intrusion])


def split_role_g(start: datetime, random: Random) -> tuple[list[Event], list[Event]]:
    """Return the role's events before `start`, and from `start` on."""
    own = ROLE_G.events(FIRST_DAY, DAYS, random)
    first = sum(event.when < start for event in own)
    return own[first - TRAINING["role-g"] : first], own[first : first + INPUT["role-g"]]


def write_events(path: Path, user: str, events: Sequence[Event]) -> None:
    """Write events as CSV. The first column has no name and holds the row number."""
    rows = [make_row(number, user, event) for number, event in enumerate(events)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def make_row(number: int, user: str, event: Event) -> dict[str, str]:
    """Return an event as a flattened CloudTrail record."""
    call, role = event.call, PRINCIPALS[user]
    arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/{user}/{event.origin.session}"
    return {
        "": str(number),
        "eventID": str(number),
        "eventTime": f"{event.when:%Y-%m-%dT%H:%M:%SZ}",
        "userIdentityaccountId": f"Account-{ACCOUNT}",
        "eventSource": f"{call.service}.amazonaws.com",
        "eventName": call.name,
        "sourceIPAddress": event.origin.address,
        "userAgent": event.origin.tool.agent,
        "userIdentitytype": "AssumedRole",
        "apiVersion": call.version,
        "userIdentityprincipalId": f"{role}:{event.origin.session}",
        "userIdentityarn": arn,
        "userIdentityaccessKeyId": event.origin.tool.key,
        "userIdentitysessionContextsessionIssueruserName": user,
        **error_columns(event, arn),
        **{column: event.details.get(column, "") for column in DETAILS},
        DETAILS[0]: call.host,
    }


def error_columns(event: Event, arn: str) -> dict[str, str]:
    """Return the error columns; empty for a successful call."""
    if event.error is None:
        return {"errorCode": "", "errorMessage": ""}
    action = f"{event.call.service}:{event.call.name}"
    message = event.error.message.format(arn=arn, action=action)
    return {"errorCode": event.error.code, "errorMessage": message}


if __name__ == "__main__":
    main()
