"""Issues tokens with PyJWT and shows its keys over HTTPS.

issuer.py DIR init ADDRESS          a certificate for its address, DIR/ca.pem
issuer.py DIR keys NAME:ALG ...     shows these keys from now on; makes those that are new
issuer.py DIR token NAME ALG CLAIMS prints a token; CLAIMS is JSON, times are relative to now
issuer.py DIR serve ADDRESS PORT    GET / answers DIR/jwks.json
"""
import base64, datetime, hashlib, hmac, http.server, ipaddress, json, os, ssl, sys, time

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

DIR = sys.argv[1]
PEM = serialization.Encoding.PEM


def path(name):
    return os.path.join(DIR, name)


def write(name, data):
    with open(path(name + ".new"), "wb") as file:
        file.write(data)
    os.rename(path(name + ".new"), path(name))


def private(key):
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def key(name, alg=None):
    if os.path.exists(path(name + ".pem")):
        with open(path(name + ".pem"), "rb") as file:
            return serialization.load_pem_private_key(file.read(), None)
    made = {
        "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate,
    }.get(alg, lambda: rsa.generate_private_key(65537, 2048))()
    write(name + ".pem", private(made))
    return made


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(n, length):
    return b64(n.to_bytes(length, "big"))


def shown(name, alg):
    public = key(name, alg).public_key()
    if isinstance(public, rsa.RSAPublicKey):
        n = public.public_numbers()
        return {"kty": "RSA", "kid": name, "n": number(n.n, 256), "e": number(n.e, 3)}
    if isinstance(public, ec.EllipticCurvePublicKey):
        n, size = public.public_numbers(), public.curve.key_size
        crv, length = f"P-{size}", size // 8
        return {"kty": "EC", "kid": name, "crv": crv, "x": number(n.x, length), "y": number(n.y, length)}
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return {"kty": "OKP", "kid": name, "crv": "Ed25519", "x": b64(raw)}


def init():
    address = sys.argv[3]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer")])
    now = datetime.datetime.utcnow()
    own = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    usage = x509.BasicConstraints(ca=False, path_length=None)
    authority = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuer's authority")])

    def certificate(subject, public, *extensions):
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(ca_name).public_key(public)
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(days=1))
        made = made.not_valid_after(now + datetime.timedelta(days=1))
        for extension in extensions:
            made = made.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return made.sign(authority, hashes.SHA256()).public_bytes(PEM)

    root = certificate(ca_name, authority.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    write("ca.pem", root)
    write("server.pem", certificate(name, own.public_key(), usage, names) + private(own))


def token():
    name, alg, claims = sys.argv[3], sys.argv[4], json.loads(sys.argv[5])
    for time_claim in ("exp", "nbf", "iat"):
        if time_claim in claims:
            claims[time_claim] += int(time.time())
    if alg == "confused":
        # The public key, taken for a shared secret.
        public = key(name).public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        part = lambda value: b64(json.dumps(value).encode())
        message = part({"alg": "HS256", "kid": name}) + "." + part(claims)
        print(message + "." + b64(hmac.new(public, message.encode(), hashlib.sha256).digest()))
    elif alg == "none":
        print(jwt.encode(claims, None, algorithm="none", headers={"kid": name}))
    else:
        print(jwt.encode(claims, key(name), algorithm=alg, headers={"kid": name}))


def serve():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with open(path("jwks.json"), "rb") as file:
                body = file.read()
            self.send_response(200)
            self.send_header("Cache-Control", "max-age=1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer((sys.argv[3], int(sys.argv[4])), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path("server.pem"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("ready", flush=True)
    server.serve_forever()


def keys():
    wanted = [one.split(":") for one in sys.argv[3:]]
    write("jwks.json", json.dumps({"keys": [shown(*one) for one in wanted]}).encode())


{"init": init, "keys": keys, "token": token, "serve": serve}[sys.argv[2]]()
