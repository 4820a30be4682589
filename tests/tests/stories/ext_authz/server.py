"""Decides about requests, by Envoy's own protocol buffers: PORT, then each question is a line on stdout.

/login: to be sent elsewhere; /late: no answer for 3 s; /error: an answer that says that it is none;
header x-token `good`: let in, with changes; anything else: 401.
"""
import json
import sys
import time
from concurrent import futures

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2 as auth
from envoy.type.v3 import http_status_pb2
from google.rpc import status_pb2


def option(key, value, **more):
    header = base_pb2.HeaderValue(key=key, value=value)
    return base_pb2.HeaderValueOption(header=header, **more)


def refused(code, headers=(), body=''):
    denied = auth.DeniedHttpResponse(status=http_status_pb2.HttpStatus(code=code), headers=headers, body=body)
    return auth.CheckResponse(status=status_pb2.Status(code=7), denied_response=denied)


def check(request, context):
    attributes = request.attributes
    http = attributes.request.http
    print(json.dumps({
        'path': http.path, 'method': http.method, 'host': http.host, 'protocol': http.protocol,
        'headers': dict(http.headers), 'source': attributes.source.principal,
        'address': attributes.source.address.socket_address.address,
        'destination': attributes.destination.principal,
        'port': attributes.destination.address.socket_address.port_value,
        'policy': attributes.context_extensions['policy'],
    }), flush=True)
    path = http.path.split('?')[0]
    if path == '/late':
        time.sleep(3)
    if path == '/error':
        context.abort(grpc.StatusCode.INTERNAL, 'it is broken')
    if path == '/login':
        where = option('location', 'https://login.example/?back=' + http.path)
        append = [option('set-cookie', 'a=1', append={'value': True}), option('set-cookie', 'b=2', append={'value': True})]
        return refused(302, [where] + append)
    if http.headers.get('x-token') != 'good':
        return refused(401, [option('www-authenticate', 'Token'), option('content-length', '3')], 'show a token')
    ok = auth.OkHttpResponse(
        headers=[option('x-user', 'alice'), option('x-seen', 'too', append={'value': True}), option('host', 'evil')],
        headers_to_remove=['x-token', 'content-length'],
        response_headers_to_add=[option('x-decided', 'yes')],
    )
    return auth.CheckResponse(status=status_pb2.Status(code=0), ok_response=ok)


handler = grpc.unary_unary_rpc_method_handler(
    check,
    request_deserializer=auth.CheckRequest.FromString,
    response_serializer=auth.CheckResponse.SerializeToString,
)
server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler('envoy.service.auth.v3.Authorization', {'Check': handler}),)
)
server.add_insecure_port('[::]:' + sys.argv[1])
server.start()
print('ready', flush=True)
server.wait_for_termination()
