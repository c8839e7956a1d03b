"""Serve's private parts that the fast lane touches: fails loudly when Ray changes."""

import hashlib
import inspect

import pytest
import uvicorn
from ray._common.utils import import_attr
from ray.serve._private import constants, controller, haproxy, http_util, replica, tracing_utils
from ray.serve._private.common import RequestProtocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rayburst.serve import _ray_hooks
from rayburst.serve.controller import CALLBACK, install

WHAT_TO_DO = (
    "{what} changed, which rayburst.serve's fast lane builds on. Read the new code, adapt "
    "_ray_hooks.py and lanes.py, run tests/integration/serve, then set the new digest here and "
    "rayburst.train.versions.TESTED_RAY."
)
Metrics = replica.ReplicaMetricsManager
Manager = haproxy.HAProxyManager.__ray_metadata__.modified_class
Controller = controller.ServeController
TOUCHED = {
    "start_asgi_http_server": (http_util.start_asgi_http_server, "33767935f8769e9c"),
    "Replica._maybe_start_direct_ingress_servers": (
        replica.Replica._maybe_start_direct_ingress_servers,
        "f5aa371c33943dda",
    ),
    "ReplicaMetricsManager.record_request_metrics": (
        Metrics.record_request_metrics,
        "229d4e59d89cc697",
    ),
    "ReplicaMetricsManager.record_ingress_request_metrics": (
        Metrics.record_ingress_request_metrics,
        "35d39ba3f73c90d6",
    ),
    "ReplicaMetricsManager._change_num_ongoing_requests": (
        Metrics._change_num_ongoing_requests,
        "32343969c28cbf5e",
    ),
    "HAProxyApi._generate_config_file_internal": (
        haproxy.HAProxyApi._generate_config_file_internal,
        "962a98db6bd87104",
    ),
    "HAProxyApi._graceful_reload": (haproxy.HAProxyApi._graceful_reload, "75938235f0b85b6a"),
    "HAProxyManager._update_haproxy_backends": (
        Manager._update_haproxy_backends,
        "8c635703beb7d99e",
    ),
    "ServeController._all_running_replicas": (Controller._all_running_replicas, "17a87a5b0cdef04c"),
    "uvicorn.Config.load": (uvicorn.Config.load, "92b7159dce105a9c"),
    "uvicorn's HttpToolsProtocol": (HttpToolsProtocol, "18fdf324b11bf160"),
}


@pytest.mark.parametrize("what", TOUCHED)
def test_what_the_lane_builds_on_is_unchanged(what):
    touched, expected = TOUCHED[what]
    digest = hashlib.sha256(inspect.getsource(touched).encode()).hexdigest()[:16]
    assert digest == expected, WHAT_TO_DO.format(what=what)


def test_the_names_that_the_hooks_read_are_there():
    assert replica.start_asgi_http_server is http_util.start_asgi_http_server
    assert isinstance(constants.RAY_SERVE_ENABLE_DIRECT_INGRESS, bool)
    assert not tracing_utils.is_tracing_enabled()
    assert RequestProtocol.HTTP
    assert "HAProxyManager if self._ha_proxy_enabled" in inspect.getsource(Controller.__init__)
    assert "self._haproxy = HAProxyApi(" in inspect.getsource(Manager.__init__)
    assert "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH" in inspect.getsource(Controller.__init__)
    assert constants.RECORD_REPLICA_METADATA_METHOD == "record_replica_metadata"
    made = inspect.getsource(replica.Replica.__init__) + inspect.getsource(replica)
    for name in ("_metrics_manager", "_route_prefix", "_deployment_id", "_access_log_context"):
        assert f"self.{name} = " in made, WHAT_TO_DO.format(what=f"Replica.{name}")


def test_what_keeps_a_dead_replicas_requests_from_being_asked_again_is_said(monkeypatch):
    monkeypatch.setattr(constants, "RAY_SERVE_ENABLE_HA_PROXY", False)
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in _ray_hooks.why_not_again(CALLBACK)
    monkeypatch.setattr(constants, "RAY_SERVE_ENABLE_HA_PROXY", True)
    assert f"IMPORT_PATH={CALLBACK}" in _ray_hooks.why_not_again(CALLBACK)
    monkeypatch.setattr(constants, "RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH", CALLBACK)
    assert _ray_hooks.why_not_again(CALLBACK) is None
    assert import_attr(CALLBACK) is install
