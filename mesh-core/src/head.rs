//! What routing and policy read of a request, whatever version of HTTP brought it.
//!
//! http1 (and later HTTP/2) ──`Head`──▶ route
//!
//! Not here: anything that changes a head (that is `http1::write_request`).

/// A request's head, read only.
pub trait Head {
    /// Method, case-sensitive.
    fn method(&self) -> &str;
    /// Path without the query, as it was sent: no decoding, no `..` resolved. `*` for `OPTIONS *`, empty for
    /// `CONNECT`.
    fn path(&self) -> &str;
    /// What stands behind the `?`, as it was sent; `None`: there is no `?`.
    fn query(&self) -> Option<&str>;
    /// Host and optional port that the request is for; empty when it names none.
    fn authority(&self) -> &str;
    /// Value of the first header of this name (any case), without the white space around it.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// Does the value of any header of this name (any case) hold?
    fn any_header(&self, name: &str, holds: &mut dyn FnMut(&[u8]) -> bool) -> bool;
}
