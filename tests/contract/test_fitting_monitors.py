"""Monitors that are fitted: there at once, made in the background, and told as far as they have
come."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import work_pb2
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors import fit_work, fitting
from actserve_server.monitors.fit_work import MAX_OWN_WAITING
from tests.contract.harness import (
    Served,
    bearing,
    eventually,
    failure,
    generate,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import full
from tests.contract.refusals import WIDTH

SUCCEEDED, FAILED = work_pb2.WORK_STATE_SUCCEEDED, work_pb2.WORK_STATE_FAILED
RUNNING, WAITING = work_pb2.WORK_STATE_RUNNING, work_pb2.WORK_STATE_WAITING
