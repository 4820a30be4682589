"""A called side that is not ours. Echoes; prints the heads that it sees, a line each."""
import socket, ssl, sys, threading
import h2.config, h2.connection, h2.events, h2.settings

host, folder, mode = sys.argv[1:4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_verify_locations(folder + "/root.pem")
context.load_cert_chain(folder + "/cert.pem", folder + "/key.pem")
context.verify_mode = ssl.CERT_REQUIRED
context.set_alpn_protocols(["h2"])
listener = socket.create_server((host, 15008))
print("listening", flush=True)
count = 0


def serve(raw):
    global count
    count += 1
    number = count
    sock = context.wrap_socket(raw, server_side=True)
    peer = dict(sock.getpeercert())["subjectAltName"][0][1]
    print("tunnel", number, sock.version(), sock.selected_alpn_protocol(), peer, flush=True)
    # Its checks know no CONNECT without a path.
    unchecked = {"validate_outbound_headers": False, "validate_inbound_headers": False}
    config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8", **unchecked)
    conn = h2.connection.H2Connection(config)
    if mode == "one":
        # Before the first settings are made of them.
        conn.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 1}
        )
    conn.initiate_connection()
    sock.sendall(conn.data_to_send())
    waiting, ended = {}, set()
    while True:
        data = sock.recv(65536)
        if not data:
            return
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                names = " ".join("%s=%s" % pair for pair in event.headers)
                print("head", number, names, flush=True)
                stream = event.stream_id
                if mode == "goaway" and number == 1:
                    # This one was never looked at.
                    conn.close_connection(last_stream_id=0)
                elif mode == "refuse":
                    conn.send_headers(stream, [(":status", "503")], end_stream=True)
                elif mode == "late" and stream > 1:
                    conn.reset_stream(stream, 7)
                else:
                    conn.send_headers(stream, [(":status", "200"), ("baggage", "k8s.namespace.name=other")])
                    waiting[stream] = b""
            elif isinstance(event, h2.events.DataReceived):
                conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                waiting[event.stream_id] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                print("reset", int(event.error_code), flush=True)
                waiting.pop(event.stream_id, None)
                ended.discard(event.stream_id)
        for stream in list(waiting):
            while waiting[stream]:
                room = min(len(waiting[stream]), conn.local_flow_control_window(stream), 16384)
                if room <= 0:
                    break
                conn.send_data(stream, waiting[stream][:room])
                waiting[stream] = waiting[stream][room:]
            if stream in ended and not waiting[stream]:
                ended.discard(stream)
                if mode == "cancel":
                    conn.reset_stream(stream, 8)
                else:
                    # As Envoy does: the end, and that nothing more is read.
                    conn.end_stream(stream)
                waiting.pop(stream)
        sock.sendall(conn.data_to_send())


def guarded(raw):
    try:
        serve(raw)
    except Exception as error:
        print("failed", type(error).__name__, error, flush=True)


while True:
    raw, _ = listener.accept()
    threading.Thread(target=guarded, args=(raw,), daemon=True).start()
