//! MessagePack tokens, read in place.
//!
//! A payload is walked without allocation, so that admission can prove every
//! frame as it passes. Nothing a length field claims is believed before the
//! bytes are there. Source of the format: the MessagePack specification.

mod amend;

pub use amend::{Scalar, put_amended, put_amended_map};

use rmp::Marker;

/// Deepest nesting of arrays and maps that is accepted.
pub const MAX_DEPTH: usize = 32;

/// Strings of at most so many bytes are looked at for ASCII first.
const SHORT_BYTES: usize = 16;

/// One scalar, or the head of a container.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// nil.
    Nil,
    /// true or false.
    Bool(bool),
    /// A negative integer.
    Int(i64),
    /// A non-negative integer.
    Uint(u64),
    /// A 32 or 64 bit float.
    Float(f64),
    /// A string, proved to be UTF-8.
    Str(&'a str),
    /// Binary.
    Bin(&'a [u8]),
    /// Extension type and its bytes.
    Ext(i8, &'a [u8]),
    /// An array of that many values, which follow.
    Array(u32),
    /// A map of that many key-value pairs, which follow.
    Map(u32),
}

impl Token<'_> {
    /// The type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "boolean",
            Self::Int(_) | Self::Uint(_) => "integer",
            Self::Float(_) => "float",
            Self::Str(_) => "string",
            Self::Bin(_) => "binary",
            Self::Ext(..) => "extension",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
        }
    }
}

/// Why bytes are not MessagePack as we accept it. Positions are bytes from
/// the start of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A value needs more bytes than there are.
    #[error("the value at byte {at} needs {needed} more bytes, and the payload ends")]
    Ends {
        /// Where the value starts.
        at: usize,
        /// Bytes missing.
        needed: usize,
    },
    /// 0xc1, which the format never uses.
    #[error("byte 0xc1 at byte {at} is not MessagePack")]
    Reserved {
        /// Where it stands.
        at: usize,
    },
    /// A string that is not UTF-8.
    #[error("the string at byte {at} is not UTF-8 from its byte {valid} on")]
    NotUtf8 {
        /// Where the string's bytes start.
        at: usize,
        /// Bytes of it that are valid.
        valid: usize,
    },
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels at byte {at}")]
    TooDeep {
        /// Where the value one level too deep starts.
        at: usize,
    },
}

