//! Reading bytes that somebody else wrote: the one place where they are cut.
//!
//! A [`Reader`] walks forward over a buffer and never past its end, so that the parsers built on it are total: they cannot
//! panic, and they allocate nothing.

/// A buffer and how far it has been read.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }

    /// How many bytes have been read.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Truncated`] if fewer are left; nothing is read then.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(self.truncated(count))?;
        self.rest = rest;
        self.offset += count;
        Ok(taken)
    }

    /// The next `N` bytes, as an array.
    ///
    /// # Errors
    /// [`Truncated`] if fewer are left; nothing is read then.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(self.truncated(N))?;
        self.rest = rest;
        self.offset += N;
        Ok(*taken)
    }

    /// The next byte.
    ///
    /// # Errors
    /// [`Truncated`] at the end.
    pub fn byte(&mut self) -> Result<u8, Truncated> {
        self.array::<1>().map(u8::from_be_bytes)
    }

    /// The next two bytes, big endian.
    ///
    /// # Errors
    /// [`Truncated`] if fewer are left.
    pub fn u16_be(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes, big endian.
    ///
    /// # Errors
    /// [`Truncated`] if fewer are left.
    pub fn u32_be(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next four bytes, little endian.
    ///
    /// # Errors
    /// [`Truncated`] if fewer are left.
    pub fn u32_le(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_le_bytes)
    }

    /// Everything that is left; the reader is at its end then.
    pub fn rest(&mut self) -> &'a [u8] {
        let rest = self.rest;
        self.offset += rest.len();
        self.rest = &[];
        rest
    }

    const fn truncated(&self, needed: usize) -> Truncated {
        Truncated { offset: self.offset, needed, left: self.rest.len() }
    }
}

/// The bytes end too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {needed} more bytes expected, {left} left")]
pub struct Truncated {
    /// Where the missing field begins, from the start of the buffer.
    pub offset: usize,
    /// How many bytes the field has.
    pub needed: usize,
    /// How many bytes there are.
    pub left: usize,
}

/// The first `count` bytes, or all of them where there are fewer.
#[must_use]
pub fn prefix(bytes: &[u8], count: usize) -> &[u8] {
    bytes.get(..count).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_the_offset_follows() {
        let mut reader = Reader::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert_eq!(reader.byte(), Ok(1));
        assert_eq!(reader.u16_be(), Ok(0x0203));
        assert_eq!(reader.u32_be(), Ok(0x0405_0607));
        assert_eq!(reader.u32_le(), Ok(0x0b0a_0908));
        assert_eq!(reader.take(1), Ok(&[12_u8][..]));
        assert_eq!((reader.offset(), reader.remaining()), (12, 2));
        assert_eq!(reader.rest(), [13, 14]);
        assert_eq!((reader.offset(), reader.remaining()), (14, 0));
    }

    #[test]
    fn a_field_that_does_not_fit_is_an_error_that_says_where_and_reads_nothing() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.byte(), Ok(1));
        assert_eq!(reader.u32_be(), Err(Truncated { offset: 1, needed: 4, left: 2 }));
        assert_eq!(reader.take(usize::MAX), Err(Truncated { offset: 1, needed: usize::MAX, left: 2 }));
        assert_eq!(reader.u16_be(), Ok(0x0203));
        assert_eq!(reader.byte(), Err(Truncated { offset: 3, needed: 1, left: 0 }));
        assert_eq!(reader.take(0), Ok(&[][..]));
    }

    #[test]
    fn a_prefix_is_never_longer_than_what_there_is() {
        assert_eq!(prefix(&[1, 2, 3], 2), [1, 2]);
        assert_eq!(prefix(&[1, 2, 3], 3), [1, 2, 3]);
        assert_eq!(prefix(&[1, 2, 3], 4), [1, 2, 3]);
    }
}
