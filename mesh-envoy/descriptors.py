"""Writes mesh-envoy/envoy-v3.binpb: what of Envoy's API (v3) mesh-control knows, as a FileDescriptorSet.

Run by `cargo xtask envoy-api`, with the modules of PyPI's xds-protos in PYTHONPATH. Options (rules of validation,
notes for generators), services and extensions are left out: they are not needed to turn JSON into messages.
"""

import importlib
import os
import sys

from google.protobuf import descriptor_pb2

root, out = sys.argv[1:]


def modules():
    for folder, _, files in os.walk(os.path.join(root, 'envoy')):
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), root)
            if file.endswith('_pb2.py') and '/v3/' in path:
                yield path[:-3].replace('/', '.')


def plain(message):
    for field in message.field:
        packed = field.options.packed if field.options.HasField('packed') else None
        field.ClearField('options')
        if packed is not None:
            field.options.packed = packed
    entry = message.options.map_entry
    message.ClearField('options')
    if entry:
        message.options.map_entry = True
    for inner in message.nested_type:
        plain(inner)
    for oneof in message.oneof_decl:
        oneof.ClearField('options')
    for enum in message.enum_type:
        plain_enum(enum)
    del message.extension[:]


def plain_enum(enum):
    alias = enum.options.allow_alias
    enum.ClearField('options')
    if alias:
        enum.options.allow_alias = True
    for value in enum.value:
        value.ClearField('options')


files = {}


def add(descriptor):
    if descriptor.name in files:
        return
    for dependency in descriptor.dependencies:
        add(dependency)
    file = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(file)
    file.ClearField('options')
    del file.service[:], file.extension[:]
    for message in file.message_type:
        plain(message)
    for enum in file.enum_type:
        plain_enum(enum)
    files[file.name] = file


for module in sorted(modules()):
    add(importlib.import_module(module).DESCRIPTOR)
everything = descriptor_pb2.FileDescriptorSet()
everything.file.extend(files.values())
with open(out, 'wb') as to:
    to.write(everything.SerializeToString(deterministic=True))
