"""Guards of exported files and of the server: more of the list in mutants.py."""

from __future__ import annotations

from support.guards import Mutant

__all__ = ["SERVER_GUARDS"]

ATTACK = "attacks/test_http.py::test_an_attack_is_refused_and_others_are_answered"
GUARD, SERVER, EXPORT = "deploy/test_guard.py::", "deploy/test_server.py::", "deploy/test_export.py::"

SERVER_GUARDS = (
    # Connections
    Mutant("deploy/connection.py", "        elif full:\n", "        elif False:\n", ATTACK),
    Mutant(
        "deploy/connection.py",
        "call_later(self.guard.limits.receive_seconds, self._too_slow)",
        "call_later(9999, self._too_slow)",
        ATTACK,
    ),
    Mutant("deploy/connection.py", "if self.silent > self.guard.limits.header_bytes:", "if False:", ATTACK),
    Mutant("deploy/connection.py", "elif len(self.pipeline) > MAX_PIPELINED:", "elif False:", ATTACK),
    Mutant(
        "deploy/connection.py",
        "if self.head_bytes > limits.header_bytes or len(self.headers) >= limits.header_count:",
        "if False:",
        ATTACK,
    ),
    Mutant(
        "deploy/connection.py",
        "if self.chunks > FREE_CHUNKS and self.body_bytes < self.chunks * MIN_CHUNK:",
        "if False:",
        ATTACK,
    ),
    Mutant(
        "deploy/connection.py",
        "call_later(self.guard.limits.send_seconds, self.transport.abort)",
        "call_later(9999, self.transport.abort)",
        ATTACK,
    ),
    Mutant(
        "deploy/connection.py",
        "            self.task.cancel()\n",
        "            pass\n",
        "attacks/test_http.py::test_a_client_that_leaves_cancels_its_request",
    ),
    # Requests
    Mutant(
        "deploy/guard.py",
        "            if self.bytes_in > self.limits.body_bytes:",
        "            if False:",
        GUARD + "test_bytes_are_counted_whatever_the_headers_say",
    ),
    Mutant(
        "deploy/guard.py",
        "if self.guard.buffered > self.limits.buffered_bytes:",
        "if False:",
        GUARD + "test_bytes_are_counted_whatever_the_headers_say",
    ),
    Mutant(
        "deploy/guard.py",
        "asyncio.timeout(self.limits.receive_seconds)",
        "asyncio.timeout(None)",
        GUARD + "test_a_slow_body_and_a_slow_application_end_at_their_deadlines",
    ),
    Mutant(
        "deploy/guard.py",
        "asyncio.timeout(self.limits.answer_seconds)",
        "asyncio.timeout(None)",
        GUARD + "test_a_slow_body_and_a_slow_application_end_at_their_deadlines",
    ),
    Mutant(
        "deploy/guard.py",
        'self.guard.running >= self.limits.requests and self.scope["path"] not in self.guard.probes',
        "False",
        GUARD + "test_a_busy_server_refuses_at_once_but_answers_probes",
    ),
    Mutant(
        "deploy/guard.py",
        'elif name == b"content-encoding" and value.strip().lower() != b"identity":',
        "elif False:",
        GUARD + "test_headers_are_checked_before_the_body_is_read",
    ),
    Mutant(
        "deploy/guard.py",
        "_host_name(hosts[0]) not in self.guard.hosts",
        "False",
        GUARD + "test_other_hosts_are_refused_if_hosts_are_named",
    ),
    Mutant(
        "deploy/guard.py",
        'Refusal(500, "internal", "The server failed to answer; its log has the cause.")',
        'Refusal(500, "internal", str(error))',
        GUARD + "test_errors_of_the_application_have_no_internals",
    ),
    Mutant(
        "deploy/guard.py",
        "json.dumps(entry)",
        "json.dumps(entry, ensure_ascii=False).replace('\\\\n', chr(10))",
        GUARD + "test_no_request_can_forge_a_line_of_the_log",
    ),
    # Workers
    Mutant(
        "deploy/worker_pool.py",
        "asyncio.timeout(self.pool.compute_seconds)",
        "asyncio.timeout(None)",
        SERVER + "test_a_worker_that_dies_or_hangs_is_replaced",
    ),
    Mutant(
        "deploy/draining.py",
        "        self.guard.draining = True\n        await asyncio.sleep(self.guard.limits.linger_seconds)\n",
        "        self.force_exit = True\n",
        SERVER + "test_sigterm_finishes_what_was_accepted",
    ),
    Mutant(
        "deploy/draining.py",
        "for connection in _waiting(listener)]",
        "for connection in ()]",
        "deploy/test_draining.py::test_clients_that_the_kernel_had_connected_are_answered",
    ),
    Mutant(
        "deploy/draining.py",
        "while self.server_state.connections and loop.time() < end",
        "while False",
        "deploy/test_draining.py::test_clients_that_the_kernel_had_connected_are_answered",
    ),
    # Exported files
    Mutant(
        "deploy/onnx_file.py",
        "if hashlib.sha256(content[: last[1]]).hexdigest() != digest:",
        "if False:",
        EXPORT + "test_a_flipped_bit_anywhere_is_detected",
    ),
    Mutant(
        "deploy/onnx_file.py",
        "if number == EXTERNAL_DATA or (number == DATA_LOCATION and content[first] != 0):",
        "if False:",
        EXPORT + "test_weights_in_other_files_are_refused",
    ),
    Mutant(
        "deploy/exporting.py",
        "if max(parity.logits, parity.maps) > MAX_DIFFERENCE or not parity.same_class:",
        "if False:",
        EXPORT + "test_a_file_whose_outputs_differ_is_not_written",
    ),
    Mutant(
        "deploy/parity.py",
        "if all(_agrees(graph, runtime, size) for size in sizes):",
        "if True:",
        EXPORT + "test_a_size_that_was_right_by_chance_is_found",
    ),
    Mutant(
        "deploy/quantize.py",
        "        if loss <= MAX_LOSS and",
        "        if",
        EXPORT + "test_int8_that_loses_accuracy_is_refused",
    ),
)
