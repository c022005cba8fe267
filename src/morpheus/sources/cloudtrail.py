"""from-cloudtrail: AWS CloudTrail in every form that one has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec
import polars as pl

from morpheus.errors import UsageError
from morpheus.records import Events, Summary
from morpheus.sources.arrivals import Arrivals
from morpheus.sources.documents import Undecoded, encode
from morpheus.sources.files import LogFiles
from morpheus.sources.intake import Intake
from morpheus.sources.reader import LogFormat
from morpheus.sources.source import Source
from morpheus.stage import option

EMBEDDED = ("eventJson", "CloudTrailEvent")
"""Where CloudTrail Lake and LookupEvents keep the whole record, as text."""

PATHS = (
    "eventVersion",
    "userIdentity.type",
    "userIdentity.principalId",
    "userIdentity.arn",
    "userIdentity.accountId",
    "userIdentity.accessKeyId",
    "userIdentity.userName",
    "userIdentity.invokedBy",
    "userIdentity.identityProvider",
    "userIdentity.onBehalfOf.userId",
    "userIdentity.onBehalfOf.identityStoreArn",
    "userIdentity.credentialId",
    "userIdentity.sessionContext.sessionIssuer.type",
    "userIdentity.sessionContext.sessionIssuer.principalId",
    "userIdentity.sessionContext.sessionIssuer.arn",
    "userIdentity.sessionContext.sessionIssuer.accountId",
    "userIdentity.sessionContext.sessionIssuer.userName",
    "userIdentity.sessionContext.webIdFederationData.federatedProvider",
    "userIdentity.sessionContext.attributes.creationDate",
    "userIdentity.sessionContext.attributes.mfaAuthenticated",
    "userIdentity.sessionContext.sourceIdentity",
    "userIdentity.sessionContext.ec2RoleDelivery",
    "eventTime",
    "eventSource",
    "eventName",
    "awsRegion",
    "sourceIPAddress",
    "userAgent",
    "errorCode",
    "errorMessage",
    "requestParameters.roleArn",
    "requestParameters.roleSessionName",
    "requestParameters.durationSeconds",
    "requestParameters.ownersSet.items",
    "requestParameters.maxResults",
    "requestParameters.instancesSet.items",
    "requestParameters.maxItems",
    "requestParameters.groupSet.items",
    "requestParameters.instanceType",
    "requestParameters.monitoring.enabled",
    "requestParameters.disableApiTermination",
    "requestParameters.ebsOptimized",
    "requestParameters.groupName",
    "requestParameters.userName",
    "requestParameters.policyArn",
    "requestParameters.policyName",
    "requestParameters.roleName",
    "requestParameters.bucketName",
    "requestParameters.key",
    "requestParameters.functionName",
    "requestParameters.secretId",
    "responseElements.assumedRoleUser.assumedRoleId",
    "responseElements.assumedRoleUser.arn",
    "responseElements.requestId",
    "responseElements.instancesSet.items",
    "responseElements.reservationId",
    "responseElements.ConsoleLogin",
    "additionalEventData.LoginTo",
    "additionalEventData.MobileVersion",
    "additionalEventData.MFAUsed",
    "requestID",
    "eventID",
    "readOnly",
    "resources",
    "eventType",
    "apiVersion",
    "managementEvent",
    "recipientAccountId",
    "sharedEventID",
    "vpcEndpointId",
    "vpcEndpointAccountId",
    "eventCategory",
    "sessionCredentialFromConsole",
    "tlsDetails.tlsVersion",
    "tlsDetails.cipherSuite",
    "tlsDetails.clientProvidedHostHeader",
)

CONTEXT = (
    "awsRegion",
    "recipientAccountId",
    "userIdentityuserName",
    "userIdentityinvokedBy",
    "userIdentitysessionContextsessionIssuerarn",
    "userIdentitysessionContextattributesmfaAuthenticated",
    "eventType",
    "eventCategory",
    "managementEvent",
    "readOnly",
    "vpcEndpointId",
    "responseElementsConsoleLogin",
    "additionalEventDataMFAUsed",
    "requestID",
    "sharedEventID",
)


def unwrap(fields: dict[str, msgspec.Raw]) -> Sequence[Undecoded] | None:
    """The records in what AWS hands out: log files, LookupEvents, CloudTrail Lake.

    >>> [bytes(record) for record in unwrap({"Records": msgspec.Raw(b'[{"eventName":"Ls"}]')})]
    [b'{"eventName":"Ls"}']
    """
    for name in ("Records", "Events"):
        if name in fields:
            return msgspec.json.decode(fields[name], type=list[msgspec.Raw])
    if "QueryResultRows" in fields:
        rows = msgspec.json.decode(fields["QueryResultRows"], type=list[list[dict[str, Any]]])
        return [encode({name: cell for pair in row for name, cell in pair.items()}) for row in rows]
    for name in EMBEDDED:
        if name in fields:
            return [_embedded(fields[name])]
    return None


def _embedded(value: msgspec.Raw) -> Undecoded:
    text = msgspec.json.decode(value)
    return text.encode() if isinstance(text, str) else value


def first_owner(owners: object) -> object:
    """Of a list of owners the first value of the first one, as the lessons have it.

    >>> first_owner([{"owner": "amazon"}, {"owner": "self"}])
    'amazon'
    """
    if not isinstance(owners, list):
        return owners
    if owners and isinstance(owners[0], dict):
        return next(iter(owners[0].values()), None)
    return owners or None


def account(cell: pl.Expr) -> pl.Expr:
    """Name an account whose number stands in a CSV cell as the lessons name it."""
    return pl.when(cell.str.contains("^[0-9]+$")).then("Account-" + cell).otherwise(cell)


CLOUDTRAIL = LogFormat(
    name="CloudTrail",
    unwrap=unwrap,
    paths=PATHS,
    leading=("eventID", "eventTime"),
    context=CONTEXT,
    time="eventTime",
    id="eventID",
    accounts=("recipientAccountId", "userIdentityaccountId"),
    leaves={"requestParametersownersSetitems": first_owner},
    cells={"userIdentityaccountId": account},
    embedded=EMBEDDED,
    without=("CloudTrail-Digest", "CloudTrail-Insight"),
)


@dataclass(frozen=True)
class FromCloudtrail(Source):
    """Read AWS CloudTrail logs.

    Any form is read: AWS's own files and folders, plain, gzip or zstd; JSON lines; LookupEvents and
    CloudTrail Lake exports; flat CSV and Parquet. Nested names are joined: `userIdentity.arn` is
    `userIdentityarn`. Digests and Insights are left out.
    """

    name = "from-cloudtrail"
    default_columns: ClassVar[str] = "columns_ae_cloudtrail.txt"

    input_glob: str = option(
        "",
        "Files to read: a glob in quotes, a file or a folder.",
        required=True,
    )
    watch_directory: bool = option(
        False,
        "Go on for ever, reading files that come later.",
    )
    max_files: int | None = option(
        None,
        "Read so many files at most, the first in sorted order; -1 for all.",
        low=-1,
    )
    file_type: str = option(
        "auto",
        "How to read the files, whatever their suffix.",
        names=("--file_type", "--file-type"),
        choices=("auto", "csv", "json", "parquet"),
    )
    repeat: int = option(
        1,
        "Read each file so many times, each time later by as long as the file lasts.",
        low=1,
    )
    sort_glob: bool = option(
        False,
        "Accepted for old command lines. Files are always read in sorted order here.",
    )
    recursive: bool = option(
        True,
        "Also match in subfolders: `logs/*.json` finds `logs/may/a.json`.",
    )
    queue_max_size: int = option(
        128,
        "Accepted for old command lines. Stages pull from each other here, so nothing is queued.",
        low=1,
    )
    batch_timeout: float = option(
        5.0,
        "With --watch_directory: seconds without a new file after which those that came are read.",
        low=0.0,
    )
    bad_record: str = option(
        "fail",
        "What becomes of a record that cannot be read: the run fails, or it is left out and "
        "counted in the summary.",
        choices=("fail", "skip"),
    )
    all_columns: bool = option(
        False,
        "Pass on all columns of JSON records, not only the features and what helps to judge them.",
        flag=True,
    )

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.max_files == 0:
            raise UsageError("--max_files: 0 files hold no events. Give a number, or -1 for all.")
        if not self.input_glob:
            raise UsageError("--input_glob: no files given. Give a glob in quotes.")
        if self.watch_directory and self.repeat > 1:
            told = "--repeat reads files again, --watch_directory waits for new ones. Give only one"
            raise UsageError(f"{told} of the two.")

    def endless(self) -> bool:
        """Whether a folder is followed."""
        return self.watch_directory

    def events(self, history: str | None, summary: Summary) -> Iterator[Events]:
        """Read the input, user after user, each in time order; see `Source.events`."""
        intake = Intake(
            format=CLOUDTRAIL,
            files=self._files(),
            settings=self.settings,
            repeat=self.repeat,
            skip=self.bad_record.lower() == "skip",
            everything=self.all_columns,
            arrivals=self._arrivals() if self.watch_directory else None,
        )
        return intake.events(history, summary)

    def _files(self) -> LogFiles:
        return LogFiles(
            self.input_glob,
            recursive=self.recursive,
            max_files=self.max_files,
            file_type=self.file_type.lower(),
            without=CLOUDTRAIL.without,
        )

    def _arrivals(self) -> Arrivals:
        files = replace(self._files(), max_files=None)
        limit = None if self.max_files in {None, -1} else self.max_files
        return Arrivals(lambda: files.find().paths, quiet=self.batch_timeout, limit=limit)
