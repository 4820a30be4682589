//! `aya::Pod` for what crosses the system call boundary.
#![allow(unsafe_code)]

use crate::homes::Home;
use crate::{record as r, sender, splice, transport, udp};

macro_rules! pod {
    ($($t:ty),* $(,)?) => {$(
        // SAFETY: `repr(C)`, made of integers and arrays of them alone, no padding (sizes asserted beside
        // the types), `Copy` and `'static`: any bit pattern is a value.
        unsafe impl aya::Pod for $t {}
    )*};
}

pod!(
    r::EnrolledKey,
    r::Enrolled,
    r::ServiceKey,
    r::Service,
    r::WorkloadKey,
    r::Workload,
    r::Endpoint,
    r::MaglevRow,
    r::Rules,
    r::AffinityKey,
    r::Affinity,
    r::Load,
    r::FlowKey,
    r::FlowSource,
    r::PolicyKey,
    r::PolicyCidr,
    r::Denial,
    transport::ExcludeKey,
    transport::ExcludeCidr,
    transport::AskedKey,
    transport::Asked,
    sender::Sender,
    r::SynKey,
    r::Capture,
    r::Flow,
    splice::End,
    udp::StickyKey,
    udp::Sticky,
    Home<r::EnrolledKey, r::Enrolled>,
    Home<r::ServiceKey, r::Service>,
    r::TotalsHome,
    r::TotalsKey,
    r::Totals,
    r::FlowEvent,
);