/// A position in a payload.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    payload: &'a [u8],
    at: usize,
    tokens: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `payload`.
    pub fn new(payload: &'a [u8]) -> Self {
        Self { payload, at: 0, tokens: 0 }
    }

    /// Tokens read so far, those that were walked over included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.payload.len() - self.at
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let rest = self.payload.get(self.at..).unwrap_or_default();
        let Some((taken, _)) = rest.split_at_checked(n) else {
            return Err(Malformed::Ends { at: self.at, needed: n - rest.len() });
        };
        self.at += n;
        Ok(taken)
    }

    fn be<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().unwrap_or([0; N]))
    }

    /// A length field of `N` bytes.
    fn length<const N: usize>(&mut self) -> Result<usize, Malformed> {
        let bytes: [u8; N] = self.be()?;
        Ok(bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    fn str(&mut self, n: usize) -> Result<Token<'a>, Malformed> {
        let bytes = self.take(n)?;
        // Keys and names are short and ASCII; for those the general check
        // costs more than all else.
        if n <= SHORT_BYTES && bytes.is_ascii() {
            // SAFETY: ASCII is UTF-8.
            return Ok(Token::Str(unsafe { std::str::from_utf8_unchecked(bytes) }));
        }
        std::str::from_utf8(bytes)
            .map(Token::Str)
            .map_err(|e| Malformed::NotUtf8 { at: self.at - n, valid: e.valid_up_to() })
    }

    fn ext(&mut self, n: usize) -> Result<Token<'a>, Malformed> {
        let [kind] = self.be::<1>()?;
        Ok(Token::Ext(i8::from_be_bytes([kind]), self.take(n)?))
    }

    fn integer(n: i64) -> Token<'a> {
        u64::try_from(n).map_or(Token::Int(n), Token::Uint)
    }

    /// The next token. After [`Token::Array`] or [`Token::Map`] the contents
    /// follow.
    pub fn token(&mut self) -> Result<Token<'a>, Malformed> {
        let at = self.at;
        self.tokens += 1;
        let [marker] = self.be::<1>()?;
        Ok(match Marker::from_u8(marker) {
            Marker::FixPos(n) => Token::Uint(n.into()),
            Marker::FixNeg(n) => Token::Int(n.into()),
            Marker::Null => Token::Nil,
            Marker::True => Token::Bool(true),
            Marker::False => Token::Bool(false),
            Marker::U8 => Token::Uint(u8::from_be_bytes(self.be()?).into()),
            Marker::U16 => Token::Uint(u16::from_be_bytes(self.be()?).into()),
            Marker::U32 => Token::Uint(u32::from_be_bytes(self.be()?).into()),
            Marker::U64 => Token::Uint(u64::from_be_bytes(self.be()?)),
            Marker::I8 => Self::integer(i8::from_be_bytes(self.be()?).into()),
            Marker::I16 => Self::integer(i16::from_be_bytes(self.be()?).into()),
            Marker::I32 => Self::integer(i32::from_be_bytes(self.be()?).into()),
            Marker::I64 => Self::integer(i64::from_be_bytes(self.be()?)),
            Marker::F32 => Token::Float(f32::from_be_bytes(self.be()?).into()),
            Marker::F64 => Token::Float(f64::from_be_bytes(self.be()?)),
            Marker::FixStr(n) => self.str(n.into())?,
            Marker::Str8 => self.length::<1>().and_then(|n| self.str(n))?,
            Marker::Str16 => self.length::<2>().and_then(|n| self.str(n))?,
            Marker::Str32 => self.length::<4>().and_then(|n| self.str(n))?,
            Marker::Bin8 => self.length::<1>().and_then(|n| self.take(n)).map(Token::Bin)?,
            Marker::Bin16 => self.length::<2>().and_then(|n| self.take(n)).map(Token::Bin)?,
            Marker::Bin32 => self.length::<4>().and_then(|n| self.take(n)).map(Token::Bin)?,
            Marker::FixExt1 => self.ext(1)?,
            Marker::FixExt2 => self.ext(2)?,
            Marker::FixExt4 => self.ext(4)?,
            Marker::FixExt8 => self.ext(8)?,
            Marker::FixExt16 => self.ext(16)?,
            Marker::Ext8 => self.length::<1>().and_then(|n| self.ext(n))?,
            Marker::Ext16 => self.length::<2>().and_then(|n| self.ext(n))?,
            Marker::Ext32 => self.length::<4>().and_then(|n| self.ext(n))?,
            Marker::FixArray(n) => Token::Array(n.into()),
            Marker::Array16 => Token::Array(u16::from_be_bytes(self.be()?).into()),
            Marker::Array32 => Token::Array(u32::from_be_bytes(self.be()?)),
            Marker::FixMap(n) => Token::Map(n.into()),
            Marker::Map16 => Token::Map(u16::from_be_bytes(self.be()?).into()),
            Marker::Map32 => Token::Map(u32::from_be_bytes(self.be()?)),
            Marker::Reserved => return Err(Malformed::Reserved { at }),
        })
    }

    /// Walks over one whole value, proving it. `depth` is how deep the value
    /// stands.
    pub fn skip(&mut self, depth: usize) -> Result<(), Malformed> {
        let token = self.token()?;
        self.skip_contents(token, depth)
    }

    /// Walks over what follows `token` if it is a container.
    pub fn skip_contents(&mut self, token: Token<'_>, depth: usize) -> Result<(), Malformed> {
        let values = match token {
            Token::Array(n) => u64::from(n),
            Token::Map(n) => 2 * u64::from(n),
            _ => return Ok(()),
        };
        if depth + 1 > MAX_DEPTH {
            return Err(Malformed::TooDeep { at: self.at });
        }
        (0..values).try_for_each(|_| self.skip(depth + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(value: &impl serde::Serialize) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn every_scalar_reads_as_rmp_serde_wrote_it() {
        for n in [0i64, 1, 127, 128, 255, 256, 65_536, i64::MAX, -1, -32, -33, -129, i64::MIN] {
            let want = Cursor::integer(n);
            assert_eq!(Cursor::new(&bytes_of(&n)).token(), Ok(want), "{n}");
        }
        assert_eq!(Cursor::new(&bytes_of(&1.5f64)).token(), Ok(Token::Float(1.5)));
        for length in [0, 31, 32, 255, 256, 65_536] {
            let s = "é".repeat(length / 2) + &"x".repeat(length % 2);
            assert_eq!(Cursor::new(&bytes_of(&s)).token(), Ok(Token::Str(&s)));
        }
    }

    #[test]
    fn depth_is_capped_and_exact() {
        let nested = |n: usize| [vec![0x91; n], vec![0xc0]].concat();
        assert_eq!(Cursor::new(&nested(MAX_DEPTH)).skip(0), Ok(()));
        assert_eq!(
            Cursor::new(&nested(MAX_DEPTH + 1)).skip(0),
            Err(Malformed::TooDeep { at: MAX_DEPTH + 1 })
        );
    }

    #[test]
    fn a_huge_claimed_container_ends_at_the_end_of_the_bytes() {
        let bomb = [0xdf, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert!(matches!(Cursor::new(&bomb).skip(0), Err(Malformed::Ends { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_walked_without_panic(bytes: Vec<u8>) {
            let mut cursor = Cursor::new(&bytes);
            while cursor.remaining() > 0 && cursor.skip(0).is_ok() {}
        }
    }
}
