"""The hub of tests/hub, for the command that fetches from it."""

from tests.hub.conftest import hub as hub
