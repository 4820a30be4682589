"""Answers every method with its name."""
import sys
from concurrent import futures

import grpc


class Any(grpc.GenericRpcHandler):
    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: sys.argv[1].encode())


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Any(),))
server.add_insecure_port('[::]:8080')
server.start()
server.wait_for_termination()
