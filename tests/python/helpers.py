"""What the tests share: fields, columns, statuses."""

import struct
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient, MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

pb, schema_pb, common_pb = milvus_pb2, schema_pb2, common_pb2

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "embedding-golden"


def schema(*fields, dynamic=False, functions=(), **kwargs):
    """A schema from `(name, DataType, {options})`; the first field is the key."""
    schema = MilvusClient.create_schema(enable_dynamic_field=dynamic, **kwargs)
    for position, (name, kind, *options) in enumerate(fields):
        options = options[0] if options else {}
        schema.add_field(name, kind, is_primary=position == 0, **options)
    for function in functions:
        schema.add_function(function)
    return schema


def indexes(*specs):
    """Index parameters from `(field, index_type, metric_type)` or keyword dicts."""
    params = MilvusClient.prepare_index_params()
    for spec in specs:
        if isinstance(spec, dict):
            params.add_index(**spec)
        else:
            field, kind, metric = spec
            params.add_index(field, index_type=kind, metric_type=metric)
    return params


def create(client, name, schema, *specs, load=True, **kwargs):
    """Creates a collection, its indexes without the client's polling pauses, and loads it."""
    client.create_collection(name, schema=schema, **kwargs)
    for spec in specs:
        client.create_index(name, indexes(spec), sync=False)
    if load:
        client.load_collection(name)


KEY = ("id", DataType.INT64)


def vector(dim=4, name="v", **options):
    return (name, DataType.FLOAT_VECTOR, {"dim": dim, **options})


def simple(client, name, dim=4, metric="L2", extra=(), **kwargs):
    """Key `id`, FLOAT_VECTOR `v` with a FLAT index, and what `extra` adds."""
    create(client, name, schema(KEY, *extra, vector(dim), **kwargs), ("v", "FLAT", metric))


@contextmanager
def refused(code, *texts):
    """The call inside fails with this code, and its message holds these texts."""
    with pytest.raises(MilvusException) as caught:
        yield caught
    assert caught.value.code == code, caught.value
    for text in texts:
        assert text in caught.value.message, caught.value.message


def assert_status(status, code, legacy=None, *texts):
    assert status.code == code, status
    if legacy is not None:
        assert status.error_code == legacy, status
    elif code:
        assert status.error_code != 0, "the Node SDK would take this failure for a success"
    for text in texts:
        assert text in status.reason, status.reason


def ok(answer):
    """Asserts that an answer is a success and returns it."""
    status = answer if isinstance(answer, common_pb.Status) else answer.status
    assert_status(status, 0, 0)
    return answer


def pairs(**params):
    return [common_pb.KeyValuePair(key=k, value=str(v)) for k, v in params.items()]


def column(name, kind, **arm):
    """A column: `column("a", DataType.INT64, long_data=[1, 2])`, with `valid=[…]` for nulls."""
    valid = arm.pop("valid", [])
    dim = arm.pop("dim", 0)
    data = schema_pb.FieldData(type=int(kind), field_name=name, valid_data=valid)
    ((key, values),) = arm.items()
    if key in (
        "float_vector",
        "sparse_float_vector",
        "binary_vector",
        "float16_vector",
        "bfloat16_vector",
        "int8_vector",
    ):
        data.vectors.dim = dim
        if key == "float_vector":
            data.vectors.float_vector.data.extend(values)
        elif key == "sparse_float_vector":
            data.vectors.sparse_float_vector.contents.extend(values)
            data.vectors.sparse_float_vector.dim = dim
        else:
            setattr(data.vectors, key, values)
    else:
        target = getattr(data.scalars, key)
        target.SetInParent()
        target.data.extend(values)
    return data


def sparse_bytes(row):
    """A sparse row as it travels: (u32 index, f32 value)*, ascending."""
    return b"".join(struct.pack("<If", index, row[index]) for index in sorted(row))


def placeholder(kind, values):
    """A serialized PlaceholderGroup."""
    value = common_pb.PlaceholderValue(tag="$0", type=kind, values=values)
    return common_pb.PlaceholderGroup(placeholders=[value]).SerializeToString()


def floats(vectors):
    return placeholder(101, [np.asarray(v, "<f4").tobytes() for v in vectors])


def search_request(name, vectors, limit=10, field="v", **kwargs):
    """A Search of the bare stub; `params` are added to the search parameters."""
    params = {"anns_field": field, "topk": limit, "params": "{}", **kwargs.pop("params", {})}
    kwargs.setdefault("nq", len(vectors))
    kwargs.setdefault("use_default_consistency", True)
    return pb.SearchRequest(
        collection_name=name,
        placeholder_group=floats(vectors),
        dsl_type=1,
        search_params=pairs(**params),
        **kwargs,
    )


def wait_until(holds, seconds=20):
    """Waits until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def ids(result):
    """The keys of one query's hits, best first."""
    return [hit.id for hit in result]


def distances(result):
    return [hit.distance for hit in result]
