"""The table of calls against the contract itself."""

from __future__ import annotations

from google.protobuf.message import Message
from presage.protocol import methods
from presage.protocol.methods import Method
from presage.v1 import embeddings_pb2, goals_pb2, models_pb2, planning_pb2, sessions_pb2

TABLE = {value.path: value for value in vars(methods).values() if isinstance(value, Method)}


def test_every_call_of_the_contract_is_in_the_table() -> None:
    found = {}
    for file in (models_pb2, embeddings_pb2, goals_pb2, sessions_pb2, planning_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                found[f"/{service.full_name}/{method.name}"] = (method.input_type, method.output_type)
    assert {path: (each.request.DESCRIPTOR, each.reply.DESCRIPTOR) for path, each in TABLE.items()} == found


def test_only_what_changes_nothing_twice_is_repeatable() -> None:
    once = {path.rpartition(".")[2] for path, each in TABLE.items() if not each.repeatable}
    assert once == {
        "Goals/Delete",
        "Sessions/Create",
        "Sessions/Reset",
        "Sessions/Delete",
        "Planning/Control",
        "Planning/Surprise",
    }


def test_requests_get_an_id_of_their_own() -> None:
    request: Message = models_pb2.ModelsListRequest()
    made = {methods.call(methods.LIST_MODELS, request, lambda reply: None).request_id for _ in range(100)}  # type: ignore[arg-type]
    assert len(made) == 100
