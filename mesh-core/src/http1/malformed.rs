//! The ways in which a message breaks HTTP/1.1, as far as refusals tell them apart.
//!
//! Most of these are shapes that two implementations read differently (RFC 9112 section 11.2, request
//! smuggling): naming the shape in the reply is what lets a person find the client that sends it.

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The first bytes cannot begin an HTTP/1 message.
    #[error("the first bytes are not HTTP/1")]
    NotHttp,
    /// More bytes than the limit.
    #[error("the head is larger than its limit in bytes")]
    HeadTooLarge,
    /// More header fields than the limit.
    #[error("the head has more header fields than its limit")]
    TooManyHeaders,
    /// LF that does not follow CR.
    #[error("a line ends in LF without CR")]
    BareLf,
    /// CR that LF does not follow.
    #[error("a CR is not followed by LF")]
    BareCr,
    /// A header continued on the next line.
    #[error("a header line begins with white space (obsolete line folding)")]
    ObsFold,
    /// `Name : value`.
    #[error("white space before the colon of a header")]
    SpaceBeforeColon,
    /// A header's name is empty or has a byte that is no token character.
    #[error("invalid byte in a header name")]
    HeaderName,
    /// A header's value has a control character.
    #[error("invalid byte in a header value")]
    HeaderValue,
    /// Request line or status line that is not three parts with one space between them.
    #[error("malformed start line")]
    StartLine,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    #[error("version is neither HTTP/1.0 nor HTTP/1.1")]
    Version,
    /// Status outside 100..=599.
    #[error("status is not in 100..=599")]
    Status,
    /// The request target has a byte that no URI has, or is of none of the four forms.
    #[error("invalid request target")]
    Target,
    /// HTTP/1.1 without Host.
    #[error("Host is missing")]
    HostMissing,
    /// More than one Host.
    #[error("Host is repeated")]
    HostRepeated,
    /// Host is not `name[:port]`.
    #[error("Host is not a host with an optional port")]
    HostInvalid,
    /// Content-Length and Transfer-Encoding in one head.
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndEncoding,
    /// More than one Content-Length, be they equal or not.
    #[error("Content-Length is repeated")]
    LengthRepeated,
    /// Content-Length is not a decimal number below 2^63.
    #[error("Content-Length is not a decimal number below 2^63")]
    LengthInvalid,
    /// Transfer-Encoding is something else than `chunked`, once.
    #[error("Transfer-Encoding is not exactly `chunked`")]
    EncodingUnsupported,
    /// Transfer-Encoding in HTTP/1.0.
    #[error("Transfer-Encoding in HTTP/1.0")]
    EncodingInHttp10,
    /// Connection is not a list of tokens, names too many of them, or names a header that says where the
    /// message ends or goes.
    #[error("Connection names Host, Content-Length or Transfer-Encoding, or is not a short list of tokens")]
    Connection,
    /// CONNECT with a body.
    #[error("CONNECT with a body")]
    ConnectBody,
    /// 101 without an Upgrade in the request.
    #[error("the protocol was switched without being asked")]
    UpgradeUnasked,
    /// 1xx that announces a body.
    #[error("an interim response announces a body")]
    InterimBody,
    /// A chunk's size is not a hexadecimal number below 2^63.
    #[error("a chunk's size is not a hexadecimal number below 2^63")]
    ChunkSize,
    /// Something after a chunk's size.
    #[error("chunk extensions are not accepted")]
    ChunkExtension,
    /// The line with a chunk's size is over the limit.
    #[error("the line with a chunk's size is longer than its limit")]
    ChunkLine,
    /// No CRLF after a chunk's data.
    #[error("a chunk's data is not followed by CRLF")]
    ChunkEnd,
    /// Trailers over the limit.
    #[error("the trailers are larger than their limit")]
    TrailersTooLarge,
    /// A trailer that only makes sense in the head.
    #[error("a trailer names a header that belongs in the head")]
    TrailerForbidden,
}
