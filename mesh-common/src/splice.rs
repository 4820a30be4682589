//! Splicing: bytes of a captured connection go from one end's `send()` straight into the other end's queue, and
//! not through TCP over loopback.
//!
//! `sock_ops` puts both ends into `SPLICE` and notes each of them in `SPLICE_ENDS`; a program that runs at each
//! `send()` asks [`may_move`]. An end that never gets a partner is never asked for.
//!
//! Invariant: bytes never overtake others. What went through TCP has been read by the other end before anything
//! is moved past it, and what was moved is read before what comes through TCP.
//! Not here: whether this kernel can do it (mesh-agent tries that), who asks for it (`TransportPolicy`).

use crate::record::{FlowKey, SynKey};

/// Value of `SPLICE_ENDS`: one end of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The kernel's socket, for looking at it alone.
    pub own: u64,
    /// The other end's; 0: it is not there yet.
    pub peer: u64,
    /// Bytes that this end has sent past TCP.
    pub moved: u64,
    /// How often it did.
    pub times: u64,
}
const _: () = assert!(size_of::<End>() == 32);

/// Bytes that may lie unread at an end before more is given to TCP, which makes its sender wait.
pub const UNREAD_MOST: u32 = 256 << 10;

/// May bytes go past TCP? Only where the other end has read all that this one has given to TCP, and has room.
#[inline(always)]
pub const fn may_move(write_seq: u32, copied_seq: u32, unread: u32) -> bool {
    write_seq == copied_seq && unread <= UNREAD_MOST
}

/// The other end's key.
#[inline(always)]
pub const fn other(key: &SynKey) -> SynKey {
    let FlowKey { src, dst, src_port_be, dst_port_be } = key.flow;
    let flow = FlowKey { src: dst, dst: src, src_port_be: dst_port_be, dst_port_be: src_port_be };
    SynKey { netns: key.netns, flow, pad: 0 }
}

/// Variables of the program: at which byte of the kernel's `struct tcp_sock` something is.
pub mod offset {
    /// The number of the next byte that is given to TCP.
    pub const WRITE_SEQ: &str = "SPLICE_WRITE_SEQ";
    /// The number of the next byte that is read from TCP.
    pub const COPIED_SEQ: &str = "SPLICE_COPIED_SEQ";
    /// Memory that unread bytes hold.
    pub const RMEM_ALLOC: &str = "SPLICE_RMEM_ALLOC";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_move_only_where_they_overtake_none_and_find_room() {
        assert!(may_move(7, 7, 0) && may_move(u32::MAX, u32::MAX, UNREAD_MOST));
        assert!(!may_move(8, 7, 0), "a byte is on its way through TCP");
        assert!(!may_move(7, 7, UNREAD_MOST + 1));
        assert!(!may_move(7, 7, u32::MAX), "what could not be read is no room");
    }

    #[test]
    fn the_other_end_of_the_other_end_is_this_one() {
        let flow = FlowKey { src: [1; 4], dst: [2; 4], src_port_be: 3, dst_port_be: 4 };
        let key = SynKey { netns: 9, flow, pad: 0 };
        assert_eq!((other(&key).flow.src, other(&key).flow.src_port_be, other(&key).netns), ([2; 4], 4, 9));
        assert_eq!(other(&other(&key)), key);
    }
}
