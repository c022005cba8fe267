"""Inputs shaped after public bug reports, with what is expected of each.

The inputs lie beside the project, in `shared/data/cases`. Each kind of input also has a test of its
own, with an input that the test makes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CASES = Path(__file__).parents[2] / "shared" / "data" / "cases"
TIMEOUT = 120

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="shared/data/cases is not here")


def scored(events: int, users: int = 3) -> list[str]:
    """Return patterns of the summary of a run that scored some events of some users."""
    return [rf"^Written +{events:,} events of {users} users", r"^exit code 0$"]


EXPECTED: dict[str, list[str]] = {
    "az01-log-analytics-json": scored(990),
    "az02-log-analytics-csv": [*scored(990), r"'deviceDetailbrowser': 'Edge", "failureReason': '"],
    "az03-powershell-date": scored(990),
    "az05-portal-us-dates": [r"^Error: SignIns.csv:2: .*--time_format=", r"^exit code 1$"],
    "az06-user-case": scored(990),
    "az07-service-principals-empty-upn": [*scored(995), r"^Not scored +5 events: no value in"],
    "az13-empty-vs-null": [r"^mean 0\.0[12]", r"^exit code 0$"],
    "ct01-eventbridge-detail": scored(990),
    "ct02-cloudwatch-subscription": scored(990),
    "ct05-filter-log-events": scored(990),
    "ct07-sns-notification": scored(990),
    "ct08-athena-csv": scored(990),
    "ct09-lake-csv-map": scored(990),
    "ct10-console-event-history-csv": scored(990),
    "ct14-null-and-empty-identity": [*scored(1000), r"^Not scored +5 events: no value in"],
    "ct15-shared-and-recipient-missing": [r"left out +6 duplicate", r"^Written +993 events"],
    "ct16-time-forms": [*scored(1006), r"'T6', .*'event_dt': '2026-10-06 08:03:00\+00:00'"],
    "ct17b-two-bom-files-concatenated": scored(990),
    "ct17c-two-bom-documents-concatenated": scored(990),
    "ct18c-gzip-twice": scored(990),
    "ct19-empty-deliveries": scored(990),
    "ct20-digest-in-flat-folder": [*scored(990), r"left out +1 CloudTrail digest"],
    "ct21-insight-in-one-file": [*scored(991), r"left out .*1 CloudTrail Insights file"],
    "ct23b-mixed-suffixes-silent": [r"^Written +\d+ events of 3 users", r"^exit code 0$"],
    "ct26-config-in-the-same-bucket": [*scored(990), r"left out .*Config", r"GuardDuty"],
    "ct33-identity-center-unknown": [*scored(1070, 6), r"'ann@example\.org': 28"],
    "duo03-admin-log": [r"^Error: .*none of|^Error: .*no event .*any of the 6 features"],
    "gcp02-pubsub-push": scored(990),
    "gh01-without-at-timestamp": scored(990),
    "hint-eventbridge-skip": [r"^exit code [1-9]|^Written +[1-9]"],
    "hint-lake-useridentity": [r"^exit code "],
    "k8s01-two-stages": [r"^995 rows$", r"'status': .*403|403"],
    "k8s02-eks-cloudwatch": scored(990),
    "ocsf01-odd": [r"^Written +1,001 events", r"^exit code 0$"],
    "okta01-eventbridge": scored(990),
    "okta04-admin-csv": scored(990),
    "op01-session-names-as-users": [r"@actor", r"^exit code 0$"],
    "op04-pretrained-other-user-column": [r"--userid_column_name=userIdentityarn", r"code [12]$"],
    "op06-retrain-with-pretrained": [r"^Saved +0 new models, 2 older kept", r"^exit code 0$"],
    "op07-rotated-copy-without-ids": [r"cop(y|ies)", r"^exit code 0$"],
    "op09-empty-text-json-vs-csv": [r"^exit code 0$"],
    "op14-pretrained-forgot-columns-file": [r"^Error: .*cols\.txt", r"^exit code [12]$"],
    "op16-old-models": [
        r"models end +2026-10-11, 354 days before the first event",
        r"^exit code 0$",
    ],
}
"""Patterns that the output of each case has. Cases of alerts and of streams come with these."""


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_reported_inputs_are_read_or_refused_as_expected(
    name: str, tmp_path: Path, warm_morpheus: Path
) -> None:
    """Run the script of a case in a copy of its folder."""
    if name == "ct26-config-in-the-same-bucket" and not (CASES / name / "AWSLogs").is_dir():
        pytest.skip("the case has no input here")
    folder = tmp_path / name
    shutil.copytree(CASES / name, folder, copy_function=shutil.copyfile)
    done = subprocess.run(
        ["/bin/sh", "run.sh"],
        cwd=folder,
        env={**os.environ, "MORPHEUS": str(warm_morpheus), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    # The Python of a case fails when there is no output to look at.
    failed = re.findall(r'Traceback \(most recent call last\):\n +File "(.+?)"', done.stdout)
    assert set(failed) <= {"<stdin>"}, done.stdout
    assert "bug in morpheus" not in done.stdout
    for pattern in EXPECTED[name]:
        assert re.search(pattern, done.stdout, re.MULTILINE), (pattern, done.stdout)
