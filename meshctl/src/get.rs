//! `meshctl get` and `meshctl delete`.
//!
//! Each kind has its own columns; `-o yaml` prints what `apply` takes.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use mesh_api::resource::{DEFAULT_NAMESPACE, Key, Kind};
use serde_json::{Value, json};

use crate::client::{Client, query};
use crate::manifest;
use crate::object::{kind, path};
use crate::table::{self, or_dash};

/// Shows objects.
#[derive(Args)]
pub struct Get {
    /// service, externalservice, workload, httproute, grpcroute, tlsroute, tcproute, udproute, trafficpolicy,
    /// authorizationpolicy, transportpolicy, envoyresources or mesh (plural is fine too)
    #[arg(value_parser = kind)]
    kind: Kind,
    /// One object instead of all
    name: Option<String>,
    /// Only this namespace; with a name: "default" unless told
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only objects with these labels: KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY, !KEY; joined by commas
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "name")]
    selector: Option<String>,
    /// Go on with what changes, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// How to show it; wide: with revision and labels
    #[arg(short, long, default_value = "table", value_parser = ["table", "wide", "yaml", "json"])]
    output: String,
}

/// Removes an object.
#[derive(Args)]
pub struct Delete {
    /// As for get
    #[arg(value_parser = kind, required_unless_present = "filename")]
    kind: Option<Kind>,
    /// Which
    #[arg(required_unless_present = "filename")]
    name: Option<String>,
    /// Its namespace
    #[arg(short, long, default_value = DEFAULT_NAMESPACE)]
    namespace: String,
    /// The objects of files instead: a file, a directory or - for standard input; what is gone already is no error
    #[arg(short, long, value_name = "FILE|DIR|-", conflicts_with = "kind")]
    filename: Vec<PathBuf>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl Get {
    pub fn run(&self, client: &Client) -> Result<()> {
        if self.watch {
            return self.follow(client);
        }
        let plural = self.kind.plural();
        let items = match (&self.name, self.kind.namespaced()) {
            (_, false) => vec![client.get("/v1/mesh")?],
            (Some(name), true) => {
                let namespace = self.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
                vec![client.get(&format!("/v1/{plural}/{namespace}/{name}"))?]
            }
            (None, true) => {
                let namespace = self.namespace.as_ref().map(|ns| format!("/{ns}")).unwrap_or_default();
                let list = client.get(&format!("/v1/{plural}{namespace}{}", self.asks('?')))?;
                list["items"].as_array().cloned().ok_or_else(|| anyhow!("the answer is no list"))?
            }
        };
        match self.output.as_str() {
            "json" if self.name.is_none() && self.kind.namespaced() => println!("{:#}", Value::from(items)),
            "json" => items.iter().for_each(|item| println!("{item:#}")),
            "yaml" => {
                for (place, item) in items.iter().enumerate() {
                    let separator = if place > 0 { "---\n" } else { "" };
                    print!("{separator}{}", serde_saphyr::to_string(item)?);
                }
            }
            _ => self.table(&items),
        }
        Ok(())
    }

    /// What is asked of a list.
    fn asks(&self, begin: char) -> String {
        self.selector.as_ref().map_or(String::new(), |text| format!("{begin}labelSelector={}", query(text)))
    }

    /// Prints what there is and what changes, as it comes.
    fn follow(&self, client: &Client) -> Result<()> {
        let (kind, namespace) = (self.kind, self.namespace.as_deref());
        let path = match (&self.name, namespace) {
            _ if !kind.namespaced() => "/v1/mesh".to_owned(),
            (Some(name), _) => path(&Key::new(kind, namespace.unwrap_or(DEFAULT_NAMESPACE), name)),
            (None, Some(namespace)) => format!("/v1/{}/{namespace}", kind.plural()),
            (None, None) => format!("/v1/{}", kind.plural()),
        };
        if matches!(self.output.as_str(), "table" | "wide") {
            println!("{}", self.head().join("  "));
        }
        client.events(&format!("{path}?watch=true{}", self.asks('&')), |event, data| {
            match (event, self.output.as_str()) {
                ("put" | "delete", "json") => println!("{}", json!({ "event": event, "data": data })),
                ("put", "yaml") => print!("---\n{}", serde_saphyr::to_string(&data["object"])?),
                ("delete", "yaml") => println!("# deleted: {}", data["key"]),
                ("put", _) => println!("{}", self.row(&data["object"]).join("  ")),
                ("delete", _) => {
                    let key = &data["key"];
                    println!("{}  {}  deleted", text(&key["namespace"]), text(&key["name"]));
                }
                _ => {}
            }
            Ok(())
        })
    }

    fn head(&self) -> Vec<&'static str> {
        let mut head = self.columns().to_vec();
        if self.output == "wide" {
            head.extend(["REVISION", "LABELS"]);
        }
        head
    }

