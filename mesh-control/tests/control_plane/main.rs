//! The control plane as its clients see it: started in this process on free ports with a directory of its
//! own, spoken to over TLS.

mod api;
mod envoy;
mod files;
mod identity;
mod jwks;
mod lifecycle;
mod rest;
mod sessions;
mod support;
mod xds;
