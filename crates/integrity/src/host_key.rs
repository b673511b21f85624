//! The host key: a secret of this machine, with which it vouches for what it wrote itself.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a host key, and of what [`HostKey::derive`] makes of it.
pub const KEY_LENGTH: usize = 32;

/// Bytes of an HMAC-SHA256.
pub const MAC_LENGTH: usize = 32;

/// 32 random bytes that nobody but root of this machine knows. Never printed, and wiped when dropped.
///
/// It is never used itself: each purpose has a key of its own, [derived](Self::derive) from it.
pub struct HostKey(Zeroizing<[u8; KEY_LENGTH]>);

impl HostKey {
    /// Takes the bytes over; the caller's copy is his to wipe.
    #[must_use]
    pub fn new(bytes: &[u8; KEY_LENGTH]) -> Self {
        Self(Zeroizing::new(*bytes))
    }

    /// The key for one purpose: HMAC-SHA256 of its name under the host key.
    ///
    /// Source: RFC 2104.
    #[must_use]
    pub fn derive(&self, purpose: &[u8]) -> MacKey {
        MacKey(Zeroizing::new(hmac(&self.0, &[purpose])))
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey")
    }
}

/// A key for one purpose. Never printed, and wiped when dropped.
#[derive(Clone)]
pub struct MacKey(Zeroizing<[u8; KEY_LENGTH]>);

impl MacKey {
    /// HMAC-SHA256 of the parts, as if they were one message.
    #[must_use]
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; MAC_LENGTH] {
        hmac(&self.0, parts)
    }

    /// Whether `mac` is that of the parts. Takes the same time wherever it differs.
    #[must_use]
    pub fn vouches(&self, parts: &[&[u8]], mac: &[u8; MAC_LENGTH]) -> bool {
        let difference = self.mac(parts).iter().zip(mac).fold(0, |sum, (one, other)| sum | (one ^ other));
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey")
    }
}

fn hmac(key: &[u8; KEY_LENGTH], parts: &[&[u8]]) -> [u8; MAC_LENGTH] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_what_openssl_makes_of_the_same_key() {
        // RFC 4231 has shorter keys; this one is what `openssl dgst -sha256 -mac HMAC -macopt hexkey:0b0b…` says.
        let key = MacKey(Zeroizing::new([0x0b; KEY_LENGTH]));
        let mac = key.mac(&[b"Hi ", b"There"]);
        let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7");
        assert!(key.vouches(&[b"Hi There"], &mac));
        assert!(!key.vouches(&[b"Hi there"], &mac));
        for place in [0, 31] {
            let mut other = mac;
            other[place] ^= 1;
            assert!(!key.vouches(&[b"Hi There"], &other), "{place}");
        }
    }

    #[test]
    fn purposes_have_different_keys_and_nothing_is_shown_of_them() {
        let key = HostKey::new(&[7; KEY_LENGTH]);
        assert_ne!(key.derive(b"one").mac(&[]), key.derive(b"two").mac(&[]));
        assert_eq!(format!("{key:?} {:?}", key.derive(b"one")), "HostKey MacKey");
    }
}