    fn row(&self, item: &Value) -> Vec<String> {
        let mut row = row(self.kind, item);
        if self.output == "wide" {
            let labels = item["metadata"]["labels"].as_object().into_iter().flatten();
            let labels = join(labels.map(|(key, value)| format!("{key}={}", text(value))));
            row.extend([text(&item["metadata"]["revision"]), labels]);
        }
        row
    }

    fn columns(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Mesh => &["TRUST DOMAIN", "VIPS V4", "VIPS V6", "HTTP", "EGRESS"],
            Kind::ExternalService => &["NAMESPACE", "NAME", "HOSTS", "ADDRESSES", "VIPS", "PORTS"],
            Kind::Service => &["NAMESPACE", "NAME", "VIPS", "PORTS", "ENDPOINTS", "HEALTHY", "PROXY"],
            Kind::Workload => &[
                "NAMESPACE",
                "NAME",
                "NODE",
                "LOCALITY",
                "PRIORITY",
                "ADDRESSES",
                "ACCOUNT",
                "SERVICES",
                "OWNER",
                "HEALTH",
            ],
            Kind::HttpRoute | Kind::GrpcRoute => {
                &["NAMESPACE", "NAME", "PARENTS", "HOSTNAMES", "RULES", "BACKENDS"]
            }
            Kind::TlsRoute => &["NAMESPACE", "NAME", "PARENTS", "HOSTNAMES", "BACKENDS"],
            Kind::TcpRoute | Kind::UdpRoute => &["NAMESPACE", "NAME", "PARENTS", "BACKENDS"],
            Kind::TrafficPolicy => &["NAMESPACE", "NAME", "TARGETS", "HTTP", "ON PROXY LOSS", "BALANCING"],
            Kind::AuthorizationPolicy => &["NAMESPACE", "NAME", "SELECTOR", "ACTION", "RULES"],
            Kind::EnvoyResources => {
                &["NAMESPACE", "NAME", "TYPE", "GATEWAY", "LISTENERS", "CLUSTERS", "ROUTES", "ENDPOINTS"]
            }
            Kind::TransportPolicy => &["NAMESPACE", "NAME", "FOR", "UDP", "EXCLUDED OUT", "EXCLUDED IN"],
        }
    }

    fn table(&self, items: &[Value]) {
        let rows: Vec<_> = items.iter().map(|item| self.row(item)).collect();
        table::print(&self.head(), &rows);
        for item in items {
            for condition in
                array(&item["status"]["conditions"]).filter(|condition| condition["status"] == "False")
            {
                println!("{}: {}", text(&item["metadata"]["name"]), text(&condition["message"]));
            }
        }
    }
}

impl Delete {
    pub fn run(&self, client: &Client) -> Result<()> {
        if let (Some(kind), Some(name)) = (self.kind, &self.name) {
            return self.one(client, &Key::new(kind, &self.namespace, name), false);
        }
        // What refers to others goes before them.
        for object in manifest::read_all(&self.filename)?.into_iter().rev() {
            self.one(client, &object.key, true)?;
        }
        Ok(())
    }

    fn one(&self, client: &Client, key: &Key, may_be_gone: bool) -> Result<()> {
        if !key.kind.namespaced() {
            return Err(anyhow!("the Mesh cannot be removed; change it with `meshctl apply`"));
        }
        let dry = if self.dry_run { "?dryRun=true" } else { "" };
        let done = client.delete(&format!("{}{dry}", path(key)));
        match done {
            Err(error) if may_be_gone && client.is_missing(&error) => println!("{key} is not there"),
            done => {
                done?;
                println!("{key} deleted{}", if self.dry_run { " (dry run)" } else { "" });
            }
        }
        Ok(())
    }
}

