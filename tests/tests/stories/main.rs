//! The stories: what the mesh does for real programs in real namespaces, one module a subject.
//!
//! Stories that take minutes stand in `long` and run with `cargo xtask test --all`.

#![forbid(unsafe_code)]

mod addresses;
mod agent_loss;
mod alerts;
mod answers;
mod api;
mod authorise;
mod bad_input;
mod balance;
mod breaking;
mod choosing;
mod consumers;
mod control_loss;
mod detect;
mod dns;
mod egress;
mod endpoints;
mod enrolment;
mod envoy;
mod ext_authz;
mod external;
mod files;
mod grpc_routes;
mod grpc_xds;
mod hand_over;
mod harness;
mod hbone;
mod health;
mod history;
mod host;
mod http;
mod http2;
mod identity;
mod jwt;
mod kernel_view;
mod keys;
mod kills;
mod lifecycle;
mod limits;
mod locality;
mod long;
mod malformed;
mod mtls;
mod names;
mod neighbours;
mod odd_input;
mod policy;
mod recovery;
mod replicas;
mod resilience;
mod rotation;
mod routes;
mod seeing;
mod splice;
mod spread;
mod sticky;
mod telemetry;
mod tls_routes;
mod transport;
mod udp;
mod udp_policy;
mod upgrades;
mod words;
