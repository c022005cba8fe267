"""The inputs of the golden commands: small logs, the same bytes each time."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl

EXAMPLES = Path(__file__).parents[2] / "examples"
ACCOUNT = "123456789012"
FLEET = ("--users=40", "--days=18", "--training=14", "--rate=6", "--seed=7")
"""Forty users, whose events interleave in every file."""
START = datetime(2024, 5, 6, 8, tzinfo=UTC)
"""A Monday."""
USERS = ("ann", "bob", "carl", "dora", "emil")
LOCATIONS = (("Cork", "Munster", "IE"), ("Iasi", None, "RO"), ("Lyon", "Rhone", "FR"))
APPS = ("Mail", "Chat", "Wiki", "Payroll", "VPN")
BROWSERS = ("Edge 99", "Chrome 123", "Firefox 115")
TRAINING, SCORED = 70, 30
"""Sign-ins of each user."""
SESSION = ("Session", "Account", "Connected at", "Gateway", "Source IP", "Client OS",
           "Duration (min)", "Reason")  # fmt: skip
OCSF_USERS = "AROAU4X00000000000012"
"""The fleet's first twelve."""
HABITS = (0.8, 0.15, 0.05)
RARELY = 0.06

Record = dict[str, Any]


def build(folder: Path) -> None:
    """Write every input below a folder."""
    for part in ("input-data", "training-data"):
        shutil.copytree(EXAMPLES / "data" / part, folder / "lessons" / "data" / part)
    _fleet(folder / "fleet")
    _ocsf(folder / "fleet", folder / "ocsf")
    _messy(folder / "fleet", folder / "messy")
    _azure(folder / "azure")
    _duo(folder / "duo")
    _okta(folder / "okta")
    _vpn(folder / "vpn")
    _plain(folder / "plain")
    _lists(folder / "lists")
    _verdicts(folder / "verdicts")


def _fleet(folder: Path) -> None:
    forms = ("--form=json", "--form=csv", "--form=parquet")
    script = str(EXAMPLES / "make_fleet.py")
    command = [sys.executable, script, "--into", str(folder), *FLEET, *forms]
    subprocess.run(command, check=True, capture_output=True)


