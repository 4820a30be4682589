//! Certificates made for the occasion, and what becomes of them.

mod handshake;
mod verify;
