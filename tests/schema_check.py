"""What breaks a finding or a document, by the parts of the schemas beside the tests of sinks."""

import json
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

SCHEMAS = Path(__file__).parent / "sinks" / "schemas"
OCSF = json.loads((SCHEMAS / "ocsf-1.8.json").read_text())
ECS = json.loads((SCHEMAS / "ecs-8.json").read_text())


def is_ip(value):
    try:
        return bool(ip_address(value))
    except ValueError:
        return False


def is_date(value):
    return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None


def is_text(value):
    return isinstance(value, str)


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


PLAIN = {
    "string": is_text,
    "integer": is_integer,
    "timestamp": lambda value: is_integer(value) and value > 1e12,
    "float": lambda value: isinstance(value, float) or is_integer(value),
    "boolean": lambda value: isinstance(value, bool),
    "ip": is_ip,
    "unmapped": lambda value: isinstance(value, dict) and value != {},
    "keyword": is_text,
    "text": is_text,
    "date": is_date,
    "long": is_integer,
    "object": lambda value: isinstance(value, dict) and value != {},
}


def ocsf_faults(value, kind="detection_finding", path=""):
    """What is wrong with an object, each with its path.

    >>> ocsf_faults({"uid": 1}, "related_event")
    ['.uid: 1 is no string']
    """
    if kind.endswith("[]"):
        if not isinstance(value, list) or not value:
            return [f"{path}: no array, or empty"]
        places = enumerate(value)
        return [f for i, one in places for f in ocsf_faults(one, kind[:-2], f"{path}[{i}]")]
    if kind in PLAIN:
        return [] if PLAIN[kind](value) else [f"{path}: {value!r} is no {kind}"]
    schema = OCSF[kind]
    known = schema["attributes"]
    faults = [f"{path}.{name}: unknown" for name in value.keys() - known]
    faults += [f"{path}.{n}: missing" for n in schema.get("required", []) if n not in value]
    one_of = schema.get("at_least_one")
    if one_of and not set(one_of) & value.keys():
        faults.append(f"{path}: none of {one_of}")
    for name, allowed in schema.get("enums", {}).items():
        if name in value and value[name] not in allowed:
            faults.append(f"{path}.{name}: {value[name]} is none of {allowed}")
    for name in value.keys() & known:
        faults += ocsf_faults(value[name], known[name], f"{path}.{name}")
    return faults


def leaves(value, path=""):
    """Dotted names of a document's fields, with their values."""
    for name, one in value.items():
        if isinstance(one, dict):
            yield from leaves(one, f"{path}{name}.")
        else:
            yield path + name, one


def ecs_faults(document):
    """What is wrong with a document.

    >>> [fault for fault in ecs_faults({"event": {"kind": "alarm"}}) if "kind" in fault]
    ['event.kind: alarm is not allowed']
    """
    found = dict(leaves(document))
    faults = [
        f"{n}: missing" for n, about in ECS.items() if about.get("required") and n not in found
    ]
    for name, value in found.items():
        about = ECS.get(name) or ECS.get(f"{name.partition('.')[0]}.*")
        if about is None:
            faults.append(f"{name}: unknown")
            continue
        if about.get("array", False) != isinstance(value, list):
            faults.append(f"{name}: one value or several")
        for one in value if isinstance(value, list) else [value]:
            if not PLAIN[about["type"]](one):
                faults.append(f"{name}: {one!r} is no {about['type']}")
            elif one not in about.get("allowed", [one]):
                faults.append(f"{name}: {one} is not allowed")
    return faults
