"""No test depends on which tests the same process ran before."""

import logging

import pytest

from morpheus.cli.logging import configure_logging


@pytest.fixture(scope="module")
def command_ran():
    """What a run of the command leaves in its process."""
    configure_logging("ERROR", None)


@pytest.mark.usefixtures("command_ran")
def test_a_command_run_by_a_shared_fixture_does_not_change_what_a_test_logs(caplog):
    logger = logging.getLogger("morpheus")
    assert (logger.level, logger.handlers, logger.propagate) == (logging.NOTSET, [], True)
    assert logging.getLogRecordFactory() is logging.LogRecord
    caplog.set_level("INFO")
    logging.getLogger("morpheus.test").info("heard")
    assert caplog.messages == ["heard"]
