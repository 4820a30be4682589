//! How the connections of a workload are encrypted, port by port, and what follows from that for a connection.
//!
//! compile ──[`MtlsRules`] of each workload──▶ snapshot ──▶ { plan: flags of the maps; the proxy: tunnel or not }
//!
//! A connection is decided by the workload that is called; one that is itself `off` opens none but plain ones.
//! Not here: which of several policies holds (compile), certificates.

use std::sync::Arc;

/// Ways of encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// None: neither asked for nor offered.
    Off,
    /// Between workloads of two nodes always; from others plaintext is taken as well.
    #[default]
    Permissive,
    /// Plaintext is refused, but from workloads that the kernel of the same node proves.
    Strict,
}

/// What holds for a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MtlsRules {
    /// Where no port says otherwise, and for what it opens itself.
    pub mode: MtlsMode,
    /// By port of the workload, in order; `None`, as for nearly all: no port says anything.
    pub ports: Option<Arc<PortModes>>,
}

/// Modes of single ports, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortModes(pub Box<[(u16, MtlsMode)]>);

impl MtlsRules {
    /// What holds at a port of the workload.
    pub fn at(&self, port: u16) -> MtlsMode {
        let own = self.ports().iter().find(|(number, _)| *number == port);
        own.map_or(self.mode, |(_, mode)| *mode)
    }

    /// The ports that have a mode of their own.
    pub fn ports(&self) -> &[(u16, MtlsMode)] {
        self.ports.as_ref().map_or(&[], |ports| &ports.0)
    }

    /// Is this the mode of the workload or of one of its ports?
    pub fn any(&self, mode: MtlsMode) -> bool {
        self.mode == mode || self.ports().iter().any(|(_, own)| *own == mode)
    }

    /// Is plaintext taken everywhere, and encryption nowhere?
    pub fn all_off(&self) -> bool {
        self.mode == MtlsMode::Off && self.ports().iter().all(|(_, own)| *own == MtlsMode::Off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_comes_before_its_workload() {
        let rules = MtlsRules {
            mode: MtlsMode::Off,
            ports: Some(Arc::new(PortModes([(80, MtlsMode::Strict)].into()))),
        };
        assert_eq!((rules.at(80), rules.at(81)), (MtlsMode::Strict, MtlsMode::Off));
        assert!(rules.any(MtlsMode::Strict) && rules.any(MtlsMode::Off) && !rules.any(MtlsMode::Permissive));
        assert!(!rules.all_off());
        assert_eq!(MtlsRules::default().at(1), MtlsMode::Permissive);
    }
}