def _flat(fleet: Path, part: str) -> Iterator[dict[str, str]]:
    for path in sorted((fleet / "csv" / part).glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def _ocsf(fleet: Path, folder: Path) -> None:
    """The fleet's calls in OCSF: in Parquet as Security Lake lays them out, and as JSON lines."""
    for part in ("training", "scored"):
        days: dict[str, list[Record]] = {}
        for row in _flat(fleet, part):
            if row["userIdentityprincipalId"] < OCSF_USERS:
                days.setdefault(row["eventTime"][:10], []).append(_call(row))
        for day, calls in days.items():
            place = Path("region=eu-west-1", f"accountId={ACCOUNT}")
            place = folder / part / place / f"eventDay={day.replace('-', '')}"
            place.mkdir(parents=True)
            frame = pl.DataFrame(calls, infer_schema_length=None)
            frame.write_parquet(place / "calls.gz.parquet")
        if part == "scored":
            _write_lines(
                folder / "scored.jsonl.gz", (each for day in days.values() for each in day)
            )


def _call(row: dict[str, str]) -> Record:
    time = datetime.fromisoformat(row["eventTime"])
    return {
        "metadata": {
            "uid": row["eventID"],
            "product": {"name": "CloudTrail", "vendor_name": "AWS"},
            "version": "1.1.0",
        },
        "time": int(time.timestamp()) * 1000,
        "class_uid": 6003,
        "class_name": "API Activity",
        "activity_name": "Read" if row["eventName"].startswith(("Get", "List")) else "Other",
        "status": "Failure" if row["errorCode"] else "Success",
        "actor": {
            "user": {
                "type": "AssumedRole",
                "uid": row["userIdentityarn"],
                "uid_alt": row["userIdentityprincipalId"],
                "account": {"uid": ACCOUNT},
                "credential_uid": row["userIdentityaccessKeyId"],
            },
            "session": {"is_mfa": False},
        },
        "api": {
            "operation": row["eventName"],
            "service": {"name": row["eventSource"]},
            "response": {"error": row["errorCode"] or None},
        },
        "src_endpoint": {"ip": row["sourceIPAddress"]},
        "http_request": {"user_agent": row["userAgent"]},
        "cloud": {"region": "eu-west-1", "provider": "AWS"},
    }


def _messy(fleet: Path, folder: Path) -> None:
    """Two days of the fleet: records delivered twice, without a user, without a time, cut short."""
    records: list[Record] = []
    for path in sorted((fleet / "json" / "scored").rglob("*.json.gz"))[:4]:
        records += json.loads(gzip.decompress(path.read_bytes()))["Records"]
    lines = []
    for number, record in enumerate(records):
        lines.append(json.dumps(record))
        if number % 17 == 0:
            lines.append(lines[-1])
        if number % 41 == 0:
            lines.append(json.dumps({**record, "eventID": f"no-user-{number}", "userIdentity": {}}))
        if number % 59 == 0:
            lines.append(json.dumps({**record, "eventID": f"no-time-{number}", "eventTime": ""}))
        if number % 97 == 0:
            lines.append(lines[-1][:100])
        if number % 11 == 0:
            stranger = json.loads(json.dumps(record))
            stranger["userIdentity"]["sessionContext"]["sessionIssuer"]["userName"] = "stranger"
            lines.append(json.dumps({**stranger, "eventID": f"stranger-{number}"}))
    folder.mkdir()
    _write_gz(folder / "records.jsonl.gz", "\n".join(lines))


def _signs_in() -> Iterator[tuple[int, Random, str, datetime, bool]]:
    """Who signs in, and when: users take turns. True in the last part, to be scored."""
    for number in range((TRAINING + SCORED) * len(USERS)):
        dice = Random(f"sign-in {number}")  # noqa: S311 - made-up logs, not secrets
        turn, user = divmod(number, len(USERS))
        time = START + timedelta(hours=5 * turn, minutes=11 * user + dice.randrange(10))
        yield number, dice, USERS[user], time, turn >= TRAINING


def _habit(dice: Random, values: tuple[Any, ...], user: str) -> Any:
    """Mostly the user's own value, sometimes the next ones."""
    own = USERS.index(user)
    step = dice.choices(range(3), HABITS)[0]
    return values[(own + step) % len(values)]


def _azure(folder: Path) -> None:
    """Entra ID sign-ins: diagnostic settings to learn from, and Microsoft Graph's form to score."""
    parts: dict[bool, list[Record]] = {False: [], True: []}
    for number, dice, user, time, scored in _signs_in():
        city, state, country = _habit(dice, LOCATIONS, user)
        failed = dice.random() < RARELY
        parts[scored].append(
            {
                "id": f"00000000-0000-0000-0000-{number:012}",
                "createdDateTime": f"{time:%Y-%m-%dT%H:%M:%S}Z",
                "userPrincipalName": f"{user}@x.org",
                "appDisplayName": _habit(dice, APPS, user),
                "clientAppUsed": "Browser",
                "ipAddress": f"198.51.100.{USERS.index(user)}",
                "status": {
                    "errorCode": 50126 if failed else 0,
                    "failureReason": "Invalid password." if failed else "Other.",
                },
                "deviceDetail": {
                    "browser": _habit(dice, BROWSERS, user),
                    "displayName": f"PC-{user}",
                    "operatingSystem": "Linux" if user < "c" else "Windows 10",
                },
                "location": {"city": city, "state": state, "countryOrRegion": country},
            }
        )
    around = {"category": "SignInLogs", "correlationId": "other"}
    settings = ({**around, "time": r["createdDateTime"], "properties": r} for r in parts[False])
    _write_lines(folder / "training.jsonl.gz", settings)
    (folder / "signins.json").write_text(json.dumps({"value": parts[True]}, indent=1))


def _duo(folder: Path) -> None:
    """Duo authentications: lines to learn from, and a list to score."""
    parts: dict[bool, list[Record]] = {False: [], True: []}
    for number, dice, user, time, scored in _signs_in():
        city, state, country = _habit(dice, LOCATIONS, user)
        denied = dice.random() < RARELY
        parts[scored].append(
            {
                "txid": f"00000000-0000-0000-0000-{number:012}",
                "isotimestamp": f"{time:%Y-%m-%dT%H:%M:%S}.351346+00:00",
                "event_type": "authentication",
                "user": {"key": "DU", "name": user, "groups": ["a"]},
                "application": {"key": "DI", "name": _habit(dice, APPS, user)},
                "factor": "duo_push",
                "result": "denied" if denied else "success",
                "reason": "no_response" if denied else "user_approved",
                "access_device": {
                    "browser": _habit(dice, BROWSERS, user).split()[0],
                    "os": "Mac OS X" if user < "c" else "Windows",
                    "ip": f"203.0.113.{USERS.index(user)}",
                    "location": {"city": city, "state": state, "country": country},
                },
                "auth_device": {"name": f"phone of {user}", "ip": "198.51.100.3"},
            }
        )
    _write_lines(folder / "training.jsonl.gz", parts[False])
    (folder / "authentications.json").write_text(json.dumps(parts[True]))


def _okta(folder: Path) -> None:
    """Okta's System Log, as its API answers."""
    kinds = ("user.session.start", "user.authentication.sso", "user.mfa.factor.update")
    events = []
    for number, dice, user, time, _ in _signs_in():
        city, state, country = _habit(dice, LOCATIONS, user)
        failed = dice.random() < RARELY
        events.append(
            {
                "uuid": f"44aeb388-08b4-11ef-9cec-{number:012}",
                "published": f"{time:%Y-%m-%dT%H:%M:%S}.123Z",
                "eventType": dice.choices(kinds, (5, 4, 1))[0],
                "actor": {"id": f"00u{user}", "type": "User", "alternateId": f"{user}@x.org"},
                "outcome": {
                    "result": "FAILURE" if failed else "SUCCESS",
                    "reason": "INVALID_CREDENTIALS" if failed else None,
                },
                "client": {
                    "zone": "null",
                    "device": "Computer",
                    "ipAddress": f"203.0.{'CIL'.index(city[0])}.{USERS.index(user)}",
                    "userAgent": {"os": "Linux", "rawUserAgent": _habit(dice, BROWSERS, user)},
                    "geographicalContext": {"city": city, "state": state, "country": country},
                },
                "target": [{"type": "AppInstance", "displayName": _habit(dice, APPS, user)}],
            }
        )
    _write_gz(folder / "log.json.gz", json.dumps(events))


def _vpn(folder: Path) -> None:
    """Sessions of a gateway, as a spreadsheet, and the schema of examples/ that describes them."""
    folder.mkdir()
    with (folder / "sessions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(SESSION)
        for number, dice, user, time, _ in _signs_in():
            late = dice.random() < RARELY
            table.writerow(
                (
                    number,
                    "svc-backup" if user == "emil" else f"CORP\\{user.title()}",
                    f"{time:%d.%m.%Y} {'03:12' if late else f'{time:%H:%M}'}",
                    _habit(dice, ("gw1", "gw2", "gw3"), user),
                    f"192.0.{int(late)}.{USERS.index(user)}",
                    _habit(dice, ("Linux", "macOS", "Windows"), user),
                    600 if late else 20 + dice.randrange(40),
                    "Idle timeout" if late else "User logout",
                )
            )
    shutil.copy(EXAMPLES / "schemas" / "vpn.toml", folder)


def _plain(folder: Path) -> None:
    """A log that nothing but a list of columns describes, as Parquet."""
    rows = [
        {"when": time, "who": user, "page": _habit(dice, APPS, user), "size": dice.randrange(9999)}
        for _, dice, user, time, _ in _signs_in()
    ]
    folder.mkdir()
    pl.DataFrame(rows).write_parquet(folder / "visits.parquet")
    (folder / "columns.txt").write_text("page\nsize\nlogcount\nhourkind\nnew:page\n")


def _lists(folder: Path) -> None:
    """Lists of feature columns and of score columns."""
    derived = (
        "eventSource eventName sourceIPAddress userAgent errorCode logcount locincrement "
        "appincrement hourofweek hourkind agentfamily addresskind addressnetwork errorclass "
        "verbclass new:eventName new:sourceIPAddress new:addressnetwork new:agentfamily"
    )
    folder.mkdir()
    (folder / "derived.txt").write_text("\n".join([*derived.split(), ""]))
    (folder / "labels.txt").write_text("ae_anomaly_score\nzscore\nrisk\n")


def _verdicts(folder: Path) -> None:
    """What an analyst says of three incidents of the lessons, and suppressions written by hand."""
    record_value = (
        ("52f0c9d1a7b3e846", "role-g", "expected", "09T20:26:45Z", "09T20:26:45Z", 1,
         {"requestParametersinstanceType": "t3.micro", "eventName": "RunInstances"}),
        ("0b1d63e8f2a94c75", "user123", "benign-new", "18T11:54:00Z", "18T11:55:00Z", 1,
         {"eventName": "DeleteRole"}),
        ("9c47aa05be18d362", "user123", "malicious", "18T11:52:00Z", "18T11:52:40Z", 2,
         {"eventName": "DeleteRole", "errorCode": "AccessDenied"}),
    )  # fmt: skip
    verdicts = [
        {
            "incident": incident,
            "user": user,
            "verdict": verdict,
            "note": "",
            "start": f"2024-05-{start}",
            "end": f"2024-05-{end}",
            "events": events,
            "columns": [{"column": name, "value": value} for name, value in columns.items()],
        }
        for incident, user, verdict, start, end, events, columns in record_value
    ]
    about = {"format": "morpheus-verdicts", "version": 1, "made": "2024-05-20T10:00:00Z"}
    folder.mkdir()
    (folder / "verdicts.json").write_text(json.dumps({**about, "verdicts": verdicts}))
    (folder / "by-hand.toml").write_text(
        'format = "morpheus-suppressions"\nversion = 1\n\n'
        '[[suppression]]\nwhere.eventName = ["RunInstances", "StartInstances"]\n'
        'users = ["role-g", "user123"]\nuntil = 2024-05-22T12:00:00Z\nreason = "a migration"\n\n'
        '[[suppression]]\nwhere.eventSource = "iam.amazonaws.com"\nwhere.errorCode = ""\n'
        'users = ["user123"]\nuntil = 2024-06-30\nreason = "cleaning up"\n'
    )


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    _write_gz(path, "\n".join(map(json.dumps, records)))


def _write_gz(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
