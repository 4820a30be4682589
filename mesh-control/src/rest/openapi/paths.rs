//! What can be asked: one [`Operation`] a path and method.

use mesh_api::resource::Kind;
use serde_json::{Value, json};

/// What is at one path by one method.
pub struct Operation {
    /// As the router has it.
    pub path: &'static str,
    /// In lower case.
    pub method: &'static str,
    /// What it is called; of a kind, with the kind's name behind.
    pub name: &'static str,
    says: &'static str,
    /// The least role; `None`: no token.
    role: Option<&'static str>,
    /// Of the query and of headers.
    asks: Vec<Value>,
    body: Option<Value>,
    /// Status, media type, schema.
    answers: Vec<(u16, &'static str, Value)>,
}

const JSON: &str = "application/json";
/// Stands for the kind's name in references.
const KIND: &str = "{Kind}";

fn named(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn query(name: &str, says: &str, schema: Value) -> Value {
    let mut out = json!({ "name": name, "in": "query", "description": says });
    out["schema"] = schema;
    out
}

fn dry_run() -> Value {
    query("dryRun", "Say what would be written, and write nothing", json!({ "type": "boolean" }))
}

fn preconditions() -> [Value; 2] {
    let header = |name: &str, says: &str, schema: Value| json!({ "name": name, "in": "header", "description": says, "schema": schema });
    [
        header(
            "If-Match",
            "Only over this revision, as `ETag` shows it",
            json!({ "type": "string", "pattern": "^\"[0-9]{1,18}\"$" }),
        ),
        header("If-None-Match", "Only if it is new", json!({ "type": "string", "enum": ["*"] })),
    ]
}

fn writes() -> Vec<Value> {
    let mut asks = preconditions().to_vec();
    asks.push(dry_run());
    asks
}

fn watches() -> Vec<Value> {
    vec![
        query("watch", "Go on with what changes, as server-sent events", json!({ "type": "boolean" })),
        query("from", "Only what changed after this revision; with `watch`", revision()),
    ]
}

fn lists() -> Vec<Value> {
    let mut asks = watches();
    asks.extend([
        query("limit", "So many at most", json!({ "type": "integer", "minimum": 1, "maximum": 10_000 })),
        query("continue", "What the page before said", json!({ "type": "string", "pattern": "/" })),
        query("labelSelector", "KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY, !KEY", json!({ "type": "string" })),
    ]);
    asks
}

fn revision() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": i64::MAX })
}

impl Operation {
    fn new(method: &'static str, path: &'static str, name: &'static str, says: &'static str) -> Self {
        let (asks, answers) = (Vec::new(), Vec::new());
        Self { path, method, name, says, role: None, asks, body: None, answers }
    }

    fn role(mut self, role: &'static str) -> Self {
        self.role = Some(role);
        self
    }

    fn asks(mut self, asks: impl IntoIterator<Item = Value>) -> Self {
        self.asks.extend(asks);
        self
    }

    fn body(mut self, schema: Value) -> Self {
        let mut body = json!({ "required": true });
        body["content"][JSON]["schema"] = schema;
        self.body = Some(body);
        self
    }

    fn gives(mut self, status: u16, media: &'static str, schema: Value) -> Self {
        self.answers.push((status, media, schema));
        self
    }

    fn json(self, status: u16, schema: Value) -> Self {
        self.gives(status, JSON, schema)
    }

    /// As the document has it, of a kind.
    pub fn of(&self, kind: Kind) -> Value {
        let text = self.plain().to_string().replace(KIND, kind.name());
        let mut out: Value = serde_json::from_str(&text).unwrap_or_default();
        out["operationId"] = format!("{}{}", self.name, kind.name()).into();
        out["tags"] = json!([kind.name()]);
        if kind != Kind::Workload
            && let Some(asks) = out["parameters"].as_array_mut()
        {
            asks.retain(|ask| ask["name"] != "lease");
        }
        out
    }

