#!/usr/bin/env python3
"""Compares proto/otlp with the protocol's own classes, field by field. Run by hand, with the
package `opentelemetry-proto` of PyPI:

    python3 -m venv venv && venv/bin/pip install opentelemetry-proto
    venv/bin/python tools/otlp-upstream.py [FILE...]

Each FILE is the body of an export over HTTP, which is decoded by those classes and must hold
nothing that they do not know; its name says which: `traces...` or `metrics...`.
"""

import pathlib
import re
import sys

from google.protobuf import unknown_fields
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

UPSTREAM = [common_pb2, resource_pb2, trace_pb2, metrics_pb2, trace_service_pb2, metrics_service_pb2]
# google.rpc.Status and RetryInfo: no part of the protocol's package.
NOT_OTLP = {"StatusDetails", "Detail", "RetryInfo", "RetryDelay"}


def find(name):
    """A message or an enum upstream; one of ours may be within another there."""
    for file in UPSTREAM:
        descriptor = file.DESCRIPTOR
        types = list(descriptor.message_types_by_name.values())
        for message in types:
            types.extend(message.nested_types)
        enums = list(descriptor.enum_types_by_name.values())
        for message in types:
            enums.extend(message.enum_types)
        for found in types + enums:
            if found.name == name or found.containing_type and found.containing_type.name + found.name == name:
                return found
    return None


def words(field):
    """A field's type as a .proto file writes it."""
    if field.message_type or field.enum_type:
        return (field.message_type or field.enum_type).name
    kinds = {value: key for key, value in vars(type(field)).items() if key.startswith("TYPE_")}
    return kinds[field.type].removeprefix("TYPE_").lower()


def compare(path):
    checked, wrong = 0, []
    current = []
    for line in path.read_text().splitlines():
        line = line.split("//")[0].strip()
        if match := re.match(r"(message|enum) (\w+) \{", line):
            current.append(match[2])
        elif line.startswith("oneof"):
            current.append(current[-1])
        if line.endswith("}") and current:
            current.pop()
            continue
        if not current or current[-1] in NOT_OTLP:
            continue
        if match := re.match(r"(repeated )?([\w.]+) (\w+) = (\d+);", line):
            upstream = find(current[-1])
            field = upstream and upstream.fields_by_name.get(match[3])
            if not field:
                wrong.append(f"{current[-1]}.{match[3]}: not there upstream")
                continue
            kind = match[2].split(".")[-1]
            ours = (bool(match[1]), int(match[4]))
            theirs = (field.is_repeated, field.number)
            same = kind == words(field) or kind.endswith(words(field))
            checked += 1
            if ours != theirs or not same:
                wrong.append(f"{current[-1]}.{match[3]}: {ours} {kind}, upstream {theirs} {words(field)}")
        elif match := re.match(r"(\w+) = (\d+);", line):
            value = find(current[-1]).values_by_name.get(match[1])
            checked += 1
            if not value or value.number != int(match[2]):
                wrong.append(f"{current[-1]}.{match[1]}: {match[2]}, upstream {value and value.number}")
    return checked, wrong


def unknown(message, at=""):
    """Fields of a message, however deep, that the protocol does not know."""
    found = [f"{at} field {field.field_number}" for field in unknown_fields.UnknownFieldSet(message)]
    for field, value in message.ListFields():
        if field.message_type:
            for part in value if field.is_repeated else [value]:
                found += unknown(part, f"{at}.{field.name}")
    return found


def main():
    wrong = []
    for path in sorted((pathlib.Path(__file__).parent.parent / "proto/otlp").glob("*.proto")):
        checked, found = compare(path)
        wrong += found
        print(f"{path.name}: {checked} fields and values compared")
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        of_traces = path.name.startswith("traces")
        request = (
            trace_service_pb2.ExportTraceServiceRequest()
            if of_traces
            else metrics_service_pb2.ExportMetricsServiceRequest()
        )
        request.ParseFromString(path.read_bytes())
        wrong += [f"{path.name}: {what}" for what in unknown(request)]
        if of_traces:
            of = [scope.spans for it in request.resource_spans for scope in it.scope_spans]
        else:
            of = [scope.metrics for it in request.resource_metrics for scope in it.scope_metrics]
        names = sorted({part.name for parts in of for part in parts})
        print(f"{path.name}: {sum(map(len, of))} of {', '.join(names)}")
    print("\n".join(wrong) or "all as upstream has it")
    sys.exit(bool(wrong))


main()
