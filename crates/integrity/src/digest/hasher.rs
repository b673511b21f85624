//! Hashing content piece by piece.

use md4::Digest as _;

use super::{Digest, HashAlgorithm};

/// A digest being computed.
///
/// The bytes are the kernel's: where an algorithm has more than one byte order in use, the kernel's own counts. That is so
/// for Tiger, whose three 64-bit words the kernel writes big endian (`cpu_to_be64`), while its authors' corrected reference code
/// and most libraries write them little endian: `tgr192` of `abc` is `f258c1e88414ab2a…` here and `2aab1484e8c158f2…` there.
///
/// Source: Linux `crypto/tgr192.c` (`tgr192_final`, `tgr160_final`, `tgr128_final`; removed from the kernel in 2021),
/// `crypto/wp512.c`.
#[derive(Clone)]
pub struct Hasher {
    algorithm: HashAlgorithm,
    state: State,
}

/// One state for several algorithms where the shorter digests are truncations.
#[derive(Clone)]
enum State {
    Md4(md4::Md4),
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha224(sha2::Sha224),
    Sha256(sha2::Sha256),
    Sha384(sha2::Sha384),
    Sha512(sha2::Sha512),
    Rmd128(ripemd::Ripemd128),
    Rmd160(ripemd::Ripemd160),
    Rmd256(ripemd::Ripemd256),
    Rmd320(ripemd::Ripemd320),
    Whirlpool(whirlpool::Whirlpool),
    Tiger(tiger::Tiger),
    Sm3(sm3::Sm3),
    Streebog256(streebog::Streebog256),
    Streebog512(streebog::Streebog512),
    Sha3_256(sha3::Sha3_256),
    Sha3_384(sha3::Sha3_384),
    Sha3_512(sha3::Sha3_512),
}

impl Hasher {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new(algorithm: HashAlgorithm) -> Self {
        let state = match algorithm {
            HashAlgorithm::Md4 => State::Md4(md4::Md4::new()),
            HashAlgorithm::Md5 => State::Md5(md5::Md5::new()),
            HashAlgorithm::Sha1 => State::Sha1(sha1::Sha1::new()),
            HashAlgorithm::Sha224 => State::Sha224(sha2::Sha224::new()),
            HashAlgorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            HashAlgorithm::Sha384 => State::Sha384(sha2::Sha384::new()),
            HashAlgorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
            HashAlgorithm::Rmd128 => State::Rmd128(ripemd::Ripemd128::new()),
            HashAlgorithm::Rmd160 => State::Rmd160(ripemd::Ripemd160::new()),
            HashAlgorithm::Rmd256 => State::Rmd256(ripemd::Ripemd256::new()),
            HashAlgorithm::Rmd320 => State::Rmd320(ripemd::Ripemd320::new()),
            HashAlgorithm::Wp256 | HashAlgorithm::Wp384 | HashAlgorithm::Wp512 => {
                State::Whirlpool(whirlpool::Whirlpool::new())
            }
            HashAlgorithm::Tgr128 | HashAlgorithm::Tgr160 | HashAlgorithm::Tgr192 => State::Tiger(tiger::Tiger::new()),
            HashAlgorithm::Sm3 => State::Sm3(sm3::Sm3::new()),
            HashAlgorithm::Streebog256 => State::Streebog256(streebog::Streebog256::new()),
            HashAlgorithm::Streebog512 => State::Streebog512(streebog::Streebog512::new()),
            HashAlgorithm::Sha3_256 => State::Sha3_256(sha3::Sha3_256::new()),
            HashAlgorithm::Sha3_384 => State::Sha3_384(sha3::Sha3_384::new()),
            HashAlgorithm::Sha3_512 => State::Sha3_512(sha3::Sha3_512::new()),
        };
        Self { algorithm, state }
    }

    /// Hashes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Md4(state) => state.update(bytes),
            State::Md5(state) => state.update(bytes),
            State::Sha1(state) => state.update(bytes),
            State::Sha224(state) => state.update(bytes),
            State::Sha256(state) => state.update(bytes),
            State::Sha384(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
            State::Rmd128(state) => state.update(bytes),
            State::Rmd160(state) => state.update(bytes),
            State::Rmd256(state) => state.update(bytes),
            State::Rmd320(state) => state.update(bytes),
            State::Whirlpool(state) => state.update(bytes),
            State::Tiger(state) => state.update(bytes),
            State::Sm3(state) => state.update(bytes),
            State::Streebog256(state) => state.update(bytes),
            State::Streebog512(state) => state.update(bytes),
            State::Sha3_256(state) => state.update(bytes),
            State::Sha3_384(state) => state.update(bytes),
            State::Sha3_512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes given so far.
    #[must_use]
    pub fn finish(self) -> Digest {
        let digest = |bytes: &[u8]| Digest::leading(self.algorithm, bytes);
        match self.state {
            State::Md4(state) => digest(&state.finalize()),
            State::Md5(state) => digest(&state.finalize()),
            State::Sha1(state) => digest(&state.finalize()),
            State::Sha224(state) => digest(&state.finalize()),
            State::Sha256(state) => digest(&state.finalize()),
            State::Sha384(state) => digest(&state.finalize()),
            State::Sha512(state) => digest(&state.finalize()),
            State::Rmd128(state) => digest(&state.finalize()),
            State::Rmd160(state) => digest(&state.finalize()),
            State::Rmd256(state) => digest(&state.finalize()),
            State::Rmd320(state) => digest(&state.finalize()),
            State::Whirlpool(state) => digest(&state.finalize()),
            State::Tiger(state) => {
                let mut bytes = state.finalize();
                bytes.chunks_exact_mut(8).for_each(<[u8]>::reverse);
                digest(&bytes)
            }
            State::Sm3(state) => digest(&state.finalize()),
            State::Streebog256(state) => digest(&state.finalize()),
            State::Streebog512(state) => digest(&state.finalize()),
            State::Sha3_256(state) => digest(&state.finalize()),
            State::Sha3_384(state) => digest(&state.finalize()),
            State::Sha3_512(state) => digest(&state.finalize()),
        }
    }
}

impl std::fmt::Debug for Hasher {
    /// Without the state: it can tell parts of what was hashed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hasher").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}
