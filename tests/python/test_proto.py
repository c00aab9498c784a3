"""The served descriptors against those that pymilvus carries (contract §2, appendices A and B)."""

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from pymilvus.grpc_gen import common_pb2, feder_pb2, milvus_pb2, msg_pb2, rg_pb2, schema_pb2

PACKAGES = (common_pb2, schema_pb2, milvus_pb2, msg_pb2, rg_pb2, feder_pb2)
P = "milvus.proto."
RLS = ("SetRLSPrincipalTags", "GetRLSPrincipalTags", "ListRLSPrincipals", "DeleteRLSPrincipalTags")

# What newer Milvus versions added after the installed pymilvus. Nothing else may differ.
ADDITIONS = {
    (f"{P}schema.DataType", "UUID"),
    (f"{P}schema.IDs", "uuid_id"),
    (f"{P}schema.ScalarField", "valid_data"),
    (f"{P}schema.VectorField", "valid_data"),
    (f"{P}schema.UUIDArray", None),
    (f"{P}schema.UUIDArray", "data"),
    (f"{P}milvus.MilvusService", "UpdateRowPolicy"),
    (f"{P}milvus.UpdateRowPolicyRequest", None),
    (f"{P}milvus.GetRLSPrincipalTagsResponse", None),
    (f"{P}milvus.ListRLSPrincipalsResponse", None),
    *((f"{P}milvus.MilvusService", rpc) for rpc in RLS),
    *((f"{P}milvus.{rpc}Request", None) for rpc in RLS),
}


def facts(files):
    """Every message, field, enum value and rpc, each with what of it shows on the wire."""
    found = {}

    def enum(prefix, e):
        found[f"{prefix}.{e.name}", None] = "enum"
        for value in e.value:
            found[f"{prefix}.{e.name}", value.name] = value.number

    def message(prefix, m):
        name = f"{prefix}.{m.name}"
        found[name, None] = "message"
        for f in m.field:
            in_oneof = f.HasField("oneof_index") and not f.proto3_optional
            oneof = m.oneof_decl[f.oneof_index].name if in_oneof else ""
            found[name, f.name] = (
                f.number,
                f.Type.Name(f.type),
                f.Label.Name(f.label),
                f.type_name,
                oneof,
                f.proto3_optional,
            )
        for nested in m.nested_type:
            message(name, nested)
        for nested in m.enum_type:
            enum(name, nested)

    for file in files:
        for m in file.message_type:
            message(file.package, m)
        for e in file.enum_type:
            enum(file.package, e)
        for service in file.service:
            name = f"{file.package}.{service.name}"
            found[name, None] = "service"
            for rpc in service.method:
                found[name, rpc.name] = (
                    rpc.input_type,
                    rpc.output_type,
                    rpc.client_streaming,
                    rpc.server_streaming,
                )
    return found


def theirs():
    for package in PACKAGES:
        file = descriptor_pb2.FileDescriptorProto()
        package.DESCRIPTOR.CopyToProto(file)
        yield file


@pytest.fixture(scope="module")
def served(node):
    """The files as the running node hands them out by reflection."""
    with grpc.insecure_channel(node.grpc) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert f"{P}milvus.MilvusService" in database.get_services()
        queue = [database.FindFileContainingSymbol(f"{P}milvus.MilvusService")]
        files = {}
        while queue:
            file = queue.pop()
            if file.name not in files:
                files[file.name] = file
                queue += [database.FindFileByName(name) for name in file.dependency]
        return [file for file in files.values() if file.package.startswith(P)]


def test_every_fact_of_the_installed_pymilvus_is_ours(served):
    ours, expected = facts(served), facts(theirs())
    assert len(expected) > 2500
    different = {key: (value, ours.get(key)) for key, value in expected.items() if ours.get(key) != value}
    assert not different, "\n".join(f"{k}: pymilvus {a}, ours {b}" for k, (a, b) in different.items())


def test_we_add_only_what_newer_versions_have(served):
    ours, expected = facts(served), facts(theirs())
    assert set(ours) - set(expected) == ADDITIONS


def test_the_service_has_every_rpc(served):
    ours = facts(served)
    rpcs = [name for service, name in ours if service == f"{P}milvus.MilvusService" and name]
    assert len(rpcs) == 149


def test_the_same_number_of_a_type_is_never_used_twice(served):
    ours = facts(served)
    seen = {}
    for (owner, member), value in ours.items():
        if member and isinstance(value, tuple) and isinstance(value[0], int):
            assert seen.setdefault((owner, value[0]), member) == member
