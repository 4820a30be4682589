"""Calls a.B/C all the time; a line for each: who answered, or `error` and why."""
import sys
import time

import grpc

call = grpc.insecure_channel(sys.argv[1]).unary_unary('/a.B/C')
begun = False
while True:
    try:
        print(call(b'', timeout=5, wait_for_ready=not begun).decode(), flush=True)
        begun = True
    except grpc.RpcError as error:
        if begun:
            print('error', error.code().name, error.details(), flush=True)
        else:
            print('waits', error.details(), flush=True)
    time.sleep(0.02)
