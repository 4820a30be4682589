//! Splicing: may captured connections go past TCP on this kernel? See `mesh_common::splice` for what is done.
//!
//! Nothing is loaded, attached or tried before a workload asks. Then, once in an agent's life: the offsets that the
//! program needs ([`offsets`]), the program onto the map of sockets, a trial with real connections in a namespace
//! of its own ([`trial`]). Any failure takes the program away again, and nothing is ever spliced.
//!
//! - [`pair`]: the connections of the trial.
//!
//! Invariant: no workload's connection is spliced before the trial has passed. Entries of `SPLICE` are never
//! deleted: connections that are spliced stay so until they end.

mod offsets;
mod pair;
mod trial;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use aya::EbpfLoader;
use aya::programs::Program;
use mesh_common::maps as names;
use mesh_common::splice::offset;
use parking_lot::Mutex;

use super::load::chain;
use super::maps::Kernel;
use crate::sys::bpf;
use offsets::Offsets;
pub(super) use pair::NOBODY;
pub use trial::Step;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MESH_SPLICE_OBJECT"));
/// The program's name in the object.
pub(super) const PROGRAM: &str = "mesh_splice";

/// May captured connections go past TCP?
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Splicing {
    /// Nobody has asked: it was not tried.
    #[default]
    Unasked,
    /// It is being tried.
    Trying,
    /// Yes.
    On,
    /// No, because.
    Off(String),
}

/// What the kernel's side has of it.
pub(super) struct Splice {
    /// `SPLICE`.
    sockets: OwnedFd,
    state: Mutex<Splicing>,
    /// Attached to it.
    pub program: Mutex<Option<OwnedFd>>,
}

impl Splice {
    pub fn new(sockets: OwnedFd) -> Self {
        Self { sockets, state: Mutex::new(Splicing::Unasked), program: Mutex::default() }
    }
}

impl Kernel {
    /// How it stands.
    pub fn splicing(&self) -> Splicing {
        self.splice.state.lock().clone()
    }

    /// Somebody asks for it: at the first time it is tried, on a thread of its own.
    pub fn ask_splicing(self: &Arc<Self>) {
        {
            let mut state = self.splice.state.lock();
            if *state != Splicing::Unasked {
                return;
            }
            *state = Splicing::Trying;
        }
        let kernel = self.clone();
        let run = move || drop(kernel.try_splicing());
        let started = std::thread::Builder::new().name("splice".to_owned()).spawn(run);
        if let Err(error) = started {
            self.splicing_is(Splicing::Off(format!("no thread to try it on: {error}")));
        }
    }

    /// Tries it, and says in the log what came of it. The steps of the trial, if it came to that.
    pub fn try_splicing(&self) -> Vec<Step> {
        let steps = match self.load_splicing().and_then(|()| self.trial()) {
            Ok(steps) => steps,
            Err(why) => {
                self.splicing_off(why);
                return Vec::new();
            }
        };
        let failed: Vec<String> = steps.iter().filter_map(Step::failure).collect();
        if failed.is_empty() {
            tracing::info!("splicing is on: this kernel passes the trial");
            self.splicing_is(Splicing::On);
        } else {
            self.splicing_off(format!("this kernel does not pass the trial: {}", failed.join("; ")));
        }
        steps
    }

    fn splicing_off(&self, why: String) {
        tracing::warn!(why, "splicing is off: connections of workloads that asked for it go through TCP");
        if let Some(program) = self.splice.program.lock().take()
            && let Err(error) = bpf::detach_from_sockets(self.splice.sockets.as_fd(), program.as_fd())
        {
            tracing::debug!(%error, "the splicing program stays attached, to no socket");
        }
        self.splicing_is(Splicing::Off(why));
    }

    fn splicing_is(&self, state: Splicing) {
        *self.splice.state.lock() = state;
    }

    /// Loads the program and gives it to the map, for sockets that will come into it.
    fn load_splicing(&self) -> Result<(), String> {
        let at = Offsets::of_this_kernel()?;
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        for spec in [names::SPLICE, names::SPLICE_ENDS] {
            loader.map_pin_path(spec.name, self.pins.join("maps").join(spec.name));
        }
        loader.override_global(offset::WRITE_SEQ, &at.write_seq, true);
        loader.override_global(offset::COPIED_SEQ, &at.copied_seq, true);
        loader.override_global(offset::RMEM_ALLOC, &at.rmem_alloc, true);
        let refused = |e: &(dyn std::error::Error + 'static)| format!("the kernel refuses: {}", chain(e));
        let mut ebpf = loader.load(OBJECT).map_err(|e| refused(&e))?;
        let Some(Program::SkMsg(program)) = ebpf.program_mut(PROGRAM) else {
            return Err(format!("program {PROGRAM} is not in the object"));
        };
        program.load().map_err(|e| refused(&e))?;
        let program = program.fd().map_err(|e| refused(&e))?;
        let program = program.as_fd().try_clone_to_owned().map_err(|e| refused(&e))?;
        bpf::attach_to_sockets(self.splice.sockets.as_fd(), program.as_fd())
            .map_err(|e| format!("the program cannot be attached to map {}: {e}", names::SPLICE.name))?;
        *self.splice.program.lock() = Some(program);
        Ok(())
    }
}
