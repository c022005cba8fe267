"""Calls to the cloud and their errors, as CloudTrail names them."""

from __future__ import annotations

from random import Random

from generator.events import Call, Error

REGION = "us-west-2"
PARTNER = "210987654321"
"""The account whose roles are assumed."""

DENIED = Error("AccessDenied", "User: {arn} is not authorized to perform: {action}")
NOT_FOUND = Error("Client.InvalidInstanceID.NotFound", "The instance ID does not exist")
NO_KEY = Error("NoSuchKey", "The specified key does not exist.")
NO_STACK = Error("ValidationError", "Stack does not exist")
THROTTLED = Error("ThrottlingException", "Rate exceeded")


def ec2(name: str, **details: tuple[str, ...]) -> Call:
    """Return a call to EC2."""
    return Call("ec2", name, "2016-11-15", details=tuple(details.items()))


def iam(name: str, **details: tuple[str, ...]) -> Call:
    """Return a call to IAM."""
    return Call("iam", name, "2010-05-08", details=tuple(details.items()))


def s3(name: str) -> Call:
    """Return a call to S3, which does not log an API version."""
    return Call("s3", name, host=f"photos-{REGION}.s3.amazonaws.com")


def regional(service: str, name: str, version: str = "", **details: tuple[str, ...]) -> Call:
    """Return a call to a service that logs its regional host name."""
    return Call(service, name, version, f"{service}.{REGION}.amazonaws.com", tuple(details.items()))


PAGES = {"requestParametersmaxResults": ("50", "100", "1000")}
ITEMS = {"requestParametersmaxItems": ("100", "1000")}


def instances(count: int) -> tuple[str, ...]:
    """Return ids of `count` instances. A shorter list is the start of a longer one."""
    random = Random("instances")  # noqa: S311 - made-up names, not secrets
    return tuple(f"i-0{random.getrandbits(64):016x}" for _ in range(count))


WEB = instances(6)
LAUNCH = ec2(
    "RunInstances",
    requestParametersinstanceType=("t3.micro", "t3.medium"),
    responseElementsrequestId=("{new}",),
    responseElementsinstancesSetitems=("i-0{new}",),
    responseElementsreservationId=("r-0{new}",),
)


def assume(role: str) -> Call:
    """Return a call that assumes a role. Each session has a new name."""
    return regional(
        "sts",
        "AssumeRole",
        "2011-06-15",
        requestParametersroleArn=(f"arn:aws:iam::{PARTNER}:role/{role}",),
        requestParametersroleSessionName=("{new}",),
        responseElementsassumedRoleUserassumedRoleId=("AROAU4XPARTNER000001:{new}",),
        responseElementsassumedRoleUserarn=(f"arn:aws:sts::{PARTNER}:assumed-role/{role}/{{new}}",),
    )
