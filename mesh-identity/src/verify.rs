//! A peer's chain of certificates → the one identity that it proves.
//!
//! TLS handshake ──chain──▶ **verify** ──[`SpiffeId`]──▶ authorisation
//!
//! A leaf counts where a root of the bundle has issued it, over what intermediates the peer sent, all of them valid
//! now and none revoked; where it is no authority itself and, if it says what it is for, is for this end; and where it
//! carries exactly one URI, which is an identity of our trust domain. Names and addresses in it are never looked at.
//!
//! Invariants: no clock is read: `now` is an argument. Every refusal has a name ([`Refused`]). A list of revoked
//! certificates whose time is over still counts: the control plane may be away for longer than a list is meant to
//! last, and what it revoked stays revoked.
//! Not here: TLS (tls), what an identity may do (mesh-core's authorise).

use mesh_api::spiffe::SpiffeId;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use crate::{Bundle, Refused};

/// A bundle that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Nobody could be believed.
    #[error("the bundle of {0} has no root certificate: every peer would be refused")]
    NoRoots(String),
    /// A root does not parse.
    #[error("root {index} of the bundle of {trust_domain} is no certificate: {cause}")]
    Root {
        /// Whose bundle.
        trust_domain: String,
        /// Which.
        index: usize,
        /// Why.
        cause: Error,
    },
    /// A revocation list does not parse.
    #[error("revocation list {index} of the bundle of {trust_domain} is damaged: {cause}")]
    Revoked {
        /// Whose bundle.
        trust_domain: String,
        /// Which.
        index: usize,
        /// Why.
        cause: Error,
    },
}

/// Which end of the connection the peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer<'a> {
    /// It called. Any identity of the trust domain is one; what it may do is asked later.
    Client,
    /// It was called, and must be one of these.
    Server(&'a [SpiffeId]),
}

/// A bundle, parsed once for many handshakes.
pub struct Roots {
    trust_domain: String,
    anchors: Vec<TrustAnchor<'static>>,
    revoked: Vec<CertRevocationList<'static>>,
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

impl Roots {
    /// Parses a bundle.
    pub fn new(bundle: &Bundle) -> Result<Self, BundleError> {
        let trust_domain = || bundle.trust_domain.clone();
        if bundle.roots.is_empty() {
            return Err(BundleError::NoRoots(trust_domain()));
        }
        let anchor = |(index, der)| match webpki::anchor_from_trusted_cert(der) {
            Ok(anchor) => Ok(anchor.to_owned()),
            Err(cause) => Err(BundleError::Root { trust_domain: trust_domain(), index, cause }),
        };
        let list = |(index, der): (usize, &rustls_pki_types::CertificateRevocationListDer<'_>)| {
            match OwnedCertRevocationList::from_der(der) {
                Ok(list) => Ok(list.into()),
                Err(cause) => Err(BundleError::Revoked { trust_domain: trust_domain(), index, cause }),
            }
        };
        Ok(Self {
            trust_domain: trust_domain(),
            anchors: bundle.roots.iter().enumerate().map(anchor).collect::<Result<_, _>>()?,
            revoked: bundle.revoked.iter().enumerate().map(list).collect::<Result<_, _>>()?,
            algorithms: webpki::ALL_VERIFICATION_ALGS,
        })
    }

    /// Whose identities count.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The identity that a chain proves, leaf first.
    pub fn verify(
        &self,
        peer: Peer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<SpiffeId, Refused> {
        let [leaf, intermediates @ ..] = chain else { return Err(Refused::Missing) };
        let leaf = EndEntityCert::try_from(leaf).map_err(|error| refused(&error))?;
        let usage = match peer {
            Peer::Client => KeyUsage::client_auth(),
            Peer::Server(_) => KeyUsage::server_auth(),
        };
        let lists: Vec<&CertRevocationList<'_>> = self.revoked.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        leaf.verify_for_usage(self.algorithms, &self.anchors, intermediates, now, usage, revocation, None)
            .map_err(|error| refused(&error))?;
        let id = identity(&leaf)?;
        if id.trust_domain() != self.trust_domain {
            return Err(Refused::WrongTrustDomain);
        }
        match peer {
            Peer::Server(expected) if !expected.contains(&id) => Err(Refused::WrongIdentity),
            Peer::Server(_) | Peer::Client => Ok(id),
        }
    }
}

/// The identity that a leaf carries, of whatever trust domain, proved or not.
pub fn identity_in(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Refused> {
    identity(&EndEntityCert::try_from(leaf).map_err(|error| refused(&error))?)
}

fn identity(leaf: &EndEntityCert<'_>) -> Result<SpiffeId, Refused> {
    let mut uris = leaf.valid_uri_names();
    let only = uris.next().ok_or(Refused::NoIdentity)?;
    if uris.next().is_some() {
        return Err(Refused::TwoIdentities);
    }
    only.parse().map_err(|_| Refused::NoIdentity)
}

fn refused(error: &Error) -> Refused {
    match error {
        Error::UnknownIssuer => Refused::UnknownCa,
        Error::CertExpired { .. } | Error::InvalidCertValidity => Refused::Expired,
        Error::CertNotValidYet { .. } => Refused::NotYetValid,
        Error::CertRevoked => Refused::Revoked,
        Error::CaUsedAsEndEntity => Refused::IsCa,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Refused::WrongUse,
        Error::InvalidSignatureForPublicKey => Refused::BadSignature,
        _ => Refused::Malformed,
    }
}
