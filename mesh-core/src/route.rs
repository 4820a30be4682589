//! Placeholder of the route table until its own page is here.

/// A service port's routes.
#[derive(Clone, Debug, Default)]
pub struct RouteTable;
