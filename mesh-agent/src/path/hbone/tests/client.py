"""A caller that is not ours: TLS by OpenSSL, HTTP/2 by hyper-h2. Prints what it sees, a line each."""
import socket, ssl, sys, time
import h2.config, h2.connection, h2.events, h2.settings

host, folder, mode, authority = sys.argv[1:5]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.load_verify_locations(folder + "/root.pem")
context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
context.set_alpn_protocols(["h2"])
sock = context.wrap_socket(socket.create_connection((host, 15008), 20), server_hostname=None)
# Its checks know no CONNECT without a path.
unchecked = {"validate_outbound_headers": False, "validate_inbound_headers": False}
config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", **unchecked)
conn = h2.connection.H2Connection(config)
conn.initiate_connection()
conn.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 4194304})
conn.increment_flow_control_window(16711681)


def flush():
    data = conn.data_to_send()
    if data:
        sock.sendall(data)


def events():
    flush()
    data = sock.recv(65536)
    found = conn.receive_data(data) if data else None
    flush()
    if found is None:
        print("closed", flush=True)
        sys.exit(0)
    return found


def ask(headers):
    stream = conn.get_next_available_stream_id()
    conn.send_headers(stream, headers)
    while True:
        for event in events():
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, h2.events.ResponseReceived):
                return stream, dict(event.headers)[":status"], len(event.headers)
            if isinstance(event, h2.events.StreamReset):
                return stream, "reset %d" % event.error_code, 0


def connect(authority):
    extra = [("baggage", "k8s.namespace.name=default"), ("forwarded", 'for="10.0.0.5:41234"')]
    return ask([(":method", "CONNECT"), (":authority", authority)] + extra)


if mode == "echo":
    stream, status, headers = connect(authority)
    print("status", status, headers, flush=True)
    left, back, ended = 1 << 20, 0, False
    while not ended:
        while left and (room := min(left, conn.local_flow_control_window(stream), conn.max_outbound_frame_size)):
            conn.send_data(stream, b"x" * room, end_stream=room == left)
            left -= room
        for event in events():
            if isinstance(event, h2.events.DataReceived):
                back += len(event.data)
                conn.acknowledge_received_data(event.flow_controlled_length, stream)
            if isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                ended = True
                print("back", back, type(event).__name__, flush=True)
elif mode == "ask":
    for one in authority.split(","):
        print(one, connect(one)[1], flush=True)
    print("get", ask([(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")])[1])
    print("huge", ask([(":method", "CONNECT"), (":authority", "10.0.0.1:1")] + [("x", "y" * 4000)] * 20)[1])
    print("again", connect(authority.split(",")[0])[1])
elif mode == "reset":
    stream, status, _ = connect(authority)
    conn.reset_stream(stream, 8)
    flush()
    print("status", status, flush=True)
    time.sleep(1)
elif mode == "drop":
    # Gone without a word to HTTP/2, as a pod that is deleted.
    stream, status, _ = connect(authority)
    print("status", status, flush=True)
elif mode == "wait":
    stream, status, _ = connect(authority)
    print("status", status, flush=True)
    while True:
        for event in events():
            name = type(event).__name__
            if name in ("DataReceived", "StreamEnded", "StreamReset", "ConnectionTerminated"):
                code = getattr(event, "error_code", "")
                print(name, int(code) if code != "" else "", flush=True)
