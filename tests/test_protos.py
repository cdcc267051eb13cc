"""The wire contract: linted, and the committed stubs are generated from it."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from tests.support.paths import ROOT

BUF = Path(sys.executable).with_name("buf")
STUBS = ROOT / "clients" / "python" / "src" / "presage" / "v1"

pytestmark = pytest.mark.skipif(not BUF.exists(), reason="buf-bin is not installed beside this Python")


def buf(*arguments: str) -> bytes:
    done = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout


@pytest.fixture(scope="module")
def contract() -> dict[str, FileDescriptorProto]:
    """What proto/ says, by file name, without comments."""
    built = FileDescriptorSet.FromString(
        buf("build", "proto", "--exclude-source-info", "--as-file-descriptor-set", "-o", "-")
    )
    return {file.name: file for file in built.file if file.name.startswith("presage/")}


def test_the_contract_is_lint_free() -> None:
    buf("lint", "proto")


def test_the_contract_is_formatted() -> None:
    assert buf("format", "proto", "--diff") == b""


def test_the_committed_stubs_are_those_of_the_contract(contract: dict[str, FileDescriptorProto]) -> None:
    for name, file in contract.items():
        module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        committed = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        for each in (file, committed):  # json names follow from the field names; not every generator writes them out
            _strip_json_names(each)
        assert committed == file, f"{name} has changed: run scripts/protos"


@pytest.mark.process
def test_the_texts_of_the_openapi_document_are_those_of_the_contract() -> None:
    loader = importlib.machinery.SourceFileLoader("contract_text", str(ROOT / "scripts" / "contract-text"))
    spec = importlib.util.spec_from_loader("contract_text", loader)
    assert spec is not None
    writer = importlib.util.module_from_spec(spec)
    loader.exec_module(writer)
    assert writer.FILE.read_text() == writer.text(), "proto/ says something else: run scripts/contract-text"


def test_every_file_of_the_contract_has_its_stubs_and_no_stub_is_left_over(
    contract: dict[str, FileDescriptorProto],
) -> None:
    expected = {"__init__.py"}
    for name, file in contract.items():
        stem = Path(name).stem
        expected |= {f"{stem}_pb2.py", f"{stem}_pb2.pyi"}
        if file.service:
            expected |= {f"{stem}_pb2_grpc.py", f"{stem}_pb2_grpc.pyi"}
    assert {path.name for path in STUBS.iterdir() if path.suffix in {".py", ".pyi"}} == expected


def test_every_service_call_has_a_stub(contract: dict[str, FileDescriptorProto]) -> None:
    for name, file in contract.items():
        for service in file.service:
            module = importlib.import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2_grpc")
            servicer = getattr(module, f"{service.name}Servicer")
            assert {method.name for method in service.method} == {call for call in vars(servicer) if call[0].isupper()}


def _strip_json_names(file: FileDescriptorProto) -> None:
    pending = list(file.message_type)
    while pending:
        message = pending.pop()
        pending += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
