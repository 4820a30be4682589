//! Tells the kernel who the agent is, so that it knows the moment at which the agent's end begins: see
//! `mesh-ebpf/src/going.rs`.
//!
//! Optional: without tracepoints a killed agent's listeners take connections until its memory is gone, and
//! reset them. Nothing is pinned, and nothing is closed: the links watch the process and go with it.

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{Program, ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun};

use super::load::chain;

/// Run once, attached nowhere.
const REGISTER: &str = "mesh_register";
/// Programs and their tracepoints.
const WATCHES: [(&str, &str); 2] = [("mesh_signal", "signal_generate"), ("mesh_exit", "sched_process_exit")];

/// What can go wrong; the agent serves all the same.
#[derive(Debug, thiserror::Error)]
enum NotWatched {
    #[error("program {0} is not in the object, or not a raw tracepoint program")]
    Missing(&'static str),
    #[error("this is not the main thread")]
    OtherThread,
    #[error("{0}")]
    Program(&'static str, #[source] ProgramError),
}

/// A program that watches for the agent's end.
#[derive(Clone, Debug)]
pub struct Watch {
    /// Its name in the object.
    pub name: &'static str,
    /// Its tracepoint.
    pub tracepoint: &'static str,
    /// Ids of its link and of itself, or why it is not there.
    pub ids: Result<(u32, u32), String>,
}

/// From now on the kernel knows this process, and when its end begins; what it noted of an earlier agent's
/// end is forgotten. To be called on the main thread, before a listener is put.
pub fn watch(ebpf: &mut Ebpf) -> Vec<Watch> {
    let registered = register(ebpf).map_err(|error| chain(&error));
    // One without the other still sees most.
    let watches = WATCHES.map(|(name, tracepoint)| {
        let attached = |()| attach(ebpf, name, tracepoint).map_err(|error| chain(&error));
        Watch { name, tracepoint, ids: registered.clone().and_then(attached) }
    });
    for error in watches.iter().filter_map(|watch| watch.ids.as_ref().err()) {
        tracing::warn!(
            error,
            "the end of this agent will show late: should it be killed, connections to proxied services \
             that begin in the milliseconds after may be reset"
        );
    }
    watches.into()
}

fn register(ebpf: &mut Ebpf) -> Result<(), NotWatched> {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return Err(NotWatched::OtherThread);
    }
    let failed = |e| NotWatched::Program(REGISTER, e);
    let program = program(ebpf, REGISTER)?;
    program.load().map_err(failed)?;
    program.test_run(RawTracePointRunOptions::new()).map(drop).map_err(failed)
}

/// Ids of the link and of the program.
fn attach(ebpf: &mut Ebpf, name: &'static str, tracepoint: &str) -> Result<(u32, u32), NotWatched> {
    let failed = |e| NotWatched::Program(name, e);
    let program = program(ebpf, name)?;
    program.load().map_err(failed)?;
    let link = program.attach(tracepoint).map_err(failed)?;
    let link: FdLink = program.take_link(link).map_err(failed)?.into();
    let ids = link.info().map(|info| info.id()).ok().zip(program.info().map(|info| info.id()).ok());
    // Closed by the kernel, when the process is no more.
    std::mem::forget(link);
    Ok(ids.unwrap_or_default())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut RawTracePoint, NotWatched> {
    match ebpf.program_mut(name) {
        Some(Program::RawTracePoint(program)) => Ok(program),
        _ => Err(NotWatched::Missing(name)),
    }
}
