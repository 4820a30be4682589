//! A certificate and its key as they are kept for the next agent: sealed, a record of fixed size each.
//!
//! Sealed with AES-256-GCM under a key that is kept elsewhere (keep): a record alone is worth nothing. What it is
//! bound to (whose, until when) can't be exchanged between records.
//!
//! Pure, but for the random number of each record. Not here: where records and the key lie.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use mesh_api::proto::v1;
use prost::Message;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::make::Key;

/// Bytes of the key that seals.
pub const SEAL: usize = 32;
/// Bytes of a record. With what the kernel adds to an entry it fits in a page.
pub const RECORD: usize = 3968;
/// End of validity, length, nonce.
const HEAD: usize = 8 + 4 + NONCE_LEN;
const TAG: usize = 16;

/// A record.
pub type Record = [u8; RECORD];

/// Under which a record is found: the hash of whose it is.
pub fn name(identity: &str) -> [u8; 32] {
    Sha256::digest(identity.as_bytes()).into()
}

/// Until when the certificate in a record is good, Unix seconds.
pub fn ends(record: &Record) -> u64 {
    record.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

/// Seals and opens.
pub struct Seal(LessSafeKey);

impl Seal {
    /// With this key.
    pub fn new(key: &[u8; SEAL]) -> Option<Self> {
        UnboundKey::new(&AES_256_GCM, key).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    /// A record; `None`: it does not fit.
    pub fn close(&self, identity: &str, key: &Key, certificate: &v1::Certificate) -> Option<Box<Record>> {
        let secret = key.pkcs8();
        let mut text = Zeroizing::new(Vec::with_capacity(RECORD));
        text.extend(u32::try_from(secret.len()).ok()?.to_le_bytes());
        text.extend(secret);
        // Growing would leave a copy of the key behind.
        if text.len() + certificate.encoded_len() + HEAD + TAG > RECORD {
            return None;
        }
        certificate.encode(&mut *text).ok()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let ends = certificate.not_after;
        let bound = Aad::from(bound(identity, ends));
        self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), bound, &mut *text).ok()?;
        let mut record = Box::new([0; RECORD]);
        record[..8].copy_from_slice(&ends.to_le_bytes());
        record[8..12].copy_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
        record[12..HEAD].copy_from_slice(&nonce);
        record.get_mut(HEAD..HEAD + text.len())?.copy_from_slice(&text);
        Some(record)
    }

    /// What is in a record; `None`: it is not of this key, of somebody else, or damaged.
    pub fn open(&self, identity: &str, record: &Record) -> Option<(Key, v1::Certificate)> {
        let length = u32::from_le_bytes(*record.get(8..12)?.first_chunk()?) as usize;
        let nonce: [u8; NONCE_LEN] = record.get(12..HEAD)?.try_into().ok()?;
        let sealed = record.get(HEAD..HEAD.checked_add(length)?)?;
        let mut text = Zeroizing::new(sealed.to_vec());
        let bound = Aad::from(bound(identity, ends(record)));
        let text = self.0.open_in_place(Nonce::assume_unique_for_key(nonce), bound, &mut text).ok()?;
        let (secret, rest) = text.split_first_chunk::<4>()?;
        let (secret, rest) = rest.split_at_checked(u32::from_le_bytes(*secret) as usize)?;
        Some((Key::from_pkcs8(secret.to_vec()), v1::Certificate::decode(rest).ok()?))
    }
}

fn bound(identity: &str, ends: u64) -> Vec<u8> {
    [&ends.to_le_bytes(), identity.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "spiffe://m/ns/a/sa/b";

    fn certificate(bytes: usize) -> v1::Certificate {
        v1::Certificate {
            chain: vec![vec![7; bytes]],
            not_before: 1,
            not_after: 1_000,
            serial: "ab".to_owned(),
            generation: 3,
        }
    }

    #[test]
    fn what_was_sealed_is_opened_by_the_same_key_for_the_same_identity_alone() {
        let (key, _) = super::super::make::key(Some(ID)).unwrap();
        let seal = Seal::new(&[1; SEAL]).unwrap();
        let record = seal.close(ID, &key, &certificate(1500)).unwrap();
        assert_eq!(ends(&record), 1_000);
        let (again, told) = Seal::new(&[1; SEAL]).unwrap().open(ID, &record).unwrap();
        assert_eq!((again.pkcs8(), told), (key.pkcs8(), certificate(1500)));
        assert!(!record.windows(16).any(|window| key.pkcs8().windows(16).any(|part| part == window)));
        assert!(Seal::new(&[2; SEAL]).unwrap().open(ID, &record).is_none(), "another key");
        assert!(seal.open("spiffe://m/ns/a/sa/c", &record).is_none(), "somebody else's");
        let mut later = record.clone();
        later[0] ^= 1;
        assert!(seal.open(ID, &later).is_none(), "its end was changed");
        for at in [8, 11, 12, HEAD, HEAD + 900] {
            let mut damaged = record.clone();
            damaged[at] ^= 0x80;
            assert!(seal.open(ID, &damaged).is_none(), "byte {at}");
        }
        assert!(seal.open(ID, &[0; RECORD]).is_none() && seal.open(ID, &[255; RECORD]).is_none());
    }

    #[test]
    fn a_chain_that_is_too_long_does_not_fit_and_two_records_are_never_alike() {
        let (key, _) = super::super::make::key(Some(ID)).unwrap();
        let seal = Seal::new(&[1; SEAL]).unwrap();
        assert!(seal.close(ID, &key, &certificate(3500)).is_some());
        assert!(seal.close(ID, &key, &certificate(RECORD)).is_none());
        assert_ne!(seal.close(ID, &key, &certificate(9)), seal.close(ID, &key, &certificate(9)));
    }
}
