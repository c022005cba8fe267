"""What in a recording only says that it is one: names of tools, addresses that nobody has.

A detector that reads `stratus-red-team` catches the test, not the technique.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from typing import Any

import numpy as np

from morpheus.models.training import derive_user_seed

NEUTRAL = "ops"
"""Stands where a name told on the recording."""
BROWSER = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/127.0.0.0 Safari/537.36"
)
SCRIPT = "aws-sdk-go-v2/1.30.3 os/linux lang/go#1.22.5 md/GOOS#linux md/GOARCH#amd64"
_RECORDERS = re.compile(
    r"stratus[-_ ]?red[-_ ]?team|stratus|red[-_ ]?team|terraform|hashicorp|grimoire|pulumi"
    r"|malicious|backdoor|attacker|evil",
    re.IGNORECASE,
)
_PRODUCT = re.compile(r"\([^)]*\)|\S+")
_NUMERIC = re.compile(r"[\d.]+|[0-9a-fA-F]*:[0-9a-fA-F:.]+")


def tells(text: str) -> bool:
    """Whether a text names a tool that records attacks, or calls itself an attack.

    >>> tells("arn:aws:iam::123456789012:user/Stratus-Red-Team-user"), tells("AttachUserPolicy")
    (True, False)
    """
    return _RECORDERS.search(text) is not None


def neutral(text: str) -> str:
    """Call what tells on the recording by another name.

    >>> neutral("stratus-red-team-get-usr-data-role")
    'ops-get-usr-data-role'
    """
    return _RECORDERS.sub(NEUTRAL, text)


def clean_agent(agent: str, *, browser: bool) -> str:
    """Take the recorder's products, and their comments, out of a user agent.

    What is left of it is what an intruder would have had; where nothing is left, a plain browser or
    program stands in.

    >>> clean_agent("APN/1.0 Terraform/1.1 (+https://terraform.io) aws-sdk-go/1", browser=False)
    'APN/1.0 aws-sdk-go/1'
    >>> clean_agent("stratus-red-team_1b9c", browser=True)[:11]
    'Mozilla/5.0'
    """
    left = " ".join(part for part in _PRODUCT.findall(agent) if not tells(part))
    return left or (BROWSER if browser else SCRIPT)


def is_numeric(address: str) -> bool:
    """Whether an address is a number, as opposed to the name of a service."""
    return _NUMERIC.fullmatch(address) is not None


def public(address: str, seed: int) -> str:
    """Give an address that some host can have: the same one unless it is reserved or malformed.

    >>> public("8.8.8.8", 0), public("AWS Internal", 0)
    ('8.8.8.8', 'AWS Internal')
    >>> public("203.0.113.9", 0) == public("203.0.113.9", 0) != public("253.0.0.07", 0)
    True
    """
    if not is_numeric(address) or is_public(address):
        return address
    rng = np.random.default_rng(derive_user_seed(seed, address))
    while True:
        drawn = str(IPv4Address(int(rng.integers(1 << 24, 224 << 24))))
        if is_public(drawn):
            return drawn


def is_public(address: str) -> bool:
    """Whether an address can be met on the internet.

    >>> is_public("8.8.8.8"), is_public("192.0.2.1"), is_public("035.249.253.232")
    (True, False, False)
    """
    try:
        return ip_address(address).is_global
    except ValueError:
        return False


def rewrite(value: Any, text: Callable[[str], str]) -> Any:  # noqa: ANN401 - any JSON value
    """Rewrite every text in a JSON value; names of fields stay.

    >>> rewrite({"a": ["x", 1, {"b": "y"}]}, str.upper)
    {'a': ['X', 1, {'b': 'Y'}]}
    """
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list):
        return [rewrite(one, text) for one in value]
    if isinstance(value, dict):
        return {name: rewrite(one, text) for name, one in value.items()}
    return value