fn row(kind: Kind, item: &Value) -> Vec<String> {
    let (spec, status) = (&item["spec"], &item["status"]);
    let mut row = vec![text(&item["metadata"]["namespace"]), text(&item["metadata"]["name"])];
    match kind {
        Kind::Mesh => {
            let pool = &spec["vipPool"];
            return vec![
                text(&spec["trustDomain"]),
                text(&pool["v4"]),
                text(&pool["v6"]),
                text(&spec["http"]),
                text(&spec["egress"]["mode"]),
            ];
        }
        Kind::ExternalService => row.extend([
            join(array(&spec["hosts"]).map(text)),
            join(array(&spec["addresses"]).map(text)),
            join(array(&status["vips"]).map(text)),
            join(array(&spec["ports"]).map(|spec| {
                let tls = if spec["tls"].is_null() { "" } else { "+tls" };
                port(spec) + tls
            })),
        ]),
        Kind::Service => {
            let given = join(array(&spec["vips"]).map(text));
            let vips = if given == "-" { join(array(&status["vips"]).map(text)) } else { given };
            let ports = join(array(&spec["ports"]).map(port));
            let proxy = join(array(&item["observed"]["proxy"]).map(text));
            let observed = &item["observed"];
            row.extend([vips, ports, text(&observed["endpoints"]), text(&observed["healthy"]), proxy]);
        }
        Kind::Workload => row.extend([
            or_dash(text(&spec["node"])),
            locality(&spec["locality"]),
            spec["priority"].as_u64().unwrap_or(0).to_string(),
            join(array(&spec["addresses"]).map(text)),
            text(&spec["serviceAccount"]),
            join(array(&item["observed"]["services"]).map(text)),
            or_dash(text(&item["observed"]["owner"])),
            or_dash(text(&item["observed"]["health"])),
        ]),
        Kind::HttpRoute | Kind::GrpcRoute => row.extend([
            join(array(&spec["parentRefs"]).map(reference)),
            join(array(&spec["hostnames"]).map(text)),
            array(&spec["rules"]).count().to_string(),
            join(array(&spec["rules"]).flat_map(|rule| array(&rule["backendRefs"])).map(reference)),
        ]),
        Kind::TlsRoute => row.extend([
            join(array(&spec["parentRefs"]).map(reference)),
            join(array(&spec["hostnames"]).map(text)),
            join(array(&spec["rules"]).flat_map(|rule| array(&rule["backendRefs"])).map(reference)),
        ]),
        Kind::TcpRoute | Kind::UdpRoute => row.extend([
            join(array(&spec["parentRefs"]).map(reference)),
            join(array(&spec["rules"]).flat_map(|rule| array(&rule["backendRefs"])).map(reference)),
        ]),
        Kind::TrafficPolicy => row.extend([
            join(array(&spec["targetRefs"]).map(reference)),
            or_dash(text(&spec["http"])),
            or_dash(text(&spec["onProxyLoss"])),
            or_dash(text(&spec["balancing"])),
        ]),
        Kind::AuthorizationPolicy => {
            row.extend([selector(spec), text(&spec["action"]), array(&spec["rules"]).count().to_string()]);
        }
        Kind::EnvoyResources => {
            let node_type = spec["nodeType"].as_str().map_or_else(|| row[1].clone(), str::to_owned);
            row.extend([node_type, or_dash(text(&spec["gateway"]["port"]))]);
            let count = |field: &str| array(&spec[field]).count().to_string();
            row.extend(["listeners", "clusters", "routes", "endpoints"].map(count));
        }
        Kind::TransportPolicy => {
            let labels = selector(spec);
            let excluded = |direction: &str| {
                let all = ["ports", "cidrs", "interfaces"];
                join(all.iter().flat_map(|what| array(&spec["exclude"][direction][*what]).map(text)))
            };
            row.extend([
                if labels == "-" { text(&spec["scope"]) } else { labels },
                or_dash(text(&spec["udp"])),
                excluded("outbound"),
                excluded("inbound"),
            ]);
        }
    }
    row
}

/// `region/zone`, as much of it as was said.
fn locality(at: &Value) -> String {
    let (region, zone) = (text(&at["region"]), text(&at["zone"]));
    or_dash(if region.is_empty() || zone.is_empty() { region + &zone } else { format!("{region}/{zone}") })
}

/// The labels that a policy asks for.
fn selector(spec: &Value) -> String {
    let labels = spec["selector"]["matchLabels"].as_object().into_iter().flatten();
    join(labels.map(|(key, value)| format!("{key}={}", text(value))))
}

/// `name:port->targetPort/protocol`, as short as it can be told.
fn port(port: &Value) -> String {
    let name = text(&port["name"]);
    let name = if name.is_empty() { name } else { format!("{name}:") };
    let target = &port["targetPort"];
    let target =
        if target.is_null() || *target == port["port"] { String::new() } else { format!("->{target}") };
    format!("{name}{}{target}/{}", port["port"], text(&port["protocol"]))
}

/// `name:port=weight` of a backend, parent or target.
fn reference(reference: &Value) -> String {
    let port = reference["port"].as_u64().map(|port| format!(":{port}")).unwrap_or_default();
    let section = reference["sectionName"].as_str().map(|name| format!(":{name}")).unwrap_or_default();
    let weight = reference["weight"].as_u64().map(|weight| format!("={weight}")).unwrap_or_default();
    let namespace = reference["namespace"].as_str().map(|name| format!("{name}/")).unwrap_or_default();
    format!("{namespace}{}{port}{section}{weight}", text(&reference["name"]))
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn join(parts: impl Iterator<Item = String>) -> String {
    or_dash(parts.collect::<Vec<_>>().join(","))
}
