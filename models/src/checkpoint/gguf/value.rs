//! A metadata value.

use super::Cursor;
use crate::Error;

/// A metadata value, the format's thirteen types folded into those that matter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Strings(Vec<String>),
    /// A list of lists, read past: nothing needs one.
    Nested,
}

const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

/// Vocabularies are the longest lists, and have far fewer tokens.
const MAX_LEN: usize = 1 << 24;

/// Real files nest once, if at all.
const MAX_DEPTH: usize = 4;

impl Value {
    /// Reads a type and a value of it.
    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, Error> {
        match cursor.u32()? {
            STRING => Ok(Self::String(cursor.string()?)),
            BOOL => Ok(Self::Bool(cursor.array::<1>()?[0] != 0)),
            ARRAY => Self::read_array(cursor, 0),
            kind @ (FLOAT32 | FLOAT64) => Ok(Self::Float(read_float(cursor, kind)?)),
            kind => Ok(Self::Integer(read_integer(cursor, kind)?)),
        }
    }

    fn read_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Self, Error> {
        let kind = cursor.u32()?;
        let count = cursor.count(min_bytes(kind))?;
        if count > MAX_LEN {
            return Err(cursor.error(&format!("a list of {count} values; {MAX_LEN} are the most")));
        }
        match kind {
            STRING => {
                Ok(Self::Strings((0..count).map(|_| cursor.string()).collect::<Result<_, _>>()?))
            }
            FLOAT32 | FLOAT64 => Ok(Self::Floats(
                (0..count).map(|_| read_float(cursor, kind)).collect::<Result<_, _>>()?,
            )),
            ARRAY if depth < MAX_DEPTH => {
                for _ in 0..count {
                    Self::read_array(cursor, depth + 1)?;
                }
                Ok(Self::Nested)
            }
            ARRAY => Err(cursor.error("lists are nested too deeply")),
            _ => Ok(Self::Integers(
                (0..count).map(|_| read_integer(cursor, kind)).collect::<Result<_, _>>()?,
            )),
        }
    }
}

fn read_integer(cursor: &mut Cursor<'_>, kind: u32) -> Result<i64, Error> {
    Ok(match kind {
        UINT8 | BOOL => u8::from_le_bytes(cursor.array()?).into(),
        INT8 => i8::from_le_bytes(cursor.array()?).into(),
        UINT16 => u16::from_le_bytes(cursor.array()?).into(),
        INT16 => i16::from_le_bytes(cursor.array()?).into(),
        UINT32 => cursor.u32()?.into(),
        INT32 => i32::from_le_bytes(cursor.array()?).into(),
        UINT64 => i64::try_from(cursor.u64()?).unwrap_or(i64::MAX),
        INT64 => i64::from_le_bytes(cursor.array()?),
        _ => return Err(cursor.error(&format!("unknown value type {kind}"))),
    })
}

fn read_float(cursor: &mut Cursor<'_>, kind: u32) -> Result<f64, Error> {
    match kind {
        FLOAT32 => Ok(f32::from_le_bytes(cursor.array()?).into()),
        _ => Ok(f64::from_le_bytes(cursor.array()?)),
    }
}

/// Returns the fewest bytes that a value of a type takes.
fn min_bytes(kind: u32) -> usize {
    match kind {
        STRING | UINT64 | INT64 | FLOAT64 => 8,
        UINT32 | INT32 | FLOAT32 => 4,
        UINT16 | INT16 => 2,
        ARRAY => 12,
        _ => 1,
    }
}
