//! Why a peer is not believed: one name for each cause, the same in logs, metrics and on both ends.

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};
use std::sync::Arc;

/// Why a peer's certificate is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    Missing,
    /// Bytes that are no certificate, or one with parts that nobody here understands.
    #[error("the peer's certificate is damaged or of a form that is not understood")]
    Malformed,
    /// No root of ours has issued it.
    #[error("the peer's certificate leads to no root of this mesh")]
    UnknownCa,
    /// A signature of its chain does not hold: an authority that was made anew under its old name, or damage.
    #[error("the peer's certificate names an authority that is trusted here, which has not signed it")]
    BadSignature,
    /// Its time is over.
    #[error("the peer's certificate has expired")]
    Expired,
    /// Its time has not come: mostly a clock that is wrong.
    #[error("the peer's certificate is not valid yet; compare the clocks of both nodes")]
    NotYetValid,
    /// It, or the authority that issued it, was revoked.
    #[error("the peer's certificate was revoked")]
    Revoked,
    /// It may sign certificates, so it is nobody's own.
    #[error("the peer shows the certificate of an authority as its own")]
    IsCa,
    /// It is not for this end of a connection.
    #[error("the peer's certificate is not for this use (extended key usage)")]
    WrongUse,
    /// No SPIFFE identity in it.
    #[error("the peer's certificate carries no identity spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    NoIdentity,
    /// More than one URI: nobody can tell who it is.
    #[error("the peer's certificate carries more than one URI, so it proves none")]
    TwoIdentities,
    /// An identity of another trust domain.
    #[error("the peer is of another trust domain")]
    WrongTrustDomain,
    /// Somebody else than was expected there: a pod's address that was given on, or somebody who listens in its place.
    #[error("the peer is somebody else than was expected at this address")]
    WrongIdentity,
    /// No handshake that TLS 1.3 allows, or with settings that are not spoken here.
    #[error("the peer does not speak TLS 1.3 as it is spoken here")]
    Handshake,
}

impl Refused {
    /// All, for tables with a row each.
    pub const ALL: [Self; 14] = [
        Self::Missing,
        Self::Malformed,
        Self::UnknownCa,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::IsCa,
        Self::WrongUse,
        Self::NoIdentity,
        Self::TwoIdentities,
        Self::WrongTrustDomain,
        Self::WrongIdentity,
        Self::Handshake,
    ];

    /// Log field and label.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownCa => "unknown_ca",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::IsCa => "is_ca",
            Self::WrongUse => "wrong_use",
            Self::NoIdentity => "no_identity",
            Self::TwoIdentities => "two_identities",
            Self::WrongTrustDomain => "wrong_trust_domain",
            Self::WrongIdentity => "wrong_identity",
            Self::Handshake => "handshake",
        }
    }

    /// As rustls' error, from which the peer gets the alert that says most.
    pub(crate) fn into_tls(self) -> Error {
        let error = match self {
            Self::Missing => return Error::NoCertificatesPresented,
            Self::Malformed => CertificateError::BadEncoding,
            Self::UnknownCa => CertificateError::UnknownIssuer,
            Self::BadSignature => CertificateError::BadSignature,
            Self::Expired => CertificateError::Expired,
            Self::NotYetValid => CertificateError::NotValidYet,
            Self::Revoked => CertificateError::Revoked,
            Self::WrongUse => CertificateError::InvalidPurpose,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Error::InvalidCertificate(error)
    }
}

/// Which end found fault with the other one's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// We do not believe the peer.
    Theirs(Refused),
    /// The peer does not believe us, and its alert says so.
    Ours(Refused),
}

impl Fault {
    /// What a failed handshake says; `None`: nothing of a certificate or of TLS itself.
    pub fn of(error: &Error) -> Option<Self> {
        Some(match error {
            Error::NoCertificatesPresented => Self::Theirs(Refused::Missing),
            Error::InvalidCertificate(error) => Self::Theirs(of_certificate(error)),
            Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Self::Theirs(Refused::Malformed)
            }
            Error::AlertReceived(alert) => Self::Ours(of_alert(*alert)?),
            Error::PeerIncompatible(_)
            | Error::PeerMisbehaved(_)
            | Error::InappropriateMessage { .. }
            | Error::InappropriateHandshakeMessage { .. }
            | Error::InvalidMessage(_)
            | Error::NoApplicationProtocol
            | Error::DecryptError
            | Error::PeerSentOversizedRecord => Self::Theirs(Refused::Handshake),
            _ => return None,
        })
    }
}

fn of_certificate(error: &CertificateError) -> Refused {
    match error {
        CertificateError::UnknownIssuer => Refused::UnknownCa,
        CertificateError::BadSignature => Refused::BadSignature,
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Refused::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Refused::NotYetValid,
        CertificateError::Revoked => Refused::Revoked,
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            Refused::WrongUse
        }
        CertificateError::Other(other) => {
            other.0.downcast_ref::<Refused>().copied().unwrap_or(Refused::Malformed)
        }
        _ => Refused::Malformed,
    }
}

/// Alerts name less than we know: `certificate_unknown` is all that a peer says of a wrong identity.
fn of_alert(alert: AlertDescription) -> Option<Refused> {
    Some(match alert {
        AlertDescription::CertificateRequired => Refused::Missing,
        AlertDescription::UnknownCA => Refused::UnknownCa,
        AlertDescription::CertificateExpired => Refused::Expired,
        AlertDescription::CertificateRevoked => Refused::Revoked,
        AlertDescription::UnsupportedCertificate => Refused::WrongUse,
        AlertDescription::BadCertificate => Refused::Malformed,
        AlertDescription::DecryptError => Refused::BadSignature,
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => Refused::WrongIdentity,
        AlertDescription::HandshakeFailure
        | AlertDescription::ProtocolVersion
        | AlertDescription::NoApplicationProtocol
        | AlertDescription::IllegalParameter
        | AlertDescription::DecodeError => Refused::Handshake,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reasons_are_unique_and_come_back_from_tls() {
        let reasons: BTreeSet<_> = Refused::ALL.iter().map(|refused| refused.reason()).collect();
        assert_eq!(reasons.len(), Refused::ALL.len());
        for refused in Refused::ALL {
            assert_eq!(Fault::of(&refused.into_tls()), Some(Fault::Theirs(refused)));
        }
    }
}
