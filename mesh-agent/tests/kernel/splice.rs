//! Splicing on the kernel that runs the test: the trial tells it all but what it is known to do wrong.

use mesh_agent::kernel::Splicing;
use mesh_common::maps::SPLICE_ENDS;

use crate::place::Place;

/// What kernels are known not to pass: those without "bpf, sockmap: Account for receive queue in FIONREAD without a
/// verdict program", and those whose `tcp_bpf_recvmsg` takes any wake-up for the end of its time.
const KNOWN: [&str; 2] = ["FIONREAD", "a blocking read"];

#[test]
fn the_trial_finds_nothing_amiss_but_what_is_known_of_this_kernel() {
    let place = Place::new();
    let kernel = place.kernel();
    assert_eq!(kernel.splicing(), Splicing::Unasked);
    let steps = kernel.try_splicing();
    assert_eq!(steps.len(), 6, "{:?}", kernel.splicing());
    let failed: Vec<_> = steps.iter().filter(|step| step.failed.is_some()).collect();
    assert!(failed.iter().all(|step| KNOWN.contains(&step.name)), "{failed:?}");
    match (kernel.splicing(), failed.as_slice()) {
        (Splicing::On, []) => {}
        (Splicing::Off(why), failed) => {
            assert!(failed.iter().all(|step| why.contains(&step.failure().unwrap())), "{why}");
        }
        other => panic!("{other:?}"),
    }
    // Nothing of the trial is left.
    assert_eq!(kernel.enrolled().unwrap(), []);
    let ends = kernel.fill().into_iter().find(|fill| fill.map == SPLICE_ENDS.name).unwrap();
    assert_eq!(ends.entries, Some(0));
}