    /// As the document has it.
    pub fn plain(&self) -> Value {
        let label =
            json!({ "type": "string", "minLength": 1, "maxLength": 253, "pattern": "^[A-Za-z0-9._-]+$" });
        let parts = self.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        let mut parameters: Vec<Value> = parts
            .filter(|part| *part != "plural")
            .map(|part| json!({ "name": part, "in": "path", "required": true, "schema": label }))
            .collect();
        parameters.extend(self.asks.iter().cloned());
        let mut responses = json!({ "default": { "$ref": "#/components/responses/Refused" } });
        for (status, media, schema) in &self.answers {
            let response = &mut responses[status.to_string()];
            response["description"] = "Done.".into();
            response["content"][*media]["schema"] = schema.clone();
        }
        let refusals: &[&str] = if self.role.is_some() {
            &["400", "401", "403", "404", "408", "409", "410", "412", "413", "429", "503"]
        } else {
            &["503"]
        };
        for status in refusals {
            responses[*status] = json!({ "$ref": "#/components/responses/Refused" });
        }
        let least = self.role.map_or(String::new(), |role| format!(" Takes a token of role {role} or more."));
        let mut out = json!({
            "operationId": self.name,
            "summary": self.says,
            "description": format!("{}.{least}", self.says),
            "parameters": parameters,
            "responses": responses,
        });
        if let Some(body) = &self.body {
            out["requestBody"] = body.clone();
        }
        if self.role.is_none() {
            out["security"] = json!([]);
        }
        out
    }
}

/// All of them.
pub fn operations() -> Vec<Operation> {
    let mut all = of_the_server();
    all.extend(of_objects());
    all.extend(of_the_mesh());
    all.extend(of_authority());
    all.extend(of_envoys());
    all
}

fn of_the_server() -> Vec<Operation> {
    let text = || json!({ "type": "string" });
    let get = |path, name, says| Operation::new("get", path, name, says);
    vec![
        get("/healthz", "alive", "Whether the process answers").gives(200, "text/plain", text()),
        get("/readyz", "ready", "Whether all that was stored is served").gives(200, "text/plain", text()),
        get("/openapi.json", "describe", "This document").json(200, json!({ "type": "object" })),
        get("/metrics", "metrics", "Counters, as Prometheus reads them").role("viewer").gives(
            200,
            "text/plain",
            text(),
        ),
        get("/v1/status", "status", "Nodes, counts, leases, the watched directory")
            .role("viewer")
            .json(200, named("StatusPage")),
        get("/v1/authz/check", "checkAuthorization", "Whether a connection or request would be let in")
            .role("viewer")
            .asks([
                query("source", "Who calls", text()),
                query("destination", "Who is called", text()),
                query("port", "Port", json!({ "type": "integer", "minimum": 0, "maximum": 65_535 })),
                query("method", "Method of a request", text()),
                query("path", "Its path", text()),
                query("host", "Its host", text()),
                query("headers", "NAME: VALUE, a line each", text()),
            ])
            .json(200, named("Items")),
        get("/v1/health/{namespace}/{service}", "health", "How the endpoints of a service are, and why")
            .role("viewer")
            .json(200, json!({ "type": "object" })),
        get("/v1/discover/{namespace}/{service}", "discover", "Healthy endpoints of a service")
            .role("viewer")
            .asks([
                query("port", "Name or number of one port", text()),
                query(
                    "wait",
                    "With `index`: wait so long for a change, up to 5m",
                    json!({ "type": "string", "pattern": "^([0-9]{1,3}(s|ms)){1,4}$" }),
                ),
                query("index", "What the answer before said", text()),
            ])
            .json(200, named("Discovery")),
        get("/v1/audit", "audit", "The newest lines of the audit log")
            .role("admin")
            .asks([query(
                "limit",
                "So many at most",
                json!({ "type": "integer", "minimum": 1, "maximum": 10_000 }),
            )])
            .json(200, named("Items")),
        get("/v1/backup", "backup", "All that people wrote, as lines of JSON").role("admin").gives(
            200,
            "application/x-ndjson",
            text(),
        ),
        {
            let mut restore =
                Operation::new("post", "/v1/restore", "restore", "Fill an empty store from a backup")
                    .role("admin")
                    .json(200, named("Restored"));
            restore.body =
                Some(json!({ "required": true, "content": { "text/plain": { "schema": text() } } }));
            restore
        },
        Operation::new("post", "/v1/apply", "apply", "Write one object of any kind")
            .role("editor")
            .asks(writes())
            .body(named("Object"))
            .json(200, named("ObjectShown"))
            .json(201, named("ObjectShown")),
    ]
}

fn of_objects() -> Vec<Operation> {
    let (kind, shown) = (|| named(KIND), || named("{Kind}Shown"));
    let list = "/v1/{plural}";
    let of_namespace = "/v1/{plural}/{namespace}";
    let one = "/v1/{plural}/{namespace}/{name}";
    let events = || json!({ "type": "string" });
    let stream = "text/event-stream";
    let lease = query(
        "lease",
        "Only as long as heartbeats come, 1s to 24h",
        json!({ "type": "string", "pattern": "^[0-9]{1,4}s$" }),
    );
    vec![
        Operation::new("get", list, "list", "All objects of the kind")
            .role("viewer")
            .asks(lists())
            .json(200, named("{Kind}List"))
            .gives(200, stream, events()),
        Operation::new("get", of_namespace, "listNamespace", "All objects of the kind in a namespace")
            .role("viewer")
            .asks(lists())
            .json(200, named("{Kind}List"))
            .gives(200, stream, events()),
        Operation::new("get", one, "get", "One object")
            .role("viewer")
            .asks(watches())
            .json(200, shown())
            .gives(200, stream, events()),
        Operation::new("put", one, "put", "Write one object")
            .role("editor")
            .asks(writes())
            .asks([lease])
            .body(kind())
            .json(200, shown())
            .json(201, shown()),
        Operation::new("delete", one, "delete", "Remove one object")
            .role("editor")
            .asks(writes())
            .json(200, named("Removed")),
        Operation::new(
            "post",
            "/v1/{plural}/{namespace}/{name}/heartbeat",
            "heartbeat",
            "Renew the lease of a workload",
        )
        .role("editor")
        .json(200, json!({ "type": "object" })),
        Operation::new(
            "get",
            "/v1/{plural}/{namespace}/{name}/history",
            "history",
            "What was written to an object, the newest first; of a removed one too",
        )
        .role("viewer")
        .json(200, named("History")),
        Operation::new(
            "post",
            "/v1/{plural}/{namespace}/{name}/rollback",
            "rollBack",
            "Write an object as it was at a revision",
        )
        .role("editor")
        .asks(writes())
        .body(named("Rollback"))
        .json(200, shown())
        .json(201, shown()),
    ]
}

fn of_the_mesh() -> Vec<Operation> {
    let (mesh, shown) = (|| named("Mesh"), || named("MeshShown"));
    vec![
        Operation::new("get", "/v1/mesh", "getMesh", "The settings of the mesh")
            .role("viewer")
            .asks(watches())
            .json(200, shown())
            .gives(200, "text/event-stream", json!({ "type": "string" })),
        Operation::new("put", "/v1/mesh", "putMesh", "Write the settings of the mesh")
            .role("editor")
            .asks(writes())
            .body(mesh())
            .json(200, shown())
            .json(201, shown()),
        Operation::new(
            "get",
            "/v1/mesh/history",
            "historyOfMesh",
            "What was written to them, the newest first",
        )
        .role("viewer")
        .json(200, named("History")),
        Operation::new("post", "/v1/mesh/rollback", "rollMeshBack", "Write them as they were at a revision")
            .role("editor")
            .asks(writes())
            .body(named("Rollback"))
            .json(200, shown())
            .json(201, shown()),
    ]
}

fn of_authority() -> Vec<Operation> {
    let limit =
        query("limit", "So many at most", json!({ "type": "integer", "minimum": 0, "maximum": 10_000 }));
    vec![
        Operation::new("get", "/v1/tokens", "listTokens", "Tokens, without their secrets")
            .role("admin")
            .json(200, named("Items")),
        Operation::new("post", "/v1/tokens", "createToken", "Make a token; its text is in this answer alone")
            .role("admin")
            .body(named("TokenWanted"))
            .json(201, named("TokenMade")),
        Operation::new(
            "delete",
            "/v1/tokens/{id}",
            "revokeToken",
            "End a token, and the membership of its node",
        )
        .role("admin")
        .json(200, json!({ "type": "object" })),
        Operation::new("get", "/v1/ca", "authority", "Roots and intermediate")
            .role("viewer")
            .json(200, json!({ "type": "object" })),
        Operation::new("get", "/v1/ca/issued", "issued", "Certificates, the newest first")
            .role("viewer")
            .asks([limit])
            .json(200, named("Items")),
        Operation::new("post", "/v1/ca/rotate", "rotate", "Make a new intermediate, or root")
            .role("admin")
            .body(named("Rotation"))
            .json(200, json!({ "type": "object" })),
        Operation::new("post", "/v1/ca/revoke", "revokeCertificates", "Revoke certificates")
            .role("admin")
            .body(named("Revocation"))
            .json(200, json!({ "type": "object" })),
        Operation::new("get", "/v1/nodes", "listNodes", "Nodes that have joined")
            .role("viewer")
            .json(200, named("Items")),
        Operation::new("post", "/v1/nodes/{node}/revoke", "revokeNode", "End a node's membership")
            .role("admin")
            .json(200, json!({ "type": "object" })),
    ]
}

fn of_envoys() -> Vec<Operation> {
    let any = || json!({ "type": "object" });
    let one = "/v1/envoy/{node_type}";
    let mut all = vec![
        Operation::new(
            "get",
            "/v1/proxies",
            "listProxies",
            "Envoys and clients of gRPC, and what they refused",
        )
        .role("viewer")
        .json(200, any()),
        Operation::new("get", one, "getEnvoy", "What Envoys of a node type have")
            .role("viewer")
            .json(200, any()),
        Operation::new("put", one, "putEnvoy", "Write the EnvoyResources of a node type")
            .role("editor")
            .asks(preconditions())
            .body(any())
            .json(200, any())
            .json(201, any()),
        Operation::new("delete", one, "deleteEnvoy", "Remove them")
            .role("editor")
            .asks(preconditions())
            .json(200, any()),
        Operation::new(
            "post",
            "/v1/envoy/{node_type}/certificate",
            "certifyEnvoy",
            "A certificate for an Envoy of a node type",
        )
        .role("admin")
        .body(json!({ "type": "object", "required": ["csr"], "properties": { "csr": { "type": "string" } } }))
        .json(200, any()),
        Operation::new("put", "/resources/{node_type}", "putResources", "The same as sxds has it")
            .role("editor")
            .asks(preconditions())
            .body(any())
            .gives(200, "text/plain", json!({ "type": "string" })),
    ];
    let polled = [
        ("/v3/discovery:listeners", "pollListeners"),
        ("/v3/discovery:clusters", "pollClusters"),
        ("/v3/discovery:routes", "pollRoutes"),
        ("/v3/discovery:endpoints", "pollEndpoints"),
        ("/v3/discovery:secrets", "pollSecrets"),
    ];
    all.extend(polled.map(|(path, name)| {
        Operation::new("post", path, name, "What a client of Envoy's API polls; 304 where nothing is new")
            .role("envoy")
            .body(any())
            .json(200, any())
            .gives(304, JSON, any())
    }));
    all
}
