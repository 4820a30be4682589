//! The resources held.
use std::sync::Arc;
/// "<namespace>/<name>".
pub type Name = Arc<str>;
/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Service.
    Service,
    /// Workload.
    Workload,
    /// HTTPRoute.
    HttpRoute,
    /// TrafficPolicy.
    TrafficPolicy,
    /// Mesh.
    Mesh,
}
impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::HttpRoute => "HTTPRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::Mesh => "Mesh",
        })
    }
}
